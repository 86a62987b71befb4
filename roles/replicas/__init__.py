"""The replicas on a node, seen from outside: what they leave there, and how they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation

from .facts import Journal, ReplicaFolders, Units

__all__ = ["Journal", "ReplicaFolders", "Units", "only"]


@operation()
def only(keep: Sequence[str] = ()) -> Iterator[StringCommand]:
    """Remove the folders of replicas that are not in `keep`."""
    gone = [
        path
        for path in host.get_fact(ReplicaFolders)
        if path.rsplit("/", 1)[-1].removeprefix("ray-") not in keep
    ]
    if not gone:
        host.noop("no replica to remove")
        return
    yield StringCommand("rm", "-rf", *map(QuoteString, gone))
