"""What else would do: what works where a plan does not fit, and what another split trades."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from . import hardware, kv
from .errors import ModelError, PlanError
from .fit import LEAST_CONTEXT
from .model import Model
from .performance import Estimate
from .plan import Node, Plan, Replica, Request
from .planner import choose, estimate, loaded, options

#: Suggested contexts are rounded down to a multiple of this, and are at least as many tokens.
CONTEXT_STEP = 1024

MOST_NODES = 64


@dataclass(frozen=True)
class Suggestion:
    """A change that was planned and fits."""

    text: str
    change: dict[str, object]
    model: Model
    nodes: tuple[Node, ...]
    request: Request


@dataclass(frozen=True)
class Alternative:
    """Another plan that fits, beside the chosen one."""

    plan: Plan
    estimate: Estimate | None
    ratios: Mapping[str, float]  # of what each is good at, to the chosen plan's; more is better

    @property
    def trades(self) -> str:
        """What is better and what worse than in the chosen plan, the best first."""
        told = sorted(_telling(self.ratios).items(), key=lambda pair: -pair[1])
        return ", ".join(f"{what} x{ratio:.2f}" for what, ratio in told)


def suggestions(
    model: Model, nodes: Sequence[Node], request: Request, smaller: Sequence[Model] = ()
) -> list[Suggestion]:
    """The nearest things that do fit, each planned. `smaller` are models that may stand in."""
    tried = (*_asking_less(model, nodes, request), *_other_splits(model, nodes, request),
             *_other_cache(model, nodes, request), *_other_models(model, smaller, nodes, request),
             *_other_weights(model, nodes, request), *_more_gpus(model, nodes, request),
             *_more_nodes(model, nodes, request), *_other_gpus(model, nodes, request))  # fmt: skip
    return [one for one in tried if fits(one.model, one.nodes, one.request)]


def fits(model: Model, nodes: Sequence[Node], request: Request) -> bool:
    try:
        choose(options(model, nodes, request), request)
    except PlanError:
        return False
    return True


def alternatives(chosen: Plan, nodes: Sequence[Node], request: Request, most: int = 3) -> list[Alternative]:
    """Plans that fit and are better than the chosen one in something, best first."""
    free = replace(request, tensor_parallel=None, pipeline_parallel=None, replicas=None)
    own = chosen.replicas[0]
    if own.fit is None:
        return []
    good = _measures(chosen, estimate(own, chosen.model, loaded(chosen, request)))
    seen: dict[tuple[object, ...], Alternative] = {}
    for option in options(chosen.model, nodes, free):
        first = option.replicas[0]
        found = first.fit
        if (
            found is None
            or not found.fits
            or (first.split, len(option.replicas)) == (own.split, len(chosen.replicas))
        ):
            continue
        guessed = estimate(first, option.model, loaded(option, request))
        ratios = {what: value / good[what] for what, value in _measures(option, guessed).items()}
        if any(ratio > 1 for ratio in _telling(ratios).values()):
            seen[(first.split, len(option.replicas))] = Alternative(option, guessed, ratios)
    return sorted(seen.values(), key=lambda one: -_gain(one, request))[:most]


def _asking_less(model: Model, nodes: Sequence[Node], request: Request) -> Iterator[Suggestion]:
    """Fewer tokens, or fewer requests at once, where the weights leave room for some."""
    targets = request.targets
    firsts = [option.replicas[0] for option in _options(model, nodes, request)]
    known = [first.fit for first in firsts if first.fit]
    most = known[0].least if known else targets.context or LEAST_CONTEXT

    def holds(tokens: int, requests: int) -> bool:
        return any(_holds(model, first, tokens, requests) for first in firsts)

    count = kv.largest(targets.concurrency, lambda requests: holds(most, requests))
    if count and targets.concurrency > 1:
        yield _suggest(
            f"{count} requests of {most} tokens at once", {"concurrency": count}, model, nodes,
            replace(request, targets=replace(targets, concurrency=count)),
        )  # fmt: skip
    length = kv.largest(most, lambda tokens: holds(tokens, targets.concurrency))
    length = length // CONTEXT_STEP * CONTEXT_STEP
    if length and "max-model-len" in model.said:  # and no other context may be asked for
        arguments = {"max-model-len": length}
        other = model.with_(arguments=arguments)
        yield _suggest(f"a context of {length} tokens", {"vllm_args": arguments}, other, nodes, request)
    elif length:
        yield _suggest(
            f"a context of {length} tokens", {"context": length}, model, nodes,
            replace(request, targets=replace(targets, context=length)),
        )  # fmt: skip


def _holds(model: Model, replica: Replica, tokens: int, requests: int) -> bool:
    found = replica.fit
    if found is None:
        return False
    needed = kv.needed(model.architecture, replica.split, found.cache, tokens, requests)
    return all(need <= stage.available for need, stage in zip(needed, found.stages, strict=True))


def _other_splits(model: Model, nodes: Sequence[Node], request: Request) -> Iterator[Suggestion]:
    """The sizes that the user set, left to the planner."""
    if request.tensor_parallel is None and request.pipeline_parallel is None:
        return
    free = replace(request, tensor_parallel=None, pipeline_parallel=None)
    for option in _options(model, nodes, free):
        first = option.replicas[0]
        if first.fit and first.fit.fits:
            sizes = {"tensor_parallel": first.tensor_parallel, "pipeline_parallel": first.pipeline_parallel}
            asked = replace(request, **sizes)  # type: ignore[arg-type]
            yield _suggest(
                f"TP {first.tensor_parallel} x PP {first.pipeline_parallel}", dict(sizes), model, nodes, asked
            )
            return


def _other_cache(model: Model, nodes: Sequence[Node], request: Request) -> Iterator[Suggestion]:
    """An FP8 KV cache, on GPUs that have FP8 and for models that say nothing of theirs."""
    if not nodes[0].gpu or hardware.gpu(nodes[0].gpu).capability < 89 or "kv-cache-dtype" in model.arguments:
        return
    arguments = {"kv-cache-dtype": "fp8"}
    change: dict[str, object] = {"vllm_args": arguments}
    yield _suggest(
        "an FP8 KV cache (kv-cache-dtype: fp8)", change, model.with_(arguments=arguments), nodes, request
    )


def _other_models(
    model: Model, smaller: Sequence[Model], nodes: Sequence[Node], request: Request
) -> Iterator[Suggestion]:
    """Planned with what the user says of the model, where that can be said of them."""
    for one in smaller:
        try:
            other = one.instead_of(model)
        except ModelError:
            continue
        text, change = f"{one.name}, the same in fewer bytes", {"model": one.name}
        yield _suggest(text, dict(change), other, nodes, request)


def _other_weights(model: Model, nodes: Sequence[Node], request: Request) -> Iterator[Suggestion]:
    """FP8 made while loading, on GPUs that have FP8 and of weights that are not quantized."""
    stored = model.architecture.quantization
    row = hardware.gpu(nodes[0].gpu) if nodes[0].gpu else None
    if row is None or row.capability < 89 or stored.format != "plain" or "quantization" in model.arguments:
        return
    arguments = {"quantization": "fp8_per_tensor"}
    change: dict[str, object] = {"vllm_args": arguments}
    text = "FP8 weights, made while loading (quantization: fp8_per_tensor)"
    yield _suggest(text, change, model.with_(arguments=arguments), nodes, request)


def _more_gpus(model: Model, nodes: Sequence[Node], request: Request) -> Iterator[Suggestion]:
    """More GPUs in each of these nodes, up to as many as nodes with them usually have."""
    serving = [node for node in nodes if node.gpus and node.gpu]
    most = hardware.gpu(str(serving[0].gpu)).per_node if serving else 0
    for count in (2, 4, 8):
        if not serving or not serving[0].gpus < count <= most:
            continue
        more = [replace(node, gpus=count) for node in serving]
        if fits(model, more, request):
            where = "a node" if len(serving) == 1 else f"each of {len(serving)} nodes"
            yield _suggest(f"{count} {serving[0].gpu} in {where}", {"gpus": count}, model, more, request)
            return


def _more_nodes(model: Model, nodes: Sequence[Node], request: Request) -> Iterator[Suggestion]:
    """On more nodes a replica has more stages, so a PP that the user set becomes another one."""
    free = replace(request, pipeline_parallel=None)
    serving = [node for node in nodes if node.gpus]
    for count in range(len(serving) + 1, MOST_NODES + 1):
        more = [*serving, *(replace(serving[-1], name=f"new-{n}", address=f"0.0.0.{n}")
                            for n in range(1, count - len(serving) + 1))]  # fmt: skip
        if fits(model, more, free):
            text, change = f"{count} nodes of {serving[0].gpus} {serving[0].gpu}", {"nodes": count}
            if request.pipeline_parallel is not None:
                stages = choose(options(model, more, free), free).replicas[0].pipeline_parallel
                text, change = f"{text}, PP {stages}", {**change, "pipeline_parallel": stages}
                free = replace(request, pipeline_parallel=stages)
            yield _suggest(text, dict(change), model, more, free)
            return


def _other_gpus(model: Model, nodes: Sequence[Node], request: Request) -> Iterator[Suggestion]:
    """The smallest GPU of the table, of the same vendor, that holds it on as many nodes."""
    now = nodes[0].gpu
    if now is None:
        return
    own = hardware.gpu(now)
    larger = [row for row in hardware.GPUS.values() if row.vendor == own.vendor and row.memory > own.memory]
    for row in sorted(larger, key=lambda row: row.memory):
        others = [replace(node, gpu=row.name) for node in nodes]
        if fits(model, others, request):
            yield _suggest(f"{row.name} instead of {own.name}", {"gpu": row.name}, model, others, request)
            return


def _suggest(
    text: str, change: dict[str, object], model: Model, nodes: Sequence[Node], request: Request
) -> Suggestion:
    return Suggestion(text, change, model, tuple(nodes), request)


def _options(model: Model, nodes: Sequence[Node], request: Request) -> list[Plan]:
    try:
        return options(model, nodes, request)
    except PlanError:
        return []


def _measures(plan: Plan, guessed: Estimate | None) -> dict[str, float]:
    """What a plan is good at; more is better."""
    found = plan.replicas[0].fit
    assert found is not None and guessed is not None
    return {
        "tokens/s": guessed.throughput * len(plan.replicas),
        "token alone": 1 / guessed.per_token,
        "KV tokens": plan.replicas[0].kv_cache_tokens * len(plan.replicas),
        "context": found.max_model_len,
    }


def _telling(ratios: Mapping[str, float]) -> dict[str, float]:
    return {what: ratio for what, ratio in ratios.items() if abs(ratio - 1) > 0.05}


def _gain(one: Alternative, request: Request) -> float:
    if request.optimize == "latency":
        return one.ratios["token alone"]
    if request.optimize == "throughput":
        return one.ratios["tokens/s"]
    return one.ratios["tokens/s"] * one.ratios["token alone"]
