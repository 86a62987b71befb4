"""What follows from the disks that hold the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyinfra import state

from .facts import Disk, DiskOf

#: Network file systems on which vLLM reads ahead by itself, and the part of the memory that it
#: wants all files to fit (safetensors_weights_iterator, model_executor/model_loader/weight_utils.py).
PREFETCHED = {"nfs", "nfs4", "lustre"}
FITS = 0.9


def disks(names: Sequence[str], path: str) -> dict[str, Disk]:
    """What a path is on, on each of those hosts."""
    return {name: state.inventory.get_host(name).get_fact(DiskOf, path=path) for name in names}


def copies(on: Mapping[str, Disk]) -> dict[str, str]:
    """{host: whose copy it uses}: its own, or that of the first of those that share a file system."""
    first: dict[str, str] = {}
    return {
        name: first.setdefault(disk.place if disk.is_shared else f"{name}'s", name)
        for name, disk in on.items()
    }


def load_strategy(on: Mapping[str, Disk], size: int) -> dict[str, str]:
    """The argument of vLLM that fits what the ranks of a replica read `size` bytes from.

    A mapped file is read where a rank wants a tensor: right for flash, slow where each jump is a
    journey. There files are read whole into the page cache first, if they fit.
    """
    far = any(disk.rotates or disk.is_shared and disk.kind not in PREFETCHED for disk in on.values())
    fits = all(size <= FITS * disk.memory for disk in on.values())
    return {"safetensors-load-strategy": "prefetch"} if far and fits else {}
