"""A verified snapshot of the model on the node, at a path that does not change.

The control host resolves a revision to a commit once and records it; every node then
fetches that commit, so that all hold the same bytes even when the revision moves.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import files

from .disks import copies, disks, load_strategy
from .facts import INSTALLED, Snapshots
from .operations import downloaded, pruned, required, resolved, roomy, shared, staged, usable, verified
from .payloads import Payload, differing, dropped, packed, unpacked
from .where import ROOT, Source, expected, path, recorded

__all__ = [
    "ROOT", "Payload", "Snapshots", "Source", "copies", "differing", "disks", "downloaded", "dropped",
    "expected", "load_strategy", "packed", "path", "pruned", "recorded", "required", "resolved", "roomy",
    "shared", "staged", "tool", "unpacked", "usable", "verified",
]  # fmt: skip

#: What runs on a node: stage.py, and what it imports.
SCRIPTS = ("pieces.py", "store.py", "dealing.py", "wire.py", "giving.py", "swarm.py", "progress.py",
           "snapshots.py", "sources.py", "hub.py", "spread.py", "stage.py", "tree.py")  # fmt: skip


@deploy("Weights")
def tool() -> None:
    """The scripts that run on the node."""
    for script in host.loop(SCRIPTS):
        files.put(
            name=f"Install {script}",
            src=str(Path(__file__).with_name(script)),
            dest=str(PurePosixPath(INSTALLED).with_name(script)),
            mode="644",
        )
