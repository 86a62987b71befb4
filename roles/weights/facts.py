"""What of a model is on a node."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pyinfra.api import FactBase

from roles.mounts import NETWORK

#: Where roles/weights/node is on a node, and what of it is called.
PROGRAMS = "/opt/rackserve/libexec/weights"
INSTALLED = f"{PROGRAMS}/stage.py"

#: What `stage.py status` says of a snapshot of which nothing is published.
ABSENT = "not staged yet"


class Commit(FactBase[str]):
    """The commit that this host recorded for the revision of a model's path."""

    def command(self, path: str) -> str:
        link = PurePosixPath(path)
        return f"cat {shlex.quote(str(link.parent / 'commits' / link.name))} 2>/dev/null || true"

    def process(self, output: list[str]) -> str:
        return "".join(output).partition(" ")[0].strip()

    @staticmethod
    def default() -> str:
        return ""


class Size(Commit, FactBase[int]):  # type: ignore[misc]
    """The bytes of that commit's files; 0 when none was recorded."""

    def process(self, output: list[str]) -> int:  # type: ignore[override]
        return int("".join(output).partition(" ")[2] or 0)

    @staticmethod
    def default() -> int:  # type: ignore[override]
        return 0


class Room(FactBase[int]):
    """Bytes free for a commit's snapshot, with what is there of it from a run that broke off."""

    def command(self, path: str, commit: str) -> str:
        partial = PurePosixPath(path).with_name(f".partial-{commit}")
        folder = shlex.quote(str(partial.parent))
        return (
            f'd={folder}; while test ! -d "$d"; do d=$(dirname "$d"); done; '
            'df --output=avail -B1 "$d" | tail -1; '
            f"du -s -B1 {shlex.quote(str(partial))} 2>/dev/null || true"
        )

    def process(self, output: list[str]) -> int:
        return sum(int(line.split()[0]) for line in output)

    @staticmethod
    def default() -> int:
        return 0


class Files(FactBase["dict[str, dict[str, Any]]"]):
    """The files of a snapshot that is in place, from its manifest: {name: {size, sha256}}."""

    def command(self, path: str, commit: str) -> str:
        return f"cat {shlex.quote(str(PurePosixPath(path).with_name(f'snapshot-{commit}.json')))}"

    def process(self, output: list[str]) -> dict[str, dict[str, Any]]:
        files: dict[str, dict[str, Any]] = json.loads("\n".join(output))["files"]
        return files


class Part(Files):
    """The same of what an uplink has downloaded of a commit; {} when it has no part of it."""

    def command(self, path: str, commit: str) -> str:
        return f"cat {shlex.quote(str(PurePosixPath(path).with_name(f'.partial-{commit}.json')))} || true"

    @staticmethod
    def default() -> dict[str, dict[str, Any]]:
        return {}


class Disk(NamedTuple):
    """What a folder is on."""

    kind: str = ""  # of file system, as mount says it
    place: str = ""  # the same on all hosts that share it
    rotates: bool = False
    memory: int = 0  # bytes of the host's, which may hold what was read

    @property
    def is_shared(self) -> bool:
        """True for a file system that other hosts may have, too."""
        return self.kind in NETWORK


class DiskOf(FactBase[Disk]):
    """What a path is on, or will be: its nearest folder that there is counts."""

    def command(self, path: str) -> str:
        return (
            f"p=$(realpath -m {shlex.quote(path)}); d=$p; "
            'while test ! -e "$d"; do d=$(dirname "$d"); done; '
            'set -- $(findmnt -nr -o MAJ:MIN,FSTYPE,SOURCE,TARGET -T "$d" | tail -1); '
            'r=$(cat "/sys/dev/block/$1/queue/rotational" "/sys/dev/block/$1/../queue/rotational" '
            "2>/dev/null | head -1); grep MemTotal: /proc/meminfo; "
            'printf "%s\\n" "$2" "$3" "$4" "$p" "${r:-0}"'
        )

    def process(self, output: list[str]) -> Disk:
        memory, kind, source, target, path, rotational = output
        inside = PurePosixPath(path).relative_to(
            re.sub(r"\\x(..)", lambda found: chr(int(found[1], 16)), target)
        )
        return Disk(kind, f"{source}/{inside}", rotational == "1", int(memory.split()[1]) * 1024)

    @staticmethod
    def default() -> Disk:
        return Disk()


class Snapshot(FactBase["str | None"]):
    """Why that commit is not in place at a path; None when it is, whole and unchanged."""

    def command(self, python: str, path: str, commit: str) -> str:
        return _if_installed(python, "status", "--path", path, "--commit", commit)

    def process(self, output: list[str]) -> str | None:
        return json.loads("".join(output))["problem"]

    @staticmethod
    def default() -> str:
        return ABSENT


class FolderProblem(FactBase[str]):
    """What is wrong with a folder as this model; empty when nothing is."""

    def command(self, python: str, folder: str, expected: str) -> str:
        words = (python, INSTALLED, "folder", "--path", folder, "--expected", expected)
        return f"{shlex.join(words)} 2>&1 || true"

    def process(self, output: list[str]) -> str:
        return " ".join(output)

    @staticmethod
    def default() -> str:
        return ""


class Snapshots(FactBase["list[dict[str, Any]]"]):
    """What is published on this host: repository, commit, revisions, bytes, verified (epoch), problem."""

    def command(self, python: str, root: str) -> str:
        return _if_installed(python, "list", "--path", root)

    def process(self, output: list[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads("".join(output))
        return found

    @staticmethod
    def default() -> list[dict[str, Any]]:
        return []


class Excess(Snapshots):
    """What of it could go: folder and bytes of snapshots but the last `keep`, and of broken-off runs."""

    def command(self, python: str, root: str, keep: int) -> str:  # type: ignore[override]
        return _if_installed(python, "excess", "--path", root, "--keep", str(keep))


def _if_installed(python: str, *words: str) -> str:
    return f"test ! -e {python} -o ! -e {INSTALLED} || {shlex.join((python, INSTALLED, *words))}"
