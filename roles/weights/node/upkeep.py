"""Runs on a node, beside stage.py: looking after all that is published there."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import snapshots
from snapshots import StageError


def verify(root: Path, repository: str | None) -> None:
    """Hash every file again. A wrong one gets a new time, so that the next staging replaces it."""
    wrong, old, strange = [], [], []
    for one in published(root):
        if repository in (None, one["repository"]):
            folder = root / one["folder"]
            files = json.loads(snapshots.manifest(folder).read_text())["files"]
            bad = snapshots.differing(folder, files)
            for name in bad:
                if snapshots.about(folder / name):
                    os.utime(folder / name)
            if not bad:
                os.utime(snapshots.manifest(folder))
            (wrong if one["revisions"] else old).extend(f"{one['folder']}/{name}" for name in bad)
            there = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
            names = (str(path.relative_to(folder)) for path in there)
            strange += sorted(f"{one['folder']}/{name}" for name in names if name not in files)
    unmeant = "of a snapshot that no revision means, not what was verified"
    found = (
        ("not what was verified", wrong, "run the deploy stage_weights"),
        (unmeant, old, "run the deploy prune_weights"),
        ("no files of the model", strange, f"remove them from {root}"),
    )
    said = [f"{what}: {', '.join(names)}; {mend}" for what, names, mend in found if names]
    if said:
        raise StageError(". ".join(said))


def excess(root: Path, keep: int) -> list[dict[str, Any]]:
    """Snapshots that no revision links to, but for the last of each repository; what runs broke off."""
    kept: dict[str, int] = {}
    gone = []
    for one in sorted(published(root), key=lambda one: one["verified"], reverse=True):
        kept[one["repository"]] = kept.get(one["repository"], 0) + 1
        if kept[one["repository"]] > keep and not one["revisions"]:
            gone.append(root / one["folder"])
    partial = [one for one in root.glob("*/.partial-*/") if not _is_fetched(one)]
    gone += sorted([*partial, *root.glob("*/.old-*/")])
    seen: Counter[tuple[int, int]] = Counter()
    return [{"folder": str(one.relative_to(root)), "bytes": _freed(one, seen)} for one in gone]


def _is_fetched(partial: Path) -> bool:
    """True while some process does: see `alone`."""
    try:
        with partial.with_name(f"{partial.name}.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _freed(folder: Path, seen: Counter[tuple[int, int]]) -> int:
    """Bytes on the disk of what has no name left once this goes, too; `seen` are names that went."""
    freed = 0
    for file in (path.lstat() for path in folder.rglob("*") if path.is_file()):
        seen[file.st_dev, file.st_ino] += 1
        if seen[file.st_dev, file.st_ino] == file.st_nlink:
            freed += file.st_blocks * 512
    return freed


def published(root: Path) -> Iterator[dict[str, Any]]:
    """What is under a root: its repository, commit, size and problem, and when it was verified."""
    for file in sorted(root.glob("*/snapshot-*.json")):
        folder = file.with_suffix("")
        try:
            said, seen = json.loads(file.read_text()), file.stat().st_mtime
            files, links = said["files"], [link for link in folder.parent.iterdir() if link.is_symlink()]
            row = {
                "repository": said["repository"], "commit": said["commit"],
                "folder": str(folder.relative_to(root)),
                "revisions": sorted(link.name for link in links if os.readlink(link) == folder.name),
                "files": len(files), "bytes": sum(file["size"] for file in files.values()), "verified": seen,
                "problem": next(filter(None, map(snapshots.changed(folder), files.items())), None),
            }  # fmt: skip
        except snapshots.TORN:
            continue  # the next staging makes it anew
        yield row
