"""How fast a split is, to a first order: a prompt, one decode step, a steady load.

A roofline: bytes over bandwidth, FLOPs over peak, and what neither explains (all-reduces,
kernels, pipeline stages) as times of their own. The constants were fitted on published
measurements; docs/performance.md says which, and how far off the estimates are elsewhere.
Times are seconds, rates bytes/s, FLOP/s or tokens/s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from . import kv
from .architecture import Architecture
from .hardware import LINKS, Gpu
from .weights import Split, parameters, tensors

STEP = 0.7e-3  # host time of a step with CUDA graphs: scheduling, sampling
LAYER, MOE_LAYER = 20e-6, 90e-6  # kernels of a layer that no byte or FLOP explains
EAGER_LAYER, EAGER_MOE_LAYER = 0.4e-3, 1.6e-3  # kernels that Python launches one by one
NODE_REDUCE = 160e-6  # an all-reduce between nodes
NODE_SHARE = 0.7  # of a network card's rate that it reaches
STAGE = 2.4e-3  # what each pipeline stage adds to a step
API = 8e-3  # HTTP, tokenizer, first detokenization
GRAPHED = 512  # tokens; a larger prefill runs without CUDA graphs
DENSE_FLOPS, MOE_FLOPS = 0.5, 0.2  # shares of peak in prefill (MoE: of BF16's)

#: The load that estimates are for, in tokens.
PROMPT, OUTPUT = 1024, 256


@dataclass(frozen=True)
class Work:
    """What of a model decides its speed. Parameters are counted without the embedding."""

    layers: int
    hidden: int
    attention: int  # query heads x head size
    common: float  # parameters that every token uses
    routed: float  # parameters of all routed experts
    experts: int
    chosen: int  # experts of a token
    weight_bytes: float  # of a parameter, on average
    cache_bytes: float  # of a token's KV in a layer
    cache_heads: int  # TP beyond this copies the KV
    windowed: int = 0  # layers that look back `window` tokens instead of all
    window: int = 0

    @property
    def active(self) -> float:
        return self.common + self.routed * self.chosen / self.experts

    def looked_at(self, context: float) -> float:
        """Tokens of the cache that one token looks at, over all layers."""
        return (self.layers - self.windowed) * context + self.windowed * min(context, self.window)

    def pairs(self, tokens: float) -> float:
        """The same for all tokens of a prompt, each of which looks at those before it."""
        near = min(tokens, self.window)
        return (self.layers - self.windowed) * tokens**2 / 2 + self.windowed * near * (tokens - near / 2)

    def touched(self, tokens: float) -> float:
        """Parameters that a batch reads: of experts the expected number, routing being uniform."""
        missed: float = (1 - self.chosen / self.experts) ** tokens
        return self.common + self.routed * (1 - missed)


@dataclass(frozen=True)
class Placed:
    """A split on a kind of GPU; `nodes` is how many a TP group spans."""

    gpu: Gpu
    split: Split
    nodes: int = 1
    eager: bool = False


@dataclass(frozen=True)
class Estimate:
    """One request alone, and `concurrency` clients who each send the next one at once."""

    first_token: float  # seconds, on an idle server
    per_token: float  # seconds, alone
    bound: str  # what most of a lone token's time goes to
    concurrency: int
    loaded_per_token: float  # seconds, under that load
    throughput: float  # tokens/s of all clients


def estimate(
    work: Work, placed: Placed, concurrency: int, prompt: int = PROMPT, output: int = OUTPUT
) -> Estimate:
    """The estimate of one replica for requests of `prompt` and `output` tokens."""
    one = _prompt(work, placed, prompt) / placed.split.pipeline  # stages overlap when there are many
    others = (concurrency - 1) * one
    loaded = step(work, placed, concurrency, prompt + output / 2) + others / output
    first = prefill(work, placed, prompt)
    waited = first / (1 - min(0.9, others / (output * loaded)))
    alone = _step_parts(work, placed, 1, prompt + output / 2)
    return Estimate(
        first_token=first,
        per_token=sum(alone.values()),
        bound=max(alone, key=lambda part: alone[part]),
        concurrency=concurrency,
        loaded_per_token=loaded,
        throughput=concurrency * output / (waited + (output - 1) * loaded),
    )


def step(work: Work, placed: Placed, batch: float, context: float) -> float:
    """Seconds of one decode step; with PP, of a token through every stage."""
    return sum(_step_parts(work, placed, batch, context).values())


def prefill(work: Work, placed: Placed, tokens: float) -> float:
    """Seconds until a prompt of `tokens` has its first token, on an idle server."""
    busy = _prompt(work, placed, tokens)
    if placed.eager or tokens > GRAPHED:
        busy = max(busy, _launch(work))
    return busy + STEP + _stages(placed.split) + API


@lru_cache(maxsize=64)
def work(model: Architecture, number: int) -> Work:
    """The `Work` of a model whose cached numbers have `number` bytes."""
    whole = Split()
    held = [tensor for tensor in tensors(model, whole) if tensor.part != "embedding"]
    routed = [tensor for tensor in held if tensor.part == "experts" and not tensor.name.endswith("scale")]
    doubled = 2 if model.quantization.format == "mxfp4" else 1
    experts = float(sum(tensor.count * (doubled if tensor.dtype == "uint8" else 1) for tensor in routed))
    count = parameters(model) - model.vocab_size * model.hidden_size
    cache = kv.Cache(block_size=1, number=number)
    return Work(
        layers=model.num_hidden_layers,
        hidden=model.hidden_size,
        attention=model.num_attention_heads * model.head_dim,
        common=count - experts,
        routed=experts,
        experts=model.experts.count if model.experts else 1,
        chosen=model.experts.per_token if model.experts else 1,
        weight_bytes=sum(tensor.bytes for tensor in held) / count,
        cache_bytes=kv.bytes_per_token(model, whole, cache),
        cache_heads=1 if model.latent else model.num_key_value_heads,
        windowed=len(model.windowed_layers),
        window=model.window or 0,
    )


def _step_parts(work: Work, placed: Placed, batch: float, context: float) -> dict[str, float]:
    split, gpu = placed.split, placed.gpu
    tokens = max(1.0, batch / split.pipeline)  # vLLM keeps a micro-batch in each stage
    ranks = split.tensor * split.data
    weights = work.touched(tokens) * work.weight_bytes / ranks
    shards = min(split.tensor, work.cache_heads) * split.context * split.data
    cache = tokens * work.looked_at(context) * work.cache_bytes / shards
    between = _layers(work, placed, tokens)
    if placed.eager:
        between = max(between, _launch(work))
    return {
        "memory bandwidth": (weights + cache) / (gpu.bandwidth * gpu.share),
        "compute": 2 * work.active * tokens / ranks / (_flops(work, gpu) * gpu.decode_share),
        "kernel launches" if placed.eager else "communication and kernels": between,
        "scheduling": STEP + _stages(split),
    }


def _prompt(work: Work, placed: Placed, tokens: float) -> float:
    """GPU seconds of a prompt: its FLOPs or the weights, whichever takes longer, and its layers."""
    gpu, ranks = placed.gpu, placed.split.tensor * placed.split.data
    flops = 2 * work.active * tokens + 4 * work.attention * work.pairs(tokens)
    share = MOE_FLOPS if work.experts > 1 else DENSE_FLOPS
    compute = flops / ranks / (_flops(work, gpu) * share)
    read = work.touched(tokens) * work.weight_bytes / ranks / (gpu.bandwidth * gpu.share)
    return max(compute, read) + _layers(work, placed, tokens)


def _launch(work: Work) -> float:
    return work.layers * (EAGER_MOE_LAYER if work.experts > 1 else EAGER_LAYER)


def _stages(split: Split) -> float:
    return STAGE * split.pipeline if split.pipeline > 1 else 0.0


def _flops(work: Work, gpu: Gpu) -> float:
    """Grouped FP8 products of experts reach no more than BF16's share."""
    return gpu.fp8 if work.weight_bytes <= 1.1 and work.experts == 1 else gpu.bf16


def _layers(work: Work, placed: Placed, tokens: float) -> float:
    """What layers cost besides bytes and FLOPs: two all-reduces each, and kernels' tails."""
    each = MOE_LAYER if work.experts > 1 else LAYER
    ranks = placed.split.tensor * placed.split.data
    if ranks > 1:
        moved = 2 * tokens * work.hidden * 2 * (ranks - 1) / ranks
        each += 2 * (placed.gpu.reduce + moved / placed.gpu.link)
        if placed.nodes > 1:
            reached = LINKS[placed.gpu.nic].rate * NODE_SHARE
            each += 2 * (NODE_REDUCE + moved / ranks * placed.nodes / reached)
    return work.layers * each
