"""What a GPU's memory goes to: weights, KV cache, and what vLLM needs besides.

vLLM takes `ceil(total * gpu_memory_utilization)` and gives the KV cache what weights, the
peak of a forward pass and CUDA graphs leave of it (v1/worker/gpu_worker.py:753). Weights
and KV are exact. The peak and the graphs are only known to a profiling run: here they are
upper estimates, so that a plan that fits starts. What was allocated before vLLM looks (the
CUDA context, NCCL's buffers) lies outside its share and must fit in what it leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Any

from . import kv
from .architecture import BYTES, Architecture, Dtype
from .errors import ModelError, PlanError
from .hardware import GiB, Gpu, MiB
from .weights import Split, extra_bytes, layer_kinds, part_bytes, stages

#: config/cache.py:215.
UTILIZATION = 0.92

#: Tokens in a block unless --block-size says otherwise (config/cache.py:185).
BLOCK_SIZE = 16

#: Of a step, and requests in one: vLLM's own by GPU (engine/arg_utils.py:2970), which a
#: Ray driver without GPUs does not see. We always say them.
BATCHED_TOKENS, SEQUENCES = 8192, 256

#: CUDA context, NCCL and custom all-reduce: aiconfigurator's systems/*.yaml has 342 MiB for
#: NCCL on 2 GPUs and 392 MiB on 4 and 8; a context is about half a GiB.
CONTEXT, NCCL = 512 * MiB, 392 * MiB

#: Attention's workspace (VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE is 394 MiB), samplers, slack.
WORKSPACE = 768 * MiB

#: CUDA graphs, a fixed part and one for each layer: our own allowance, not measured.
GRAPHS, GRAPHS_OF_LAYER = 512 * MiB, 8 * MiB


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The vLLM arguments that memory depends on."""

    dtype: Dtype
    kv_cache_dtype: str = "auto"
    utilization: float = UTILIZATION
    batched: int = BATCHED_TOKENS
    sequences: int = SEQUENCES
    block_size: int = BLOCK_SIZE
    eager: bool = False
    kv_cache_memory: int | None = None  # bytes, when it is said instead of found
    asynchronous: bool = True  # scheduling; always off on CPUs (platforms/cpu.py:348)

    def cache(self, split: Split) -> kv.Cache:
        return kv.Cache(
            block_size=self.block_size,
            number=kv.number_bytes(self.dtype, self.kv_cache_dtype),
            batched=self.batched,
            batches=split.pipeline + self.asynchronous,
        )


@dataclass(frozen=True)
class Stage:
    """A GPU of one pipeline stage, the fullest of its ranks; all in bytes."""

    total: int
    requested: int  # vLLM's share
    weights: Mapping[str, int] = field(hash=False)
    activations: int
    graphs: int
    communication: int  # and the CUDA context: outside vLLM's share
    available: int  # for the KV cache; negative when the rest does not fit

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values())

    @property
    def beyond(self) -> int:
        """What stays unused because vLLM may not take it."""
        used = self.weight_bytes + self.activations + self.graphs + self.communication
        return max(0, self.total - used - self.available)


def serving(
    model: Architecture, arguments: Mapping[str, Any], environment: Mapping[str, str], gpu: Gpu
) -> Serving:
    """The `Serving` that vLLM arguments (long names without dashes) and variables mean."""
    cpu = gpu.vendor == "cpu"
    space = environment.get("VLLM_CPU_KVCACHE_SPACE") if cpu else None
    if space and not space.isdecimal():
        raise ModelError(f"VLLM_CPU_KVCACHE_SPACE is {space!r}: must be a whole number of GiB")
    memory = int(space) * GiB if space else arguments.get("kv-cache-memory-bytes")
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 0):
        raise ModelError(f"kv-cache-memory-bytes is {memory!r}: must be a whole number of bytes")
    cached = str(arguments.get("kv-cache-dtype", "auto"))
    return Serving(
        dtype=served_dtype(model, str(arguments.get("dtype", "auto"))),
        kv_cache_dtype=cached,
        utilization=_share(arguments.get("gpu-memory-utilization", UTILIZATION)),
        batched=_count("max-num-batched-tokens", arguments, BATCHED_TOKENS),
        sequences=_count("max-num-seqs", arguments, SEQUENCES),
        block_size=_block(_count("block-size", arguments, block_size(model, gpu, cached))),
        eager=bool(arguments.get("enforce-eager", False)),
        kv_cache_memory=memory,
        asynchronous=not cpu and arguments.get("async-scheduling") is not False,
    )


def served_dtype(model: Architecture, asked: str) -> Dtype:
    """--dtype; "auto" makes bfloat16 of float32 (config/model.py:2441)."""
    if asked == "auto":
        return "bfloat16" if model.dtype == "float32" else model.dtype
    if asked in ("float32", "bfloat16", "float16"):
        return asked  # type: ignore[return-value]
    raise ModelError(f"dtype is {asked!r}: must be auto, bfloat16, float16 or float32")


def block_size(model: Architecture, gpu: Gpu, kv_cache_dtype: str) -> int:
    """Tokens in a block: 16, or the least that the backend takes which vLLM chooses.

    From vLLM 0.33: platforms/cuda.py:84 has the order of the backends for a GPU,
    platforms/interface.py:771 raises the block; their sizes are in v1/attention/backends/mla/.
    Without MLA every backend for our classes takes 16.
    """
    if gpu.vendor == "cpu":  # platforms/cpu.py:292; MLA without AMX: platforms/cpu.py:271
        return 16 if model.latent else 128
    if model.latent is None or gpu.vendor != "nvidia":
        return BLOCK_SIZE
    if gpu.capability // 10 == 10:  # flashinfer_mla.py:205 and :245, else cutlass_mla.py:50
        return 32 if model.latent.qk_nope_head_dim in (64, 128, 192) else 128
    if gpu.capability // 10 == 9 and kv.CACHE_BYTES.get(kv_cache_dtype) == 1:
        return 64  # flashmla.py:58, as flashattn_mla.py:42 takes no FP8
    return BLOCK_SIZE  # flashattn_mla.py:50, and triton_mla.py:115 on older GPUs


def stage_memory(model: Architecture, split: Split, gpu: Gpu, how: Serving) -> tuple[Stage, ...]:
    """The memory of a GPU of each stage; stages with layers that are alike are counted once."""
    kinds, first, last = layer_kinds(model), 0, split.pipeline - 1
    found: list[Stage] = []
    alike: dict[tuple[object, ...], Stage] = {}
    for stage, count in enumerate(stages(model.num_hidden_layers, split.pipeline)):
        key = (stage == 0, stage == last, kinds[first : first + count])
        if key not in alike:
            alike[key] = _stage(model, split, gpu, how, stage)
        found.append(alike[key])
        first += count
    return tuple(found)


def _stage(model: Architecture, split: Split, gpu: Gpu, how: Serving, stage: int) -> Stage:
    weights = part_bytes(model, split, stage, how.dtype, gpu.mxfp4_padding)
    if extra := extra_bytes(model, split, stage):
        weights["absorbed MLA"] = extra
    cpu = gpu.vendor == "cpu"
    requested = ceil(gpu.memory * how.utilization)
    activations = 0 if cpu else activation_bytes(model, split, how, is_last=stage == split.pipeline - 1)
    layers = stages(model.num_hidden_layers, split.pipeline)[stage]
    graphs = 0 if cpu or how.eager else GRAPHS + layers * GRAPHS_OF_LAYER
    communication = communication_bytes(split, gpu)
    available = requested - weights.total() - activations - graphs
    if how.kv_cache_memory is not None:
        room = gpu.memory - communication - weights.total() - activations - graphs
        available = how.kv_cache_memory if cpu else min(how.kv_cache_memory, room)
    return Stage(gpu.memory, requested, dict(weights), activations, graphs, communication, available)


def communication_bytes(split: Split, gpu: Gpu) -> int:
    """What is allocated before vLLM looks whether its share is free (v1/worker/gpu_worker.py:542)."""
    return 0 if gpu.vendor == "cpu" else CONTEXT + (NCCL if split.gpus > 1 else 0)


def check_share(split: Split, gpu: Gpu, utilization: float) -> None:
    """Raise PlanError for a share that is not free when vLLM looks: it then does not start."""
    beside = communication_bytes(split, gpu)
    if gpu.memory - ceil(gpu.memory * utilization) < beside:
        most = floor(100 * (gpu.memory - beside) / gpu.memory) / 100
        raise PlanError(
            f"gpu-memory-utilization is {utilization:g}: CUDA and NCCL take {beside / GiB:.1f} GiB of "
            f"{gpu.name} first, and vLLM does not start when its share is not free: at most {most:g}"
        )


def activation_bytes(model: Architecture, split: Split, how: Serving, is_last: bool) -> int:
    """An upper estimate of a step's peak: the widest layer, or sampling on the last stage.

    A step has `batched` tokens. Hidden state, residual and their copies are four of hidden
    size; a dense MLP has 3 of its width, one rank's part; experts copy each token once for
    every expert it goes to (fused_moe/fused_moe.py: caches 1 and 2). Logits of `sequences`
    requests are gathered in 16 bits, made float32 and sorted.
    """
    number = BYTES[how.dtype]
    heads = model.num_attention_heads // split.tensor
    attention = heads * model.head_dim * 3
    if model.latent:
        own = model.latent
        attention = heads * (2 * (own.qk_nope_head_dim + own.qk_rope_head_dim) + own.v_head_dim)
    mlp = 3 * model.intermediate_size // split.tensor
    if experts := model.experts:
        width = experts.intermediate_size // (1 if split.expert else split.expert_ranks)
        mlp = max(mlp, experts.per_token * (max(2 * width, model.hidden_size) + width))
    forward = how.batched * (4 * model.hidden_size + max(attention, mlp)) * number
    sampling = how.sequences * model.vocab_size * (number + 3 * 4) if is_last else 0
    return max(forward, sampling) + WORKSPACE


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ModelError(f"gpu-memory-utilization is {value!r}: must be above 0 and at most 1")
    return float(value)


def _block(size: int) -> int:
    """Attention's kernels take multiples of 16 (v1/attention/backends/flash_attn.py)."""
    if size % 16:
        raise ModelError(f"block-size is {size}: must be a multiple of 16")
    return size


def _count(name: str, arguments: Mapping[str, Any], default: int) -> int:
    value = arguments.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{name} is {value!r}: must be a whole number of at least 1")
    return value
