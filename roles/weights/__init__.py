"""A verified snapshot of the model on the node, at a path that does not change.

The control host resolves a revision to a commit once and records it; every node then
fetches that commit, so that all hold the same bytes even when the revision moves.
"""

from __future__ import annotations

from pathlib import Path

from pyinfra.api import deploy

from roles import programs

from .descriptions import lacking, stood_in, undescribed
from .disks import copies, disks, load_strategy
from .facts import PROGRAMS, Snapshots
from .operations import (
    downloaded,
    pruned,
    required,
    resolved,
    roomy,
    shared,
    staged,
    usable,
    verified,
)
from .payloads import Payload, differing, dropped, packed, unpacked
from .where import ROOT, Description, Source, expected, path, recorded, root

__all__ = [
    "ROOT", "Description", "Payload", "Snapshots", "Source", "copies", "differing", "disks", "downloaded",
    "dropped", "expected", "lacking", "load_strategy", "packed", "path", "pruned", "recorded", "required",
    "resolved", "roomy", "root", "shared", "staged", "stood_in", "tool", "undescribed", "unpacked", "usable",
    "verified",
]  # fmt: skip

NODE = Path(__file__).with_name("node")


@deploy("Weights")
def tool() -> None:
    """The programs that run on the node."""
    programs.installed(name="Install what stages weights", source=NODE, folder=PROGRAMS)
