"""Running commands on the lab's own machine, and finding the processes it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path


class LabError(Exception):
    """The lab cannot do what was asked; the message says why and what to do."""


def run(*argv: str | Path, stdin: str | None = None) -> str:
    """Run a command and return its stdout; a failure raises LabError with its stderr."""
    words = [str(word) for word in argv]
    done = subprocess.run(words, input=stdin, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise LabError(f"`{' '.join(words)}` failed ({done.returncode}): {' '.join(reason)}")
    return done.stdout


def succeeds(*argv: str | Path) -> bool:
    """True when the command exits 0."""
    return subprocess.run([str(word) for word in argv], capture_output=True).returncode == 0


def processes(*needles: str | Path) -> Iterator[int]:
    """Process ids whose command line has every needle as a word of its own.

    A lab that crashed left no trustworthy pid file; its processes still carry its paths.
    """
    wanted = {str(needle) for needle in needles}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and wanted <= set(_words(entry)):
            yield int(entry.name)


def _words(entry: Path) -> list[str]:
    try:
        return (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def inside(upper: Path) -> Iterator[int]:
    """Process ids that live in a container whose root is an overlay with this upper layer.

    A container outlives a killed systemd-nspawn, and then only its root tells whose it is.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and f"upperdir={upper}," in _root_mount(entry):
            yield int(entry.name)


def _root_mount(entry: Path) -> str:
    try:
        mounts = (entry / "mountinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((mount for mount in mounts if mount.split()[4] == "/"), "")


def kill(find: Callable[[], Iterator[int]], what: str) -> None:
    """End every process that `find` finds, at once, and wait until none is left."""

    def ended() -> bool:
        found = list(find())
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found

    wait_until(ended, 10, f"the processes of {what} to end")


def wait_until(ready: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until `ready()`; after `seconds` raise LabError naming what was waited for."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.05)
