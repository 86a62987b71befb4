"""How a model is split over the nodes: replicas, TP x PP, hosts in rank order, ports.

Pure: `plan` is a function of the model and of what the inventory says of its nodes. The
rule is the field's usual one: tensor parallelism inside a node, where the links are fast,
and pipeline parallelism across nodes, unless the user or a target says otherwise. Where
the nodes' GPU is known, a plan that would not start is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from . import fit as fitting
from . import hardware, limits, memory, performance
from .errors import DoesNotFit, PlanError
from .fit import Fit, Targets
from .hardware import Gpu
from .model import Model
from .performance import Estimate
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
            gpus.setdefault(self.hosts[rank // held], []).append(rank % held)
        return gpus

    def stage_hosts(self, stage: int) -> tuple[str, ...]:
        """The hosts of one pipeline stage, in order."""
        return tuple(self.stage_gpus(stage))


@dataclass(frozen=True)
class Plan:
    """What is served and where; the value that every deploy follows."""

    model: Model
    replicas: tuple[Replica, ...]

    def on(self, host: str) -> tuple[Replica, ...]:
        """The replicas that have a part on this host."""
        return tuple(replica for replica in self.replicas if host in replica.hosts)


#: Beyond these a number is a mistake.
MOST = {"port": 65535, "concurrency": 1_000_000}

#: What a split says, and vLLM's arguments must not.
SIZES = {"tensor-parallel-size": "tensor_parallel", "pipeline-parallel-size": "pipeline_parallel"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user says of a plan; what is None is left to the planner."""

    replicas: int | None = 1
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    executor: Executor = "auto"
    port: int = 8000
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


def plan(model: Model, nodes: Sequence[Node], **said: Any) -> Plan:
    """The plan for `model` on `nodes`; `said` are `Request`'s fields.

    Raises PlanError for what cannot be, and DoesNotFit, with what is missing, for what
    would not start. Nodes without GPUs serve nothing. Each replica takes the same number
    of nodes, in the inventory's order; sizes that are not given use all the GPUs there are.
    """
    return planned(model, nodes, Request(**said))


def planned(model: Model, nodes: Sequence[Node], request: Request) -> Plan:
    """`plan` for a request that is one already."""
    return choose(options(model, nodes, request), request)


def choose(found: Sequence[Plan], request: Request) -> Plan:
    """The best of the options for what the request optimizes; DoesNotFit when none fits."""
    fits = [option for option in found if _missing(option) == 0]
    if not fits:
        usual = [option for option in found if _apart(option) == _apart(found[0])]
        nearest = min(usual, key=_missing)
        raise DoesNotFit(nearest.model.name, _missing(nearest), nearest)
    if request.optimize is None:
        return fits[0]
    # What DCP and DP cost in traffic is not estimated: they are for who asks for them.
    usual = [option for option in fits if _apart(option) == _apart(found[0])]
    return min(usual or fits, key=lambda option: _cost(option, request))


def options(model: Model, nodes: Sequence[Node], request: Request) -> list[Plan]:
    """Every plan that the request leaves open, the usual one first; PlanError when there is none."""
    for flag, setting in SIZES.items():
        if flag in model.arguments:
            raise PlanError(f"{flag} is the plan's: leave it out of vLLM's arguments and set {setting}")
    serving = [node for node in nodes if node.gpus > 0]
    if not serving:
        raise PlanError("no node of the inventory has a GPU (set gpus)")
    # Of the counts that give each replica as many nodes, the largest.
    shares = {len(serving) // count for count in range(1, len(serving) + 1)}
    counts = [request.replicas] if request.replicas else sorted(len(serving) // share for share in shares)
    found: list[Plan] = []
    refusal: PlanError | None = None
    for count in counts:
        try:
            found += _options(model, serving, count, request)
        except PlanError as error:
            refusal = refusal or error
    if not found:
        raise refusal or PlanError(f"{model.name}: no split is possible")
    return found


def estimate(replica: Replica, model: Model, concurrency: int) -> Estimate | None:
    """How fast a replica is, to a first order; None where its GPU is not known."""
    if replica.gpu is None or replica.fit is None:
        return None
    split = replica.split
    tensor_nodes = len(replica.stage_hosts(0))
    placed = performance.Placed(
        replica.gpu, split, tensor_nodes, bool(replica.arguments.get("enforce-eager", False))
    )
    work = performance.work(model.architecture, replica.fit.cache.number)
    return performance.estimate(work, placed, concurrency)


def _options(model: Model, serving: Sequence[Node], count: int, request: Request) -> Iterator[Plan]:
    if count > len(serving):
        raise PlanError(f"{count} replicas need as many nodes with GPUs; there are {len(serving)}")
    share = len(serving) // count
    gpus, gpu = _alike(serving)
    for split in _splits(model, gpus, share, request):
        if limits.problem(model.architecture, split) is None:
            yield _plan(model, serving, count, split, gpu, request)


def _plan(
    model: Model, serving: Sequence[Node], count: int, split: Split, gpu: Gpu | None, request: Request
) -> Plan:
    share = len(serving) // count
    size = _nodes_needed(split.gpus, serving[0].gpus, share)
    flags = {**fitting.arguments_of(split), **model.flags}
    found = None
    if gpu is not None:
        wanted = _wanted(model, request.targets)
        how = memory.serving(model.architecture, flags, model.environment, gpu)
        how = replace(how, sequences=max(how.sequences, wanted.concurrency))
        how = _batched(model, how, wanted.concurrency)
        found = fitting.fit(model.architecture, split, gpu, how, wanted)
        flags |= {
            "max-model-len": found.max_model_len,
            "gpu-memory-utilization": how.utilization,
            "max-num-seqs": how.sequences,
            "max-num-batched-tokens": how.batched,
        }
        if gpu.vendor == "cpu":
            del flags["gpu-memory-utilization"]
    return Plan(
        model,
        tuple(
            Replica(
                name=f"replica-{index}",
                nodes=tuple(serving[index * share :][:size]),
                split=split,
                executor=_executor(request.executor, size),
                ports=Ports(base=request.port),
                arguments=MappingProxyType(flags),
                gpu=gpu,
                fit=found,
            )
            for index in range(count)
        ),
    )


def _batched(model: Model, how: memory.Serving, concurrency: int) -> memory.Serving:
    """A step has room for a token of each request, or vLLM does not start (config/scheduler.py:331)."""
    batched, said = max(how.batched, concurrency), model.arguments
    if how.sequences <= batched:
        return replace(how, batched=batched)
    if "max-num-batched-tokens" not in said:
        return replace(how, batched=how.sequences)
    if "max-num-seqs" not in said:
        return replace(how, sequences=batched)
    raise PlanError(
        f"{model.name}: max-num-batched-tokens is {batched}: must be at least max-num-seqs, {how.sequences}"
    )


def _wanted(model: Model, targets: Targets) -> Targets:
    """The targets, with the context that the model's own arguments ask for."""
    most = model.architecture.max_position_embeddings
    context = targets.context or model.arguments.get("max-model-len")
    if context in ("auto", -1):
        context = None
    if context is not None and (isinstance(context, bool) or not isinstance(context, int) or context < 1):
        raise PlanError(f"{model.name}: max-model-len is {context!r}: must be a whole number of tokens")
    if context is not None and context > most:
        raise PlanError(f"{model.name}: a context of {context} is more than the model's own {most}")
    return replace(targets, context=context)


def _splits(model: Model, gpus: int, share: int, request: Request) -> Iterator[Split]:
    """The usual split first, then the others over as many GPUs."""
    tp, pp = request.tensor_parallel, request.pipeline_parallel
    usual = _usual(model, gpus, share, tp, pp)
    limits.check(model.name, model.architecture, usual)
    _nodes_needed(usual.gpus, gpus, share)
    yield usual
    pairs = {(usual.tensor, usual.pipeline)}
    if tp is None:
        # Across nodes too; pipelines inside a node, where TP could be, are for who asks.
        for tensor in limits.valid_tensor_parallel(model.architecture, usual.expert):
            if tensor > gpus and share * gpus % tensor == 0:
                pairs.add((tensor, pp or share * gpus // tensor))
    for tensor, pipeline in sorted(pairs, key=lambda pair: (pair[0] > gpus, -pair[0])):
        for split in _variants(model, replace(usual, tensor=tensor, pipeline=pipeline), gpus, tp):
            if split != usual and _spreads(split.gpus, gpus, share):
                yield split


def _variants(model: Model, split: Split, gpus: int, tp: int | None) -> Iterator[Split]:
    """The split with and without what helps some models."""
    yield split
    if model.architecture.experts and "enable-expert-parallel" not in model.arguments:
        yield replace(split, expert=True)
    if "decode-context-parallel-size" not in model.arguments:
        for size in limits.context_sizes(model.architecture, split.tensor)[-1:]:
            yield replace(split, context=size)
    if model.architecture.latent and model.architecture.experts and split.gpus <= gpus and tp is None:
        # TP keeps all of MLA's KV cache on every rank; DP keeps each request on one.
        yield replace(split, tensor=1, data=split.gpus, pipeline=1, expert=True)


def _usual(model: Model, gpus: int, share: int, tp: int | None, pp: int | None) -> Split:
    """TP over a node and PP over nodes, with what the model's own arguments say.

    Where the model cannot be split that way, the widest TP and the most stages that it can.
    """
    own, shape = model.arguments, model.architecture
    split = Split(
        data=_size(own, "data-parallel-size"),
        expert=bool(own.get("enable-expert-parallel", False)),
        context=_size(own, "decode-context-parallel-size"),
    )
    most = gpus if pp is None or pp <= share else max(1, share * gpus // pp)
    valid = limits.valid_tensor_parallel(shape, split.expert)
    widths = [tp] if tp else [size for size in reversed(valid) if size <= most and most % size == 0]
    first = None
    for width in widths or [most]:
        deepest = max(1, share * gpus // (width * split.data))
        for stages in [pp] if pp else range(deepest, 0, -1):
            one = replace(split, tensor=width, pipeline=stages)
            first = first or one
            if limits.problem(shape, one) is None and _spreads(one.gpus, gpus, share):
                return one
    assert first is not None
    return first


def _size(arguments: Mapping[str, Any], name: str) -> int:
    value = arguments.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PlanError(f"{name} is {value!r}: must be a whole number of at least 1")
    return value


def _alike(nodes: Sequence[Node]) -> tuple[int, Gpu | None]:
    """How many GPUs each node has, and which; PlanError when they differ."""
    if len({node.gpus for node in nodes}) > 1:
        counts = ", ".join(f"{node.name} {node.gpus}" for node in nodes)
        raise PlanError(f"the nodes have different numbers of GPUs ({counts}): serve them apart")
    if len({node.gpu and hardware.gpu(node.gpu).name for node in nodes}) > 1:
        kinds = ", ".join(f"{node.name} {node.gpu or 'unknown'}" for node in nodes)
        raise PlanError(f"the nodes have different GPUs ({kinds}): serve them apart, an inventory each")
    return nodes[0].gpus, hardware.gpu(nodes[0].gpu) if nodes[0].gpu else None


def _nodes_needed(world: int, gpus: int, share: int) -> int:
    """The fewest nodes that hold `world` ranks evenly, one GPU each."""
    if world > gpus * share:
        raise PlanError(
            f"TP x PP needs {world} GPUs; the inventory has {gpus * share} for each replica "
            f"({share} nodes of {gpus})"
        )
    size = _spreads(world, gpus, share)
    if not size:
        raise PlanError(f"TP x PP is {world} ranks: they do not spread evenly over nodes of {gpus} GPUs")
    return size


def _spreads(world: int, gpus: int, share: int) -> int | None:
    sizes = range(-(-world // gpus), share + 1)
    return next((size for size in sizes if world % size == 0), None)


def _executor(asked: Executor, nodes: int) -> Literal["local", "ray", "mp"]:
    across: Literal["ray", "mp"] = "ray" if asked == "auto" else asked
    return across if nodes > 1 else "local"


def _apart(option: Plan) -> tuple[int, int]:
    split = option.replicas[0].split
    return split.context, split.data


def _missing(option: Plan) -> int:
    """Bytes that the fullest GPU lacks; 0 where nothing is known of it."""
    found = option.replicas[0].fit
    return found.missing_bytes if found else 0


def _cost(option: Plan, request: Request) -> float:
    """Less is better: seconds of a token alone, or of one of all tokens under load."""
    first = option.replicas[0]
    seen = estimate(first, option.model, loaded(option, request))
    if seen is None:
        return 0.0
    if request.optimize == "latency":
        return seen.per_token
    return -seen.throughput * len(option.replicas)


def loaded(option: Plan, request: Request) -> int:
    """Requests at once, on one replica, that its throughput is estimated for."""
    found = option.replicas[0].fit
    if request.targets.concurrency > 1 or found is None:
        return request.targets.concurrency
    length = performance.PROMPT + performance.OUTPUT
    room = int(option.replicas[0].kv_cache_tokens // length) or 1
    return max(1, min(room, int(option.replicas[0].arguments["max-num-seqs"])))
