"""Runs on a node, beside swarm.py: the folder in which a snapshot's pieces come together.

What is on the disk is the whole state: a run resumes from it, and trusts nothing that it finds.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from functools import partial

from pieces import Manifest, bits, blocks, compare, opened


class Store:
    """What of a manifest's pieces a folder has, and which files are proven by their checksums.

    What can change is under the lock of `changed`, which is told when the last file is proven.
    """

    def __init__(self, folder: str | os.PathLike, manifest: Manifest, changed: threading.Condition) -> None:
        self.folder, self.manifest, self.changed = folder, manifest, changed
        self.root = os.open(folder, os.O_RDONLY)  # by which files are found, however the folder is named
        self.stopping = False
        self.jobs: queue.LifoQueue = queue.LifoQueue()  # so a file is proven before more is read
        known = [index for index, digest in enumerate(manifest.hashes) if digest]
        self.have = sum(1 << index for index in known)
        self.have_bytes = sum(map(manifest.length, known))
        self.unread = 0  # pieces that may be on the disk from an earlier run
        self.digests = {number: file.digest() for number, file in enumerate(manifest.files)}
        self.next = [span.start for span in manifest.spans]  # the piece that each digest waits for
        self.busy: set[int] = set()  # files in `jobs`

    @property
    def complete(self) -> bool:
        return self.have == self.manifest.everything and not self.digests

    @property
    def lacks(self) -> int:
        return self.manifest.everything & ~self.have & ~self.unread

    def prepare(self) -> None:
        """Make every file that is not known to be right, of holes where it has no data."""
        holes = 0
        for number, file in enumerate(self.manifest.files):
            span = self.manifest.spans[number]
            if span and all(self.manifest.hashes[index] for index in span):
                del self.digests[number]
                continue
            os.makedirs(os.path.join(self.folder, os.path.dirname(file.path)), exist_ok=True)
            fd = os.open(file.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644, dir_fd=self.root)
            try:
                if os.fstat(fd).st_size != file.size:
                    os.truncate(fd, file.size)
                for index in span:
                    offset, size = self.manifest.part(index, number)
                    holes |= (not filled(fd, offset, offset + size)) << index
            finally:
                os.close(fd)
            if not span:
                compare(file, self.digests.pop(number))
        self.unread = self.manifest.everything & ~self.have & ~holes

    def write(self, index: int, piece: memoryview) -> None:
        at = 0
        for number in self.manifest.pieces[index]:
            offset, size = self.manifest.part(index, number)
            with opened(self.root, self.manifest.files[number], os.O_WRONLY) as fd:
                if os.fstat(fd).st_nlink > 1:  # another snapshot's, too, and right: see spread.join
                    at += size
                    continue
                while size:
                    done = os.pwrite(fd, piece[at : at + size], offset)
                    at, offset, size = at + done, offset + done, size - done

    def gained(self, index: int) -> None:
        """Under the lock: a piece is on the disk."""
        self.have |= 1 << index
        self.have_bytes += self.manifest.length(index)
        for number in self.manifest.pieces[index]:
            if self.next[number] == index and number not in self.busy:
                self.busy.add(number)
                self.jobs.put(partial(self.prove, number))

    # A thread for each processor: proves files, and what is on the disk

    def work(self) -> None:
        while (job := self.jobs.get()) and not self.stopping:
            job()

    def stop(self, threads: int) -> None:
        self.stopping = True
        for _ in range(threads):
            self.jobs.put(None)

    def close(self) -> None:
        os.close(self.root)

    def reread_all(self) -> None:
        for index in bits(self.unread):
            self.jobs.put(partial(self.reread, index))

    def reread(self, index: int) -> None:
        digest = hashlib.sha256()
        for number in self.manifest.pieces[index]:
            for block in blocks(self.root, self.manifest.files[number], *self.manifest.part(index, number)):
                digest.update(block)
        with self.changed:
            self.unread &= ~(1 << index)
            if digest.digest() == self.manifest.hashes[index]:
                self.gained(index)

    def prove(self, number: int) -> None:
        """Add to a file's digest what follows without a gap."""
        file, digest = self.manifest.files[number], self.digests[number]
        while not self.stopping:
            with self.changed:
                index = self.next[number]
                if index == self.manifest.spans[number].stop:
                    break
                if not self.have >> index & 1:
                    self.busy.discard(number)
                    return
                self.next[number] += 1
            for block in blocks(self.root, file, *self.manifest.part(index, number)):
                digest.update(block)
        else:
            return
        compare(file, digest)
        with self.changed:
            del self.digests[number]
            if not self.digests:
                self.changed.notify_all()


def filled(fd: int, start: int, end: int) -> bool:
    """True when there is no hole between two offsets."""
    try:
        return os.lseek(fd, start, os.SEEK_DATA) == start and os.lseek(fd, start, os.SEEK_HOLE) >= end
    except OSError:  # nothing but a hole up to the end
        return False
