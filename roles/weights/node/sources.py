"""Runs on a node, beside stage.py: fetches the files of a commit from where they are.

What broke off, by whatever, is `.rackserve/<hash of its name>.incomplete` in the folder; it goes on where
it ended, and is checked as a whole.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, Protocol

import snapshots
from progress import Progress, done
from snapshots import StageError

CONNECTIONS = 8  # as the hub's client has
#: Smaller files are one host's: those that make a model's folder one are among them.
SMALL = 16 * 2**20


@dataclass(frozen=True)
class File:
    """A file of a commit; who lists it knows one of the two checksums."""

    name: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    def digest(self, path: Path) -> str | None:
        """The sha256 of a file that is this one; None when it is not."""
        now = snapshots.about(path)
        if now is None or now.st_size != self.size:
            return None
        if self.git_sha1 and not self.sha256:  # small: it is not in LFS
            content = path.read_bytes()
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return hashlib.sha256(content).hexdigest() if blob == self.git_sha1 else None
        return self.sha256 if snapshots.sha256(path) == self.sha256 else None


class Source(Protocol):
    """Where models come from; what goes wrong there is a StageError that names it."""

    mend: str  # what to do about wrong bytes

    def commit(self, revision: str) -> str:
        """What a revision means now."""

    def files(self, commit: str) -> list[File]:
        """What is in a commit."""

    def read(self, commit: str, file: File, to: Path) -> None:
        """Append to `to` what it lacks of a file."""


def wanted(source: Source, commit: str, ignore: list[str]) -> list[File]:
    files = [file for file in source.files(commit) if not ignored(file.name, ignore)]
    for file in files:
        parts = file.name.split("/")
        if {"", ".", ".."} & set(parts) or parts[0] == snapshots.UNFINISHED:
            raise StageError(f"{source}: {file.name!r} is no name for a file of a model")
    return files


def ignored(name: str, patterns: list[str]) -> bool:
    # As the client does: `original/` is all that is in it.
    return any(fnmatch.fnmatch(name, f"{p}*" if p.endswith("/") else p) for p in patterns)


def shares(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Which files each of so many hosts fetches: the first all small ones; each other who has the least."""
    small = [name for name in sizes if sizes[name] < SMALL]
    dealt, loads = [sorted(small), *([] for _ in range(count - 1))], [0] * count
    loads[0] = sum(sizes[name] for name in small)
    for name in sorted(sizes.keys() - small, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        dealt[least].append(name)
        loads[least] += sizes[name]
    return dealt


def fetch(source: Source, commit: str, partial: Path, files: list[File]) -> dict[str, Any]:
    """Make every file be there, and right; returns them as the manifest has them.

    What is there and right is kept. After an error no other file is begun.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        there = pool.map(lambda file: file.digest(partial / file.name), files)
        digests = {file.name: digest for file, digest in zip(files, there, strict=True) if digest}
    lacking = [file for file in files if file.name not in digests]
    for file in lacking:
        (partial / file.name).unlink(missing_ok=True)
    snapshots.check_space(partial, {f.name: f.size - _size(_rest(partial, f)) for f in lacking})
    with ThreadPoolExecutor(CONNECTIONS) as pool, _shown(partial, files):
        running = [pool.submit(_obtain, source, commit, partial, file) for file in lacking]
        try:
            digests |= {file.name: one.result() for file, one in zip(lacking, running, strict=True)}
        finally:
            pool.shutdown(cancel_futures=True)
    return {file.name: {"size": file.size, "sha256": digests[file.name]} for file in files}


@contextmanager
def _shown(partial: Path, files: list[File]) -> Iterator[None]:
    """Lines of progress meanwhile, and a row of a table at the end."""

    def have() -> int:
        return sum(_size(partial / file.name) or _size(_rest(partial, file)) for file in files)

    def show() -> None:
        progress = Progress()
        while not ended.wait(1):
            progress(have(), total)

    total, first, started, ended = sum(file.size for file in files), have(), time.monotonic(), Event()
    thread = Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    print(done(total - first, time.monotonic() - started, "downloaded"), flush=True)


def _obtain(source: Source, commit: str, partial: Path, file: File) -> str:
    """Fetch a file; returns its sha256."""
    rest, place = _rest(partial, file), partial / file.name
    for folder in (rest.parent, place.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for _ in range(2):  # what was there of it may be wrong
        source.read(commit, file, rest)
        if digest := file.digest(rest):
            rest.replace(place)
            return digest
        rest.unlink()
    raise StageError(f"{file.name} as {source} sends it has another checksum; {source.mend}")


def persist(read: Callable[[], None], to: Path, passing: Callable[[Exception], bool]) -> None:
    """Read again what broke off for a passing reason, while it gets on; three times where it does not."""
    fails, had = 0, _size(to)
    while True:
        try:
            return read()
        except Exception as error:
            fails, had = 1 if _size(to) > had else fails + 1, _size(to)
            if fails > 3 or snapshots.is_full(error) or not passing(error):
                raise
            time.sleep(fails)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _rest(partial: Path, file: File) -> Path:
    return partial / snapshots.UNFINISHED / f"{hashlib.sha1(file.name.encode()).hexdigest()}.incomplete"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):  # or it was just put in its place
        return 0
