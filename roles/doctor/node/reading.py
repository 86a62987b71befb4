"""Runs on a node, for look.py: files and programs, of which any may be missing."""

import os
import subprocess
from contextlib import suppress

PATIENCE = 20  # seconds for a program that hangs, as nvidia-smi does on a broken GPU


def start(wanted):
    """All at once; what is not installed is left out."""
    started = {}
    for name, command in wanted.items():
        with suppress(OSError):
            started[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
    return {**dict.fromkeys(wanted), **started}


def finish(process):
    if process is None:
        return None
    try:
        return process.communicate(timeout=PATIENCE)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        process.kill()
        return f"it said nothing for {PATIENCE} s"


def read(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return None


def attempt(look, *words):
    try:
        return look(*words)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def cgroup(pid):
    return (read(f"/proc/{pid}/cgroup") or "").strip().rpartition(":")[2]
