"""How a model is split over the nodes: replicas, TP x PP, hosts in rank order, ports.

Pure: `plan` is a function of the model and of what the inventory says of its nodes.
The rule is the field's usual one: tensor parallelism inside a node, where the links
are fast, and pipeline parallelism across nodes, unless the user says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import PlanError
from .model import Architecture, Model

Executor = Literal["auto", "ray", "mp"]


@dataclass(frozen=True)
class Node:
    """A host of the inventory: its name there, its cluster address and its GPUs."""

    name: str
    address: str
    gpus: int


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


@dataclass(frozen=True)
class Replica:
    """One copy of the model, on nodes in rank order. The first is its Ray head and API host."""

    name: str
    nodes: tuple[Node, ...]
    tensor_parallel: int
    pipeline_parallel: int
    executor: Literal["local", "ray", "mp"]
    ports: Ports

    @property
    def head(self) -> Node:
        return self.nodes[0]

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes)

    @property
    def gpus_per_node(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel // len(self.nodes)

    def node(self, host: str) -> Node:
        return self.nodes[self.rank(host)]

    def rank(self, host: str) -> int:
        """The node rank of a host in this replica; ValueError when it is not in it."""
        return self.hosts.index(host)


@dataclass(frozen=True)
class Plan:
    """What is served and where; the value that every deploy follows."""

    model: Model
    replicas: tuple[Replica, ...]

    def on(self, host: str) -> tuple[Replica, ...]:
        """The replicas that have a part on this host."""
        return tuple(replica for replica in self.replicas if host in replica.hosts)


def plan(
    model: Model,
    nodes: Sequence[Node],
    *,
    replicas: int = 1,
    tensor_parallel: int | None = None,
    pipeline_parallel: int | None = None,
    executor: Executor = "auto",
    port: int = 8000,
) -> Plan:
    """Split `model` over `nodes`; PlanError says why it cannot be, and what could be.

    Nodes without GPUs serve nothing. Each replica takes the same number of nodes, in
    the inventory's order; sizes that are not given use all the GPUs there are.
    """
    sizes = {
        "replicas": replicas, "tensor_parallel": tensor_parallel, "pipeline_parallel": pipeline_parallel,
        "port": port,
    }  # fmt: skip
    for what, value in sizes.items():
        if value is not None and value < 1:
            raise PlanError(f"{what} is {value}: must be at least 1")
    serving = [node for node in nodes if node.gpus > 0]
    if not serving:
        raise PlanError("no node of the inventory has a GPU (set gpus)")
    if replicas > len(serving):
        raise PlanError(f"{replicas} replicas need as many nodes with GPUs; there are {len(serving)}")
    share = len(serving) // replicas
    gpus = _gpus_per_node(serving)
    tp = tensor_parallel or _default_tp(gpus, share, pipeline_parallel)
    pp = pipeline_parallel or max(1, share * gpus // tp)
    check_split(model.name, model.architecture, tp, pp)
    size = _nodes_needed(tp * pp, gpus, share)
    return Plan(
        model,
        tuple(
            _replica(index, serving[index * share :][:size], tp, pp, executor, port)
            for index in range(replicas)
        ),
    )


def check_split(name: str, architecture: Architecture, tp: int, pp: int) -> None:
    """Raise PlanError unless heads, key-value heads and layers divide.

    vLLM refuses TP that does not divide the heads (config/model.py:1546 in 0.32) and
    replicates key-value heads only when TP is a multiple of them (linear.py:1055).
    """
    if tp < 1 or pp < 1:
        raise PlanError(f"{name}: TP {tp} x PP {pp}: both must be at least 1")
    if tp not in valid_tensor_parallel(architecture):
        heads, kv = architecture.num_attention_heads, architecture.num_key_value_heads
        raise PlanError(
            f"{name}: TP {tp} does not divide {heads} attention heads and {kv} key-value heads; "
            f"TP can be {_spoken(valid_tensor_parallel(architecture))} (set tensor_parallel)"
        )
    layers = architecture.num_hidden_layers
    if layers % pp:
        fits = [size for size in range(1, min(layers, 64) + 1) if layers % size == 0]
        raise PlanError(
            f"{name}: PP {pp} does not divide {layers} layers; "
            f"PP can be {_spoken(fits)} (set pipeline_parallel)"
        )


def valid_tensor_parallel(architecture: Architecture) -> list[int]:
    """Every TP that divides the heads, and divides or is a multiple of the key-value heads."""
    heads, kv = architecture.num_attention_heads, architecture.num_key_value_heads
    return [tp for tp in range(1, heads + 1) if heads % tp == 0 and (kv % tp == 0 or tp % kv == 0)]


def _gpus_per_node(nodes: Sequence[Node]) -> int:
    if len({node.gpus for node in nodes}) > 1:
        counts = ", ".join(f"{node.name} {node.gpus}" for node in nodes)
        raise PlanError(f"the nodes have different numbers of GPUs ({counts}): serve them apart")
    return nodes[0].gpus


def _default_tp(gpus: int, share: int, pp: int | None) -> int:
    """All GPUs of a node; fewer when the user's PP has more than one stage in a node."""
    if pp is None or pp <= share:
        return gpus
    return max(1, share * gpus // pp)


def _nodes_needed(world: int, gpus: int, share: int) -> int:
    """The fewest nodes that hold `world` ranks evenly, one GPU each."""
    if world > gpus * share:
        raise PlanError(
            f"TP x PP needs {world} GPUs; the inventory has {gpus * share} for each replica "
            f"({share} nodes of {gpus})"
        )
    for size in range(-(-world // gpus), share + 1):
        if world % size == 0:
            return size
    raise PlanError(f"TP x PP is {world} ranks: they do not spread evenly over nodes of {gpus} GPUs")


def _replica(index: int, nodes: Sequence[Node], tp: int, pp: int, executor: Executor, port: int) -> Replica:
    across: Literal["ray", "mp"] = "ray" if executor == "auto" else executor
    return Replica(
        name=f"replica-{index}",
        nodes=tuple(nodes),
        tensor_parallel=tp,
        pipeline_parallel=pp,
        executor=across if len(nodes) > 1 else "local",
        ports=Ports(base=port),
    )


def _spoken(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
