"""Runs on a node, for look.py: disks, memory, processes, units, what is installed."""

import ctypes
import glob
import hashlib
import os
import re
import time

from reading import cgroup, read

FOLDERS = ("/", "/dev/shm", "/opt/rackserve", "/var/lib/rackserve", "/var/cache/rackserve", "/tmp")


def folders(asked):
    """{folder: what the disk under it has}; of one that is not there, its nearest parent's."""
    rows = {}
    for path in filter(None, (*FOLDERS, asked.get("weights"))):
        there = os.path.realpath(path)
        while not os.path.exists(there):
            there = os.path.dirname(there)
        disk = os.statvfs(there)
        rows[path] = {
            "there": there, "size": disk.f_blocks * disk.f_frsize, "free": disk.f_bavail * disk.f_frsize,
            "inodes": disk.f_files, "inodes_free": disk.f_favail,
        }  # fmt: skip
    return rows


def shared_memory(_):
    """What NCCL, vLLM and Python leave in /dev/shm, and whether any process still has it."""
    pattern = re.compile(r"(nccl-|psm_|sem\.mp-|vllm|torch_)")
    found = [entry for entry in os.scandir("/dev/shm") if pattern.match(entry.name)]
    if not found:
        return []
    used = "".join(filter(None, map(read, glob.glob("/proc/[0-9]*/maps"))))
    now = time.time()
    return [
        {"name": entry.name, "bytes": entry.stat().st_size, "age": now - entry.stat().st_mtime,
         "used": f"/dev/shm/{entry.name}\n" in used}
        for entry in found
    ]  # fmt: skip


def processes(_):
    """vLLM's and Ray's processes. Of their arguments only names are looked at: some hold keys."""
    rows = []
    for folder in glob.glob("/proc/[0-9]*"):
        name = (read(f"{folder}/comm") or "").strip()
        runs = program((read(f"{folder}/cmdline") or "").split("\0"))
        if name in ("raylet", "gcs_server") or name.startswith("VLLM::") or runs in ("vllm", "ray"):
            pid = os.path.basename(folder)
            rows.append([int(pid), name, cgroup(pid)])
    return sorted(rows)


def program(words):
    """What runs: the first word of a command, or the script or the package that a Python there runs."""
    name, words = os.path.basename(words[0]), iter(words[1:])
    if not re.match(r"python[\d.]*$", name):
        return name
    for word in words:
        if word in ("-X", "-W"):
            next(words, "")
        elif word == "-m":
            return next(words, "").split(".")[0]
        elif word == "-c" or not word.startswith("-"):
            return os.path.basename(word)
    return ""


def packages(asked):
    """What is installed in vLLM's environment: NAME-VERSION, sorted."""
    if not asked.get("environment"):
        return None
    folder = f"{asked['environment']}/lib/python3*/site-packages"
    there = (os.path.basename(path) for path in glob.glob(f"{folder}/*.dist-info"))
    return sorted(name[: -len(".dist-info")] for name in there)


def weights(asked):
    """The files of the model's folder by name and size, as one fingerprint."""
    if not asked.get("weights"):
        return None
    folder, files, total = os.path.realpath(asked["weights"]), [], 0
    for parent, _, inside in os.walk(folder):
        for name in inside:
            path = os.path.join(parent, name)
            size = os.path.getsize(path)
            total += size
            files.append(f"{os.path.relpath(path, folder)} {size}")
    digest = hashlib.sha256("\n".join(sorted(files)).encode()).hexdigest()
    broken = [row.split(" ")[0] for row in files if ".incomplete" in row]
    return {"folder": folder, "files": len(files), "bytes": total, "digest": digest, "broken": broken}


def with_limits(shown):
    """Our units' properties; of the environment the network's part, for the rest may hold keys."""
    rows = []
    for block in filter(None, shown.strip().split("\n\n")):
        row = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        words = re.findall(r'"?((?:VLLM_HOST_IP|NCCL_|GLOO_)[^\s"]*)', row.pop("Environment", ""))
        row["network"] = dict(word.split("=", 1) for word in words if "=" in word)
        if row.get("MainPID", "0") != "0":
            row["limits"] = read(f"/proc/{row['MainPID']}/limits")
        rows.append(row)
    return rows


def clock(_):
    """Whether the kernel's clock is synchronized (adjtimex(2)); None when it may not be asked."""
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    return None if state < 0 else state != 5
