"""The splits that a request leaves open, over the GPUs of one replica.

The rule is the field's usual one: tensor parallelism inside a node, where the links are
fast, and pipeline parallelism across nodes, unless the user or a target says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from . import limits
from .errors import PlanError
from .hardware import Gpu
from .model import Model
from .placement import Room
from .plan import Request
from .weights import Split

DCP = "decode-context-parallel-size"


def splits(model: Model, gpu: Gpu | None, room: Room, request: Request) -> Iterator[Split]:
    """The usual split first, then the others over as many GPUs."""
    gpus, share = room.width, room.share
    tp, pp = request.tensor_parallel, request.pipeline_parallel
    cpu = gpu is not None and gpu.vendor == "cpu"
    usual = _usual(model, room, tp, pp, cpu)
    if cpu and usual.context > 1:  # v1/attention/backends/cpu_attn.py and mla/cpu_mla.py return no LSE
        raise PlanError(f"{model.name}: vLLM knows no DCP on CPUs: leave {DCP} out")
    limits.check(model.name, model.architecture, usual)
    room.needed(usual.gpus)
    yield usual
    pairs = {(usual.tensor, usual.pipeline)}
    if tp is None:
        # Across nodes too; pipelines inside a node, where TP could be, are for who asks.
        for tensor in limits.valid_tensor_parallel(model.architecture, usual.expert):
            if tensor > gpus and share * gpus % tensor == 0:
                pairs.add((tensor, pp or share * gpus // tensor))
    for tensor, pipeline in sorted(pairs, key=lambda pair: (pair[0] > gpus, -pair[0])):
        context = _context(model, tensor, cpu)
        one = replace(usual, tensor=tensor, pipeline=pipeline, context=context)
        for split in _variants(model, one, gpus, tp, cpu):
            if split != usual and room.size(split.gpus):
                yield split


def _variants(model: Model, split: Split, gpus: int, tp: int | None, cpu: bool) -> Iterator[Split]:
    """The split with and without what helps some models."""
    yield split
    if model.architecture.experts and "enable-expert-parallel" not in model.arguments:
        yield replace(split, expert=True)
    if DCP not in model.arguments and not cpu:
        for size in limits.context_sizes(model.architecture, split.tensor)[-1:]:
            yield replace(split, context=size)
    if model.architecture.latent and model.architecture.experts and split.gpus <= gpus and tp is None:
        # TP keeps all of MLA's KV cache on every rank; DP keeps each request on one.
        context = _context(model, 1, cpu)
        yield replace(split, tensor=1, data=split.gpus, pipeline=1, expert=True, context=context)


def _usual(model: Model, room: Room, tp: int | None, pp: int | None, cpu: bool) -> Split:
    """TP over a node and PP over nodes, with what the model's own arguments say.

    Where the model cannot be split that way, the widest TP and the most stages that it can.
    """
    own, shape, gpus, share = model.arguments, model.architecture, room.width, room.share
    split = Split(
        data=_size(own, "data-parallel-size"),
        expert=bool(own.get("enable-expert-parallel", False)),
    )
    most = gpus if pp is None or pp <= share else max(1, share * gpus // pp)
    valid = limits.valid_tensor_parallel(shape, split.expert)
    widths = [tp] if tp else [size for size in reversed(valid) if size <= most and most % size == 0]
    first = None
    for width in widths or [most]:
        deepest = max(1, share * gpus // (width * split.data))
        for stages in [pp] if pp else range(deepest, 0, -1):
            one = replace(split, tensor=width, pipeline=stages, context=_context(model, width, cpu))
            first = first or one
            if limits.problem(shape, one) is None and room.size(one.gpus):
                return one
    assert first is not None
    return first


def _context(model: Model, tensor: int, cpu: bool) -> int:
    """DCP as it is said; "auto" is the most that vLLM takes for that TP."""
    if model.arguments.get(DCP) != "auto":
        return _size(model.arguments, DCP)
    return 1 if cpu else max(limits.context_sizes(model.architecture, tensor), default=1)


def _size(arguments: Mapping[str, Any], name: str) -> int:
    value = arguments.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PlanError(f"{name} is {value!r}: must be a whole number of at least 1")
    return value
