"""Runs on a node, as root, beside member.py: shared memory that processes leave when they are killed."""

import glob
import os
import re
import time
from contextlib import suppress

#: What NCCL, vLLM, Python and torch leave there.
LEFT = re.compile(r"nccl-|psm_|sem\.mp-|vllm|torch_")

YOUNG = 5.0  # seconds; what is younger may be of a process that was looked at before it had it


def sweep(user, folder="/dev/shm"):
    """Remove what is of this user id and no process has; returns the names.

    Other replicas may live on this node, and theirs look the same.
    """
    old = time.time() - YOUNG
    with os.scandir(folder) as entries:
        found = {one.path: one.name for one in entries if LEFT.match(one.name) and _left(one, user, old)}
    if not found:
        return []
    gone = sorted(found.keys() - in_use(found))
    for path in gone:
        with suppress(FileNotFoundError):
            os.unlink(path)
    return [found[path] for path in gone]


def _left(entry, user, old):
    try:
        stat = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.st_uid == user and stat.st_mtime < old and entry.is_file(follow_symlinks=False)


def in_use(paths):
    """Those of the paths that a process has mapped or open."""
    processes = glob.glob("/proc/[0-9]*")
    return {path for process in processes for path in (*_mapped(process), *_open(process)) if path in paths}


def _mapped(process):
    try:
        with open(f"{process}/maps", errors="replace") as file:
            return [line[line.index("/") : -1] for line in file if "/" in line]
    except OSError:
        return []  # it ended meanwhile, or is the kernel's


def _open(process):
    for link in glob.glob(f"{process}/fd/*"):
        with suppress(OSError):
            yield os.readlink(link)
