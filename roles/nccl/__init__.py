"""The fabric that NCCL is to use on a node: its file there, the library for RDMA, direct access to GPUs.

It is a file, /etc/nccl.conf, not the environment of the units: a release must not change because a link
is down, and Ray hands the head's NCCL_ variables to the workers of other nodes, whose HCAs have other
names. The environment wins over the file (choice.py says where that is written), so what the inventory
says for all nodes alike is in the units, too: `everywhere`.
"""

from __future__ import annotations

from io import StringIO

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import files

from .choice import AUTO as AUTO
from .choice import CONF, PACKAGES
from .choice import Asked as Asked
from .choice import Seen as Seen
from .choice import Wanted as Wanted
from .choice import everywhere as everywhere
from .choice import problems as problems
from .choice import wanted as wanted
from .facts import Look as Look
from .operations import peermem, said

MODULES = "/etc/modules-load.d/rackserve-peermem.conf"
PEERMEM = "# Rackserve: network cards reach the GPUs' memory through it, this driver has no DMA-BUF.\n"


def packages(its: Wanted | None) -> tuple[str, ...]:
    """Without them NCCL goes over TCP, and says so in no more than a line of its log."""
    return PACKAGES if its and its.hcas else ()


@deploy("NCCL")
def fabric(its: Wanted) -> None:
    """NCCL finds its fabric, from the next start of a process on."""
    files.put(name="Tell NCCL its fabric", src=StringIO(its.conf), dest=CONF, mode="644")
    said(name="Say what it goes over", its=its)
    for path in host.loop([MODULES] if its.peermem else []):
        files.put(
            name="Load nvidia-peermem at boot", src=StringIO(f"{PEERMEM}nvidia_peermem\n"), dest=path,
            mode="644",
        )  # fmt: skip
        peermem(name="Load nvidia-peermem")
