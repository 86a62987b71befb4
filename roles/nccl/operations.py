"""Operations for a node's fabric, besides its file."""

from __future__ import annotations

from collections.abc import Iterator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from .choice import Wanted
from .facts import Loaded


@operation()
def said(its: Wanted) -> Iterator[StringCommand]:
    """Nothing; where a node has HCAs and none will do, that NCCL goes over TCP."""
    if its.unused:
        host.log(
            "it has HCAs, and none is up with an address: NCCL goes over TCP; rackserve doctor says more"
        )
    host.noop("said")
    return
    yield


@operation()
def peermem() -> Iterator[StringCommand]:
    """nvidia_peermem is loaded."""
    if host.get_fact(Loaded):
        host.noop("nvidia_peermem is loaded")
        return
    yield StringCommand("modprobe", "nvidia_peermem")
