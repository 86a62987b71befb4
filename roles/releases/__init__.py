"""What a replica runs, as one value: put by on its nodes, put in place, taken back.

A release holds every file that a replica has on a node. Old ones are kept, so that a node goes back to
one without asking anybody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyinfra.api import deploy
from pyinfra.operations import files

from roles.files import File

from .facts import INSTALLED, KEPT, History, Kept
from .history import Entry, begun, ended, judged
from .operations import kept, proven, put, unchanged, untried

__all__ = [
    "Entry", "History", "Kept", "begun", "ended", "identified", "judged", "kept", "no_tool",
    "proven", "put", "tool", "unchanged", "untried",
]  # fmt: skip


@deploy("Releases")
def tool() -> None:
    """The program that runs on the node."""
    script = Path(__file__).with_name("release.py")
    files.put(name="Install release.py", src=str(script), dest=INSTALLED, mode="644")


@deploy("Releases")
def no_tool() -> None:
    """The node without it, and without what is put by."""
    files.file(name="Remove release.py", path=INSTALLED, present=False)
    files.directory(name="Remove what is put by", path=KEPT, present=False)


def identified(on: Mapping[str, Sequence[File]]) -> str:
    """The id of a release with these files on each host: the same files are the same release."""
    rows = [
        [host, file.path, file.owner, file.mode, file.content] for host, its in on.items() for file in its
    ]
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()[:12]
