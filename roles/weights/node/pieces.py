"""Runs on a node, beside swarm.py: the files of a snapshot, cut into pieces that nodes give each other."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

BLOCK = 1 << 20  # bytes read, hashed or sent in one call


class SwarmError(Exception):
    """One line for a person."""


class File(NamedTuple):
    path: str
    size: int  # bytes
    checksum: str  # the hub's, in hex: sha256, or git's sha1 of a blob

    def digest(self):
        if len(self.checksum) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


class Manifest:
    """The files of a commit, cut into pieces: a piece is part of one file, or some small files."""

    def __init__(self, files: Iterable[tuple[str, int, str]], commit: str) -> None:
        self.files = [File(*file) for file in files]
        for file in self.files:
            if {"", ".", ".."} & set(file.path.split("/")) or "\0" in file.path:
                raise SwarmError(f"{file.path!r} is no path inside a folder")
        self.bytes = sum(file.size for file in self.files)
        self.piece_bytes = min(max(1 << (self.bytes // 4096).bit_length(), 1 << 18), 1 << 24)
        self.pieces: list[list[int]] = []  # numbers of files
        self.spans: list[range] = []  # each file's pieces
        pack, room = [], 0
        for number, file in enumerate(self.files):
            start = len(self.pieces)
            if file.size >= self.piece_bytes:
                self.pieces += [[number] for _ in range(0, file.size, self.piece_bytes)]
                self.spans.append(range(start, len(self.pieces)))
                continue
            if file.size > room:
                self.pieces.append(pack := [])
                room, at = self.piece_bytes, start
            if file.size:
                pack.append(number)
                room -= file.size
            self.spans.append(range(at, at + 1) if file.size else range(0))
        self.hashes: list[bytes] = [b""] * len(self.pieces)  # sha256; empty while unknown
        self.everything = (1 << len(self.pieces)) - 1  # sets of pieces are bits of an int
        self.name = hashlib.sha256(json.dumps([commit, self.files]).encode()).hexdigest()

    def part(self, index: int, number: int) -> tuple[int, int]:
        """Offset and bytes of a piece in a file."""
        offset = (index - self.spans[number].start) * self.piece_bytes
        return offset, min(self.piece_bytes, self.files[number].size - offset)

    def length(self, index: int) -> int:
        return sum(self.part(index, number)[1] for number in self.pieces[index])


def make(
    folder: str | os.PathLike,
    files: Iterable[tuple[str, int, str]],
    commit: str,
    names: Iterable[str] | None = None,
) -> Manifest:
    """Check files against the hub's checksums, and hash their pieces, reading once.

    `names` are those that are here, when another seed has the rest.
    """
    manifest = Manifest(files, commit)
    absent = set() if names is None else {file.path for file in manifest.files} - set(names)
    root = os.open(folder, os.O_RDONLY)

    def check(span: range) -> None:
        digests = {number: manifest.files[number].digest() for number in manifest.pieces[span.start]}
        for index in span:
            piece = hashlib.sha256()
            for number in manifest.pieces[index]:
                for block in blocks(root, manifest.files[number], *manifest.part(index, number)):
                    piece.update(block)
                    digests[number].update(block)
            manifest.hashes[index] = piece.digest()
        for number, digest in digests.items():
            compare(manifest.files[number], digest)

    try:
        for file in manifest.files:
            if file.path not in absent and os.stat(file.path, dir_fd=root).st_size != file.size:
                raise SwarmError(f"{file.path} has another size than the hub's")
        spans = {span for span in manifest.spans if span}
        for span, file in zip(manifest.spans, manifest.files, strict=True):
            if file.path in absent:
                spans.discard(span)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(check, sorted(spans, key=lambda span: span.start)))
    finally:
        os.close(root)
    return manifest


def blocks(root: int, file: File, offset: int, size: int) -> Iterator[memoryview]:
    """The bytes of a part of a file, as a buffer that each step fills again."""
    buffer = memoryview(bytearray(min(size, BLOCK)))
    with opened(root, file) as fd:
        while size:
            got = os.preadv(fd, [buffer[:size]], offset)
            if not got:
                raise SwarmError(f"{file.path} became shorter")
            yield buffer[:got]
            offset, size = offset + got, size - got


def compare(file: File, digest) -> None:
    if digest.hexdigest() != file.checksum:
        raise SwarmError(f"{file.path}: its checksum is not the hub's")


@contextmanager
def opened(root: int, file: File, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(file.path, flags | os.O_NOFOLLOW, dir_fd=root)
    try:
        yield fd
    finally:
        os.close(fd)


def bits(pieces: int, most: int | None = None) -> Iterator[int]:
    """The numbers of the pieces, from the last."""
    while pieces and most != 0:
        index = pieces.bit_length() - 1
        pieces ^= 1 << index
        most = most and most - 1
        yield index
