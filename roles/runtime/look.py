"""Runs on a node, as root, on its own Python (3.9 and newer): which environments are there, as JSON.

Of each folder its path, its bytes, and what it is in use by: a file of /etc that names it, be it a release
that is kept or a unit, or a process that runs from it; "" for one that nothing uses.
"""

import glob
import json
import os
import re
import sys

OURS = "/opt/rackserve"
NAMING = ("/etc/rackserve", "/etc/systemd/system")
FOLDER = rf"{OURS}/runtime/([\w.-]+)"


def main(root=""):
    users = {**named(root), **running(root)}
    # Scratch is what a broken-off install unpacked to.
    paths = glob.glob(f"{root}{OURS}/runtime/*/") + glob.glob(f"{root}{OURS}/tmp*/")
    folders = sorted(path.rstrip("/") for path in paths)
    print(json.dumps([seen(root, path, users) for path in folders]))


def seen(root, path, users):
    used = users.get(os.path.basename(path), "") if "/runtime/" in path else ""
    return {"path": path[len(root) :], "used": used, "bytes": 0 if used else size(path)}


def named(root):
    """{environment: a file of /etc that names it}"""
    return {
        name: path[len(root) :]
        for top in NAMING
        for folder, _, files in os.walk(root + top)
        for path in (os.path.join(folder, file) for file in files)
        for name in found(path)
    }


def running(root):
    """{environment: a process that was started from it, or has a library of it loaded}"""
    pids = [name for name in os.listdir(f"{root}/proc") if name.isdigit()]
    files = [(pid, file) for pid in pids for file in ("cmdline", "maps")]
    return {name: f"process {pid}" for pid, file in files for name in found(f"{root}/proc/{pid}/{file}")}


def found(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return set(re.findall(FOLDER, file.read()))
    except OSError:  # a process that has ended, a link to nothing
        return set()


def size(top):
    """Bytes on the disk, as du counts them."""
    paths = (os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names)
    return sum(os.lstat(path).st_blocks * 512 for path in paths)


if __name__ == "__main__":
    main(*sys.argv[1:])
