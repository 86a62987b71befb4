"""Where replicas go: which nodes, and which of their GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .errors import PlanError
from .plan import MOST_RAYS, Node


@dataclass(frozen=True)
class Room:
    """So many nodes of so many GPUs each, for so many replicas that are split alike."""

    nodes: int
    gpus: int
    replicas: int

    def __post_init__(self) -> None:
        if self.replicas > self.nodes * self.gpus:
            raise PlanError(f"{self.replicas} replicas need as many GPUs; there are {self.nodes * self.gpus}")

    @property
    def share(self) -> int:
        """The nodes that a replica may have; those that share a node have one."""
        return max(1, self.nodes // self.replicas)

    @property
    def width(self) -> int:
        """The GPUs that a replica may have of each of its nodes."""
        return self.gpus // -(-self.replicas // self.nodes)

    def size(self, world: int) -> int | None:
        """The fewest nodes that hold `world` ranks evenly, one GPU each, so that all replicas have room."""
        if world * self.replicas > self.nodes * self.gpus:
            return None
        sizes = range(-(-world // self.gpus), self.nodes + 1)
        return next((size for size in sizes if world % size == 0 and self._holds(size, world)), None)

    def needed(self, world: int) -> int:
        """`size`; PlanError says why there is none."""
        size = self.size(world)
        if size is not None:
            return size
        if world > self.width * self.share:
            where = f"{self.share} nodes of {self.gpus}" if self.replicas <= self.nodes else (
                f"{self.replicas} replicas on {self.nodes} nodes of {self.gpus}"
            )  # fmt: skip
            raise PlanError(
                f"TP x PP needs {world} GPUs; the inventory has {self.width * self.share} for each replica "
                f"({where})"
            )
        raise PlanError(f"TP x PP is {world} ranks: they do not spread evenly over nodes of {self.gpus} GPUs")

    def _holds(self, size: int, world: int) -> bool:
        slots = self.gpus // (world // size)
        return self.nodes // size * (slots if size == 1 else min(slots, MOST_RAYS)) >= self.replicas


def placed(nodes: Sequence[Node], count: int, size: int) -> Iterator[tuple[tuple[Node, ...], int]]:
    """Each replica's nodes, in the inventory's order, and its slot on them.

    Replicas share nodes only when there are no others left: a node that falls takes few along.
    """
    domains = min(count, len(nodes) // size)
    apart = len(nodes) // domains
    groups = [tuple(nodes[first * apart :][:size]) for first in range(domains)]
    for index in range(count):
        yield groups[index % domains], index // domains
