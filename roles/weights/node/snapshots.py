"""Runs on a node, beside stage.py: a snapshot, from its folder while it is made to what was verified."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: Nanoseconds since the epoch: when all files of a snapshot were last written, so that the manifest is
#: the same on all nodes, and a file that is written to later is seen without reading it.
MTIME = 946_684_800 * 10**9  # 2000


#: Where in the folder of a snapshot files are while they are fetched. No file of a model may have that name.
UNFINISHED = ".rackserve"

#: Files at once that are to be on the disk: it flushes for many as fast as for one.
FLUSHED = 32

#: What reading a manifest that is none raises.
TORN = (OSError, ValueError, LookupError, TypeError, AttributeError)


class StageError(Exception):
    """One line for a person."""


def place(link: Path, commit: str) -> Path:
    """Where a commit's snapshot is, once it is whole."""
    return link.with_name(f"snapshot-{commit}")


@contextmanager
def alone(link: Path, commit: str) -> Iterator[bool]:
    """One process at a time fetches a snapshot, others wait; whether this one had to."""
    file, waited = link.with_name(f".partial-{commit}.lock"), False
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = file.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            print(f"waiting for {lock.read() or 'another process'}, which fetches the same", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
            waited = True
        if file.exists() and os.path.samestat(file.stat(), os.fstat(lock.fileno())):
            break  # else who held it has removed it
        lock.close()
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {os.uname().nodename}")
    lock.flush()
    try:
        yield waited
    finally:
        file.unlink(missing_ok=True)
        lock.close()


def begun(link: Path, commit: str, sums: Mapping[str, str | None]) -> Path:
    """The folder in which the snapshot is made, with what is there of it already.

    Files that another snapshot of the repository has, by their `sums` (sha256), are linked into it: a
    commit often changes a few of many. So are those of one that is published and in which something
    changed, which is served on meanwhile. Who writes removes what is wrong first: see `linked`.
    """
    final, partial = place(link, commit), link.with_name(f".partial-{commit}")
    partial.mkdir(parents=True, exist_ok=True)
    there = {name: final / name for name in sums if about(final / name)}
    for name, source in {**there, **_elsewhere(link.parent, sums)}.items():
        with suppress(OSError):  # it is there, or the file system knows no links: then it is fetched
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(source, partial / name)
    return partial


def _elsewhere(repository: Path, sums: Mapping[str, str | None]) -> dict[str, Path]:
    """Files of these sums that published snapshots have, unchanged as far as a look tells."""
    there: dict[str, Path] = {}
    for file in repository.glob("snapshot-*.json"):
        folder = file.with_suffix("")
        with suppress(*TORN):
            files = json.loads(file.read_text())["files"]
            there |= {one["sha256"]: folder / name for name, one in files.items()
                      if changed(folder)((name, one)) is None}  # fmt: skip
    return {name: there[digest] for name, digest in sums.items() if digest in there}


def linked(partial: Path, files: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the files that are a published snapshot's, too, and must not be written to."""
    seen = {name: about(partial / name) for name in files}
    return {name: files[name] for name, now in seen.items() if now and now.st_nlink > 1}


def publish(link: Path, repository: str, commit: str, files: Mapping[str, Any]) -> None:
    """Put what is verified in place: the manifest first, then the snapshot, then the link to it."""
    final, partial = place(link, commit), link.with_name(f".partial-{commit}")
    shutil.rmtree(partial / UNFINISHED, ignore_errors=True)
    for path in partial.rglob("*"):  # what an earlier run wanted, too
        if not path.is_dir() and str(path.relative_to(partial)) not in files:
            path.unlink()
    with ThreadPoolExecutor(FLUSHED) as pool:
        list(pool.map(lambda name: settle(partial / name), files))
    said = {"repository": repository, "commit": commit, "files": files}
    replace(manifest(final), json.dumps(said, indent=1, sort_keys=True))
    if final.exists():
        shutil.rmtree(old := final.with_name(f".old-{commit}"), ignore_errors=True)
        final.rename(old)
        partial.rename(final)
        shutil.rmtree(old)
    else:
        partial.rename(final)
    relink(link, final.name)
    manifest(partial).unlink(missing_ok=True)  # of an uplink's share


def settle(path: Path) -> None:
    """A file as it is published, on the disk."""
    os.chmod(path, 0o644)
    os.utime(path, ns=(MTIME, MTIME))
    with path.open("rb") as file:
        os.fsync(file.fileno())


def check_space(partial: Path, wanted: Mapping[str, int]) -> None:
    """Room for files of these bytes, beside what there is of them; a hole takes none."""
    there = (partial / name for name in wanted if (partial / name).exists())
    needed = sum(wanted.values()) - sum(file.stat().st_blocks * 512 for file in there)
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise StageError(f"{partial.parent}: {megabytes(needed)} needed, {megabytes(free)} free")


def is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def check_config(path: Path, expected: Mapping[str, Any]) -> None:
    """Compare config.json with the numbers that the model's file promises."""
    file = path / "config.json"
    if not file.is_file():
        raise StageError(f"{path} has no config.json: not a model folder")
    try:
        config = json.loads(file.read_text())
    except ValueError:
        raise StageError(f"{file} is no JSON: not a model folder") from None
    wrong = [
        f"{key} is {config.get(key)} there and {value} in the model's file"
        for key, value in expected.items()
        if config.get(key) != value
    ]
    if wrong:
        raise StageError(f"{file} contradicts the catalogue: {'; '.join(wrong)}")


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def record(link: Path, commit: str, size: int) -> None:
    """Keep what a revision was resolved to, and the bytes of its files."""
    kept = link.parent / "commits" / link.name
    kept.parent.mkdir(parents=True, exist_ok=True)
    replace(kept, f"{commit} {size}\n")


def replace(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def relink(path: Path, target: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(path)


def differing(folder: Path, files: dict[str, Any]) -> list[str]:
    """The files that are not of the size and checksum that the manifest says."""

    def differs(name: str) -> bool:
        now, file = about(folder / name), files[name]
        return now is None or now.st_size != file["size"] or sha256(folder / name) != file["sha256"]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [name for name, wrong in zip(files, pool.map(differs, files), strict=True) if wrong]


def manifest(folder: Path) -> Path:
    """Beside the snapshot, not in it: vLLM is given the folder."""
    return folder.with_name(f"{folder.name}.json")


def changed(folder: Path) -> Callable[[tuple[str, Any]], str | None]:
    """What a look at a file's size and time says of it, without reading it."""

    def problem(entry: tuple[str, Any]) -> str | None:
        name, file = entry
        now = about(folder / name)
        if now is None:
            return f"{name} is missing"
        same = (now.st_size, now.st_mtime_ns) == (file["size"], MTIME)
        return None if same else f"{name} changed since it was verified"

    return problem


def about(path: Path) -> os.stat_result | None:
    """What a look at a file says; None when there is none, or something else: a folder, a link."""
    try:
        now = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return now if stat.S_ISREG(now.st_mode) else None


def problem(path: Path, commit: str) -> str | None:
    """Why the snapshot behind `path` is not that commit, whole and unchanged; None when it is."""
    final = place(path, commit)
    if not commit or not final.exists():
        return "not staged yet"
    if not path.is_symlink() or os.readlink(path) != final.name:
        return "another commit is in place"
    try:
        files = json.loads(manifest(final).read_text())["files"]
        return next(filter(None, map(changed(final), files.items())), None)
    except TORN:
        return "its manifest is missing or torn"


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
