"""How many tokens the KV cache holds: vLLM's own arithmetic, block by block.

Read from vLLM (v1/core/kv_cache_planning.py, v1/kv_cache_interface.py). A block holds
`block_size` tokens of every layer of a worker; the worker with the fewest blocks decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from .architecture import BYTES, Architecture
from .errors import ModelError
from .weights import Split, stages

#: Bytes of a cached number by --kv-cache-dtype; "auto" is the model's own.
CACHE_BYTES = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What decides the shape of the cache besides the model and its split.

    + number: bytes of one cached number
    + batched: max_num_batched_tokens; layers with a sliding window keep room for it
    + batches: in flight at once: pipeline stages, and one more with async scheduling
    """

    block_size: int
    number: int
    batched: int = 8192
    batches: int = 1


@dataclass(frozen=True)
class Capacity:
    """What vLLM prints as its KV cache size: tokens, and requests of the longest kind."""

    blocks: int
    tokens: int
    concurrency: float


def bytes_per_token(model: Architecture, split: Split, cache: Cache) -> int:
    """Bytes of one token in one layer of one rank (kv_cache_interface.py:586).

    Key-value heads are replicated when TP exceeds them; of MLA every rank has all.
    """
    if model.latent:
        return model.latent.cached * cache.number
    return 2 * max(1, model.num_key_value_heads // split.tensor) * model.head_dim * cache.number


def block_bytes(model: Architecture, split: Split, cache: Cache) -> list[int]:
    """Bytes of a block on a worker of each stage.

    With sliding windows layers form groups that share one pool: a block is one group's.
    """
    page = cache.block_size * bytes_per_token(model, split, cache)
    groups, sizes, first = _groups(model), [], 0
    if len(groups) == 1:
        return [page * count for count in stages(model.num_hidden_layers, split.pipeline)]
    for count in stages(model.num_hidden_layers, split.pipeline):
        mine = range(first, first + count)
        first += count
        sizes.append(page * max(sum(layer in mine for layer in group) for group, _ in groups))
    return sizes


def blocks_per_request(model: Architecture, split: Split, cache: Cache, length: int) -> int:
    """Blocks of a request of `length` tokens, over all groups (kv_cache_utils.py:1061)."""
    full = ceil(ceil(length / split.context) / cache.block_size)
    return sum(
        _window_blocks(model.window or 0, length, cache) if windowed else full
        for _, windowed in _groups(model)
    )


def capacity(
    model: Architecture, split: Split, cache: Cache, available: Sequence[int], length: int
) -> Capacity:
    """The cache in `available` bytes on a worker of each stage, for requests of `length`.

    In floating point, as vLLM does it: its number of tokens may be one below the exact one.
    """
    sizes = block_bytes(model, split, cache)
    blocks = min(max(0, have) // size for have, size in zip(available, sizes, strict=True))
    concurrency = blocks / blocks_per_request(model, split, cache, length)
    return Capacity(blocks, int(concurrency * length), concurrency)


def longest(model: Architecture, split: Split, cache: Cache, available: Sequence[int], limit: int) -> int:
    """The longest request, up to `limit` tokens, that vLLM would start with; 0 when none.

    One block is vLLM's own (the null block), and is not there for requests.
    """
    blocks = capacity(model, split, cache, available, 1).blocks
    return largest(limit, lambda length: blocks_per_request(model, split, cache, length) < blocks)


def needed(model: Architecture, split: Split, cache: Cache, length: int, requests: int = 1) -> list[int]:
    """Bytes that a worker of each stage must have for so many requests of that length."""
    blocks = requests * blocks_per_request(model, split, cache, length) + 1
    return [blocks * size for size in block_bytes(model, split, cache)]


def largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `limit` that fits; what is smaller than one that fits does too."""
    if fits(limit):  # as it most often does
        return limit
    low, high = 0, limit - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


@lru_cache(maxsize=64)
def _groups(model: Architecture) -> list[tuple[tuple[int, ...], bool]]:
    """(layers, whether windowed) of each group (kv_cache_planning.py:521).

    Layers of one kind are cut into groups as large as the smaller kind, or as the larger
    one when that is less than half as much again.
    """
    windowed = model.windowed_layers
    full = tuple(layer for layer in range(model.num_hidden_layers) if layer not in set(windowed))
    kinds = [(layers, is_windowed) for layers, is_windowed in ((windowed, True), (full, False)) if layers]
    least, most = min(len(layers) for layers, _ in kinds), max(len(layers) for layers, _ in kinds)
    size = most if most < 1.5 * least else least
    return [
        (layers[index :: ceil(len(layers) / size)], is_windowed)
        for layers, is_windowed in kinds
        for index in range(ceil(len(layers) / size))
    ]


def _window_blocks(window: int, length: int, cache: Cache) -> int:
    """Blocks of a request in a group with a sliding window (kv_cache_interface.py)."""
    return ceil(min(window - 1 + cache.batches * cache.batched, length) / cache.block_size) + 1


def number_bytes(dtype: str, kv_cache_dtype: str) -> int:
    """Bytes of a cached number for vLLM's --dtype and --kv-cache-dtype."""
    if kv_cache_dtype == "auto":
        return BYTES[dtype]
    if kv_cache_dtype not in CACHE_BYTES:
        raise ModelError(f"kv-cache-dtype is {kv_cache_dtype!r}: must be auto, {', '.join(CACHE_BYTES)}")
    return CACHE_BYTES[kv_cache_dtype]
