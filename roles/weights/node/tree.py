"""Runs on a node, beside stage.py: a folder of any kind as a snapshot of one file, and back.

    tree.py digest FOLDER                          40 hex digits for what is in it; nothing if absent
    tree.py pack   FOLDER --path LINK --repository NAME --commit DIGEST
    tree.py unpack FOLDER --path LINK --commit DIGEST
    tree.py drop   FOLDER --path LINK              the snapshot goes, the folder stays

What is compared is each file's name, kind, mode, owner, size and time, as rsync does; the bytes that
travel are proven by their sha256. A folder is replaced as a whole.
"""

from __future__ import annotations

import argparse
import grp
import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import snapshots
from snapshots import StageError

ARCHIVE = "folder.tar"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--path", type=Path)
    parser.add_argument("--repository")
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    try:
        ACTIONS[args.action](args)
        return 0
    except StageError as error:
        print(error, file=sys.stderr)
    except (OSError, RuntimeError) as error:  # the latter of links in a circle
        print(f"{args.folder}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
    return 1


def digest(folder: Path) -> str:
    """Names one state of a folder; "" for none."""
    if not folder.is_dir():
        return ""
    seen = hashlib.sha256()
    for line in entries(folder):
        seen.update(line)
    return seen.hexdigest()[:40]


def entries(folder: Path) -> Iterator[bytes]:
    """A line for each thing in a folder, in an order of their names."""
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted((*folders, *files)):
            path = os.path.join(where, name)
            about = os.lstat(path)
            if stat.S_ISSOCK(about.st_mode):
                continue  # a process made it, and tar takes none along
            said = [
                os.path.relpath(path, folder),
                oct(about.st_mode),
                called(pwd.getpwuid, about.st_uid),
                called(grp.getgrgid, about.st_gid),
            ]
            if stat.S_ISREG(about.st_mode):
                said += [str(about.st_size), str(about.st_mtime_ns)]
            elif stat.S_ISLNK(about.st_mode):
                said += [os.readlink(path)]
            yield "\0".join(said).encode(errors="surrogateescape") + b"\n"


@cache
def called(entry: Callable[[int], tuple], number: int) -> str:
    """A user or group by its name: it may have another number elsewhere."""
    try:
        return entry(number)[0]
    except KeyError:
        return str(number)


def pack(args: argparse.Namespace) -> None:
    partial = snapshots.begun(args.path, args.commit, {})
    archive = partial / ARCHIVE
    archive.unlink(missing_ok=True)
    size = sum(file.lstat().st_size for file in args.folder.rglob("*") if file.is_file())
    snapshots.check_space(partial, {ARCHIVE: size})
    # atime and ctime are of this host; with them the archive would be another each time.
    tar("--sort=name", "--format=pax", "--pax-option=delete=atime,delete=ctime", "-cf", archive, "-C",
        args.folder, ".")  # fmt: skip
    if digest(args.folder) != args.commit:
        raise StageError(f"{args.folder} changed while it was packed; run it again")
    made = {ARCHIVE: {"size": archive.stat().st_size, "sha256": snapshots.sha256(archive)}}
    snapshots.record(args.path, args.commit, made[ARCHIVE]["size"])
    snapshots.publish(args.path, args.repository, args.commit, made)


def unpack(args: argparse.Namespace) -> None:
    archive = snapshots.place(args.path, args.commit) / ARCHIVE
    folder = args.folder.resolve()  # a link to a bigger disk stays
    if folder.exists() and not folder.is_dir():
        raise StageError(f"{folder} is no folder: move it away first")
    if os.path.ismount(folder):
        raise StageError(f"{folder} is where a disk is mounted: link to a folder in it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir()
    snapshots.check_space(new, {ARCHIVE: archive.stat().st_size})
    tar("-xpf", archive, "-C", new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def drop(args: argparse.Namespace) -> None:
    shutil.rmtree(args.path.parent, ignore_errors=True)


def tar(*words: str | Path) -> None:
    done = subprocess.run(["tar", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise StageError((done.stderr.strip().splitlines() or ["tar failed"])[-1])


ACTIONS = {"digest": lambda args: print(digest(args.folder)), "pack": pack, "unpack": unpack, "drop": drop}


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
