"""Folders of model files seen as Hugging Face repositories.

On disk::

    ROOT/<org>/<name>/               files of the revision "main"
    ROOT/<org>/<name>/.revisions/R/  files of another revision, R (optional)
    ROOT/<org>/<name>/.gated         the repository is gated (optional)

Names that start with a dot are never served. A commit is derived from its files'
names and SHA-256 digests, so it changes exactly when the content does.
"""

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# What the real Hub keeps in LFS: its digest is a SHA-256 and its git blob is a pointer.
LFS_SUFFIXES = (".safetensors", ".gguf", ".bin")
MAIN = "main"

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Digest:
    """Hex digests of one file: its SHA-256, and the SHA-1 of it as a git blob."""

    sha256: str
    git_sha1: str


@dataclass(frozen=True)
class StoredFile:
    """One file of a revision; `size` is in bytes."""

    path: str
    source: Path
    size: int
    digest: Digest

    @property
    def is_lfs(self) -> bool:
        return self.path.endswith(LFS_SUFFIXES)

    @property
    def pointer(self) -> bytes:
        """What git holds in place of an LFS file."""
        lines = (
            "version https://git-lfs.github.com/spec/v1",
            f"oid sha256:{self.digest.sha256}",
            f"size {self.size}",
        )
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def blob_id(self) -> str:
        return _git_sha1(self.pointer) if self.is_lfs else self.digest.git_sha1

    @property
    def etag(self) -> str:
        return self.digest.sha256 if self.is_lfs else self.digest.git_sha1


@dataclass(frozen=True)
class Revision:
    """The files of one commit, by path."""

    files: dict[str, StoredFile]

    @cached_property
    def commit(self) -> str:
        lines = (f"{path} {file.digest.sha256}\n" for path, file in sorted(self.files.items()))
        return hashlib.sha1("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Repository:
    """A repository as its folder stands now; revisions by branch name."""

    id: str
    gated: bool
    revisions: dict[str, Revision]

    def revision(self, name: str) -> Revision | None:
        """Return the revision that a branch name or a full commit stands for."""
        commits = {revision.commit: revision for revision in self.revisions.values()}
        return self.revisions.get(name) or commits.get(name)


@dataclass
class Store:
    """The repositories under a folder, re-read at each question; files are hashed once."""

    root: Path
    _digests: dict[tuple[Path, int, int], Digest] = field(default_factory=dict)
    _commits: dict[tuple[str, str], Revision] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ids(self) -> list[str]:
        folders = (folder.relative_to(self.root).as_posix() for folder in self.root.glob("*/*/"))
        return sorted(name for name in folders if _is_repository_id(name))

    def repository(self, repository_id: str) -> Repository | None:
        """Read one repository, hashing what is new or changed in it."""
        folder = self.root / repository_id
        if not _is_repository_id(repository_id) or not folder.is_dir():
            return None
        with self._lock:
            revisions = {name: self._read(tree) for name, tree in _trees(folder)}
        self._commits |= {(repository_id, revision.commit): revision for revision in revisions.values()}
        return Repository(repository_id, (folder / ".gated").exists(), revisions)

    def with_file(self, repository_id: str, commit: str, path: str) -> Repository | None:
        """A commit that was read before, while this file of it is as it was: one of thousands, quickly."""
        revision = self._commits.get((repository_id, commit))
        file = revision.files.get(path) if revision else None
        if revision is None or file is None or not file.source.exists():
            return None
        stat = file.source.stat()
        if self._digests.get((file.source, stat.st_size, stat.st_mtime_ns)) != file.digest:
            return None
        gated = (self.root / repository_id / ".gated").exists()
        return Repository(repository_id, gated, {commit: revision})

    def _read(self, tree: Path) -> Revision:
        return Revision({path: self._stored(path, tree / path) for path in _paths(tree)})

    def _stored(self, path: str, source: Path) -> StoredFile:
        stat = source.stat()
        key = (source, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = _digest(source, stat.st_size)
        return StoredFile(path, source, stat.st_size, self._digests[key])


def _is_repository_id(text: str) -> bool:
    parts = text.split("/")
    return len(parts) == 2 and all(_NAME.fullmatch(part) for part in parts)


def _trees(folder: Path) -> Iterator[tuple[str, Path]]:
    yield MAIN, folder
    for tree in sorted(folder.glob(".revisions/*/")):
        yield tree.name, tree


def _paths(tree: Path) -> list[str]:
    files = (path.relative_to(tree) for path in tree.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in files if not any(part.startswith(".") for part in path.parts))


def _digest(source: Path, size: int) -> Digest:
    sha256, git_sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with source.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            sha256.update(chunk)
            git_sha1.update(chunk)
    return Digest(sha256.hexdigest(), git_sha1.hexdigest())


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
