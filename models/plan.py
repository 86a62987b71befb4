"""What a plan is: replicas, TP x PP, hosts in rank order, ports; and what a user says of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .errors import PlanError
from .fit import Fit, Targets
from .hardware import Gpu
from .model import Model
from .release import TRIAL
from .weights import Split

Executor = Literal["auto", "ray", "mp"]
Optimize = Literal["latency", "throughput"]


@dataclass(frozen=True)
class Node:
    """A host of the inventory: its name there, its cluster address and its GPUs.

    `gpu` is a name of models/hardware.py; without it no memory is planned.
    """

    name: str
    address: str
    gpus: int
    gpu: str | None = None


#: For all ports but the API's.
TAKEN = range(20000, 32768)

#: Replicas with a Ray of their own that have room on a node: more would run into `Ports.master`.
MOST_RAYS = 9


@dataclass(frozen=True)
class Ports:
    """The ports of one replica, the same on each of its nodes.

    `slot` counts the replicas that share a node, so that theirs never collide. All
    but `api` lie below Linux's ephemeral range (32768 and up), where nothing else
    takes them by chance.
    """

    base: int
    slot: int = 0

    @property
    def api(self) -> int:
        return self.base + self.slot

    @property
    def master(self) -> int:
        """vLLM's own multi-node executor: torch's TCPStore (--master-port)."""
        return 29501 + self.slot

    @property
    def ray(self) -> int:
        """The first of the 1000 ports of this replica's Ray; the first is its GCS."""
        return 20000 + 1000 * self.slot

    @property
    def health(self) -> int:
        """Who asks whether the replica generates."""
        return 30000 + self.slot

    @property
    def gang(self) -> int:
        """On its first node: where its nodes tell each other how they are."""
        return 30100 + self.slot


@dataclass(frozen=True)
class Replica:
    """One copy of the model, on nodes in rank order. The first is its Ray head and API host.

    `arguments` are vLLM's flags for this split and its memory, long names without dashes;
    `fit` says what the memory goes to, where the GPU is known.
    """

    name: str
    nodes: tuple[Node, ...]
    split: Split
    executor: Literal["local", "ray", "mp"]
    ports: Ports
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    gpu: Gpu | None = None
    fit: Fit | None = None

    @property
    def tensor_parallel(self) -> int:
        return self.split.tensor

    @property
    def pipeline_parallel(self) -> int:
        return self.split.pipeline

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens in the KV caches of the replica; each DP rank has one of its own."""
        return self.fit.capacity.tokens * self.split.data if self.fit else 0

    @property
    def max_concurrency(self) -> float:
        """Requests of the longest kind that are in those caches at once."""
        return self.fit.capacity.concurrency * self.split.data if self.fit else 0.0

    @property
    def head(self) -> Node:
        return self.nodes[0]

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes)

    @property
    def gpus_per_node(self) -> int:
        return self.split.gpus // len(self.nodes)

    @property
    def devices(self) -> range:
        """Its GPUs on each of its nodes; the others are for replicas in other slots."""
        first = self.ports.slot * self.gpus_per_node
        return range(first, first + self.gpus_per_node)

    @property
    def trial(self) -> Replica:
        """It with weights of chance (vLLM's `--load-format dummy`), under a name of its own."""
        return replace(self, name=f"{TRIAL}{self.name}", arguments={**self.arguments, "load-format": "dummy"})

    def node(self, host: str) -> Node:
        return self.nodes[self.rank(host)]

    def rank(self, host: str) -> int:
        """The node rank of a host in this replica; ValueError when it is not in it."""
        return self.hosts.index(host)

    def stage_gpus(self, stage: int) -> dict[str, list[int]]:
        """{host: its GPUs} of one pipeline stage: ranks go TP first, node after node."""
        width, held = self.split.gpus // self.split.pipeline, self.gpus_per_node
        gpus: dict[str, list[int]] = {}
        for rank in range(stage * width, (stage + 1) * width):
            gpus.setdefault(self.nodes[rank // held].name, []).append(self.devices[rank % held])
        return gpus

    def stage_hosts(self, stage: int) -> tuple[str, ...]:
        """The hosts of one pipeline stage, in order."""
        return tuple(self.stage_gpus(stage))


@dataclass(frozen=True)
class Plan:
    """What is served and where; the value that every deploy follows."""

    model: Model
    replicas: Sequence[Replica]

    @property
    def hosts(self) -> tuple[str, ...]:
        """All that serve, in the inventory's order."""
        return tuple(dict.fromkeys(host for replica in self.replicas for host in replica.hosts))

    def on(self, host: str) -> tuple[Replica, ...]:
        """The replicas that have a part on this host."""
        return tuple(replica for replica in self.replicas if host in replica.hosts)


#: Beyond these a number is a mistake.
MOST = {"port": 65535, "concurrency": 1_000_000}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user says of a plan; what is None is left to the planner."""

    replicas: int | None = 1
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    executor: Executor = "auto"
    port: int = 8000
    first: int = 0  # the number of its first replica
    targets: Targets = Targets()
    optimize: Optimize | None = None

    def __post_init__(self) -> None:
        sizes = {
            "replicas": self.replicas, "tensor_parallel": self.tensor_parallel,
            "pipeline_parallel": self.pipeline_parallel, "port": self.port,
            "context": self.targets.context, "concurrency": self.targets.concurrency,
        }  # fmt: skip
        for what, value in sizes.items():
            if value is not None and value < 1:
                raise PlanError(f"{what} is {value}: must be at least 1")
            if value is not None and value > MOST.get(what, value):
                raise PlanError(f"{what} is {value}: must be at most {MOST[what]}")
