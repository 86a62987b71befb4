"""Runs on a node, as root: how fast the disk under a folder is written and read, past the page cache.

    disk.py '{"folder": "/var/lib/...", "bytes": 1073741824, "leave": 1073741824, "seconds": 5}'

Its file has no name: it is gone when this process is, however that ends.
"""

import fcntl
import json
import mmap
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from answering import answer, attempted

BLOCK = 8 * 2**20
DEPTH = 4  # blocks under way at once: one at a time no flash is fast
LEAST = 64 * 2**20


def measure(asked):
    folder, disk = asked["folder"], os.statvfs(asked["folder"])
    free = disk.f_bavail * disk.f_frsize
    size = min(asked["bytes"], free - asked["leave"]) // BLOCK * BLOCK
    if size < LEAST:
        return {"error": f"{free >> 20} MiB free in {folder}"}
    file = unnamed(folder)
    is_direct = past_the_cache(file)
    wrote = moved(file, os.pwritev, size, asked["seconds"])
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    read = moved(file, os.preadv, wrote[0], asked["seconds"])
    os.close(file)
    return {"folder": folder, "direct": is_direct, "wrote": wrote, "read": read}


def unnamed(folder):
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError:  # not every file system has it
        file, path = tempfile.mkstemp(dir=folder)
        os.unlink(path)
        return file


def past_the_cache(file):
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, os.O_DIRECT)
    except OSError:
        return False
    return True


def blocks():
    """One for each that is under way: aligned, as O_DIRECT wants it, and of what no disk makes smaller."""
    made = [mmap.mmap(-1, BLOCK) for _ in range(DEPTH)]
    for block in made:
        block.write(os.urandom(BLOCK))
    return made


def moved(file, move, size, limit):
    """[bytes, seconds] of blocks moved in their order, until all are or the time is over."""
    own, offsets, done = blocks(), iter(range(0, size, BLOCK)), []
    began = time.monotonic()

    def work(block):
        for offset in offsets:
            done.append(move(file, [block], offset))
            if time.monotonic() > began + limit:
                break

    with ThreadPoolExecutor(DEPTH) as pool:
        list(pool.map(work, own))
    os.fdatasync(file)
    return [sum(done), time.monotonic() - began]


if __name__ == "__main__":
    answer(attempted(measure, json.loads(sys.argv[1])))
