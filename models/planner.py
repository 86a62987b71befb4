"""How a model is split over the nodes, and which of the ways is best.

Pure: `plan` is a function of the model and of what the inventory says of its nodes. Where
the nodes' GPU is known, a plan that would not start is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

from . import conflicts, hardware, limits, memory, performance
from . import fit as fitting
from .errors import DoesNotFit, PlanError
from .fit import Targets
from .hardware import Gpu
from .model import Model
from .performance import Estimate
from .placement import Room, placed
from .plan import MOST, TAKEN, Executor, Node, Plan, Ports, Replica, Request
from .splits import DCP, splits
from .weights import Split


class Copies(Sequence[Replica]):
    """The replicas of an option, each made when it is asked for: most options come to nothing."""

    def __init__(self, first: Replica, number: int, where: Sequence[tuple[tuple[Node, ...], int]]) -> None:
        self.first, self.number, self.where = first, number, where

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self)[index]
        index = range(len(self))[index]
        if index == 0:
            return self.first
        nodes, slot = self.where[index]
        ports = replace(self.first.ports, slot=slot)
        return replace(self.first, name=f"replica-{self.number + index}", nodes=nodes, ports=ports)


def plan(model: Model, nodes: Sequence[Node], **said: Any) -> Plan:
    """The plan for `model` on `nodes`; `said` are `Request`'s fields.

    Raises PlanError for what cannot be, and DoesNotFit, with what is missing, for what
    would not start. Nodes without GPUs serve nothing. Each replica takes the same number
    of nodes, in the inventory's order, and several share a node where there are more of them;
    sizes that are not given use all the GPUs there are.
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
        return _made(fits[0])
    # What DCP and DP cost in traffic is not estimated: they are for who asks for them.
    usual = [option for option in fits if _apart(option) == _apart(found[0])]
    return _made(min(usual or fits, key=lambda option: _cost(option, request)))


def options(model: Model, nodes: Sequence[Node], request: Request) -> list[Plan]:
    """Every plan that the request leaves open, the usual one first; PlanError when there is none."""
    conflicts.check(model, request)
    serving = [node for node in nodes if node.gpus > 0]
    if not serving:
        raise PlanError("no node of the inventory has a GPU (set gpus)")
    counts = [request.replicas] if request.replicas else _counts(len(serving), _alike(serving)[0])
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


def loaded(option: Plan, request: Request) -> int:
    """Requests at once, on one replica, that its throughput is estimated for."""
    found = option.replicas[0].fit
    if request.targets.concurrency > 1 or found is None:
        return request.targets.concurrency
    length = performance.PROMPT + performance.OUTPUT
    room = int(option.replicas[0].kv_cache_tokens // length) or 1
    return max(1, min(room, int(option.replicas[0].arguments["max-num-seqs"])))


def _counts(nodes: int, gpus: int) -> list[int]:
    """Of the counts of replicas that give each as many nodes, or as many GPUs of one, the largest."""
    shares = {nodes // count for count in range(1, nodes + 1)}
    widths = {gpus // count for count in range(1, gpus + 1)}
    return sorted({*(nodes // share for share in shares), *(nodes * (gpus // width) for width in widths)})


def _options(model: Model, serving: Sequence[Node], count: int, request: Request) -> Iterator[Plan]:
    gpus, gpu = _alike(serving)
    room = Room(len(serving), gpus, count)
    for split in splits(model, gpu, room, request):
        if limits.problem(model.architecture, split) is None:
            yield _plan(model, serving, room, split, gpu, request)


def _plan(
    model: Model, serving: Sequence[Node], room: Room, split: Split, gpu: Gpu | None, request: Request
) -> Plan:
    size = room.needed(split.gpus)
    where = list(placed(serving, room.replicas, size))
    last = Ports(request.port, where[-1][1]).api
    if last > MOST["port"] or request.port < TAKEN.start <= last:
        raise PlanError(f"port is {request.port}: replicas that share a node would reach port {last}")
    executor = _executor(request.executor, size)
    if split.data > 1 and executor == "ray":  # config/parallel.py:159: its ranks meet at 127.0.0.1
        raise PlanError(
            f"data-parallel-size is {split.data}, over {size} nodes through Ray: vLLM's ranks do not meet; "
            "make it fit into a node (TP x PP x DP of at most its GPUs)"
        )
    sizes = fitting.arguments_of(split)
    flags = {**sizes, **model.flags, **sizes}  # of what both say the split's counts, in its place
    if split.context == 1:
        flags.pop(DCP, None)
    found = None
    if gpu is not None:
        wanted = _wanted(model, request.targets)
        how = memory.serving(model.architecture, flags, model.environment, gpu)
        how = replace(how, sequences=max(how.sequences, wanted.concurrency))
        how = _batched(model, how, wanted.concurrency)
        memory.check_share(split, gpu, how.utilization)
        found = fitting.fit(model.architecture, split, gpu, how, wanted)
        flags |= {
            "max-model-len": found.max_model_len,
            "gpu-memory-utilization": how.utilization,
            "max-num-seqs": how.sequences,
            "max-num-batched-tokens": how.batched,
        }
        conflicts.check_flags(model, flags)
        if gpu.vendor == "cpu":
            del flags["gpu-memory-utilization"]
    first = Replica(
        name=f"replica-{request.first}",
        nodes=where[0][0],
        split=split,
        executor=executor,
        ports=Ports(request.port),
        arguments=MappingProxyType(flags),
        gpu=gpu,
        fit=found,
    )
    return Plan(model, Copies(first, request.first, where))


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


def _alike(nodes: Sequence[Node]) -> tuple[int, Gpu | None]:
    """How many GPUs each node has, and which; PlanError when they differ."""
    if len({node.gpus for node in nodes}) > 1:
        counts = ", ".join(f"{node.name} {node.gpus}" for node in nodes)
        raise PlanError(
            f"the nodes have different numbers of GPUs ({counts}): serve them apart, a model each"
        )
    if len({node.gpu and hardware.gpu(node.gpu).name for node in nodes}) > 1:
        kinds = ", ".join(f"{node.name} {node.gpu or 'unknown'}" for node in nodes)
        raise PlanError(f"the nodes have different GPUs ({kinds}): serve them apart, a model each")
    return nodes[0].gpus, hardware.gpu(nodes[0].gpu) if nodes[0].gpu else None


def _executor(asked: Executor, nodes: int) -> Literal["local", "ray", "mp"]:
    across: Literal["ray", "mp"] = "ray" if asked == "auto" else asked
    return across if nodes > 1 else "local"


def _made(option: Plan) -> Plan:
    return replace(option, replicas=tuple(option.replicas))


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
