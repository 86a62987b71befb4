"""Whether a model fits on the GPUs of one replica, and with how much context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from . import kv
from .architecture import Architecture
from .hardware import Gpu
from .kv import Cache, Capacity
from .memory import Serving, Stage, stage_memory
from .weights import Split

#: What a fit means when nothing is said: one request of so many tokens.
LEAST_CONTEXT = 8192


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the user wants of a replica.

    + context: tokens of a request, prompt and answer; the largest that fits unless said
    + concurrency: requests of that length, or of LEAST_CONTEXT, in the cache at once
    """

    context: int | None = None
    concurrency: int = 1


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A split of a model on a kind of GPU, in bytes and tokens."""

    stages: tuple[Stage, ...]
    cache: Cache
    max_model_len: int
    capacity: Capacity
    least: int  # tokens of a request that were asked for
    needed: tuple[int, ...]  # KV cache for that, by stage
    missing_bytes: int  # on the fullest GPU; 0 when it fits

    @property
    def fits(self) -> bool:
        return self.missing_bytes == 0

    @property
    def fullest(self) -> Stage:
        """The stage that decides: the one with the least room beside its weights."""
        return min(self.stages, key=lambda stage: stage.available)


@lru_cache(maxsize=512)
def fit(model: Architecture, split: Split, gpu: Gpu, how: Serving, wanted: Targets) -> Fit:
    """Fit a split; what is missing is said in bytes of the GPU that lacks most."""
    stages = stage_memory(model, split, gpu, how)
    cache = how.cache(split)
    available = [stage.available for stage in stages]
    limit = wanted.context or model.max_position_embeddings
    least = wanted.context or min(LEAST_CONTEXT, limit)
    said = how.kv_cache_memory or 0  # vLLM takes it unasked, and runs out of memory where it is too much
    needed = tuple(max(need, said) for need in kv.needed(model, split, cache, least, wanted.concurrency))
    missing = max(0, *(need - have for need, have in zip(needed, available, strict=True)))
    length = limit if wanted.context else kv.longest(model, split, cache, available, limit)
    length = max(length, 1)
    return Fit(
        stages=stages,
        cache=cache,
        max_model_len=length,
        capacity=kv.capacity(model, split, cache, available, length),
        least=least,
        needed=needed,
        missing_bytes=missing,
    )


def memory_parts(model: Architecture, split: Split, found: Fit, stage: int) -> dict[str, int]:
    """The memory of a GPU of one stage, by part, in bytes. Together they are all of it.

    "free" is of what vLLM may take, and the rest is "beyond vLLM's share". Of what does not fit
    the KV cache is the one that was asked for, and "free" on the fullest GPU is what is missing.
    """
    own = found.stages[stage]
    blocks = found.capacity.blocks * kv.block_bytes(model, split, found.cache)[stage]
    parts = {
        **own.weights,
        "KV cache": blocks if found.fits else found.needed[stage],
        "activations": own.activations,
        "CUDA graphs": own.graphs,
        "communication": own.communication,
        "beyond vLLM's share": own.beyond,
    }
    return {**parts, "free": own.total - sum(parts.values())}


def arguments_of(split: Split) -> Mapping[str, Any]:
    """vLLM's flags for a split: long names without dashes."""
    flags: dict[str, Any] = {
        "tensor-parallel-size": split.tensor,
        "pipeline-parallel-size": split.pipeline,
    }
    if split.data > 1:
        flags["data-parallel-size"] = split.data
    if split.expert:
        flags["enable-expert-parallel"] = True
    if split.context > 1:
        flags["decode-context-parallel-size"] = split.context
    return flags
