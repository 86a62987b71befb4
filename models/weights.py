"""The parameters that each rank holds, and their bytes.

What is listed is what a model class creates, before kernels repack it: on the GPUs of the table
the sizes stay the same, and what repacking adds (MLA's absorbed projections) is `extra_bytes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from .architecture import BYTES, Architecture, Dtype
from .layers import FP8_BLOCK, Rows, Split, Tensor, padded

__all__ = ["FP8_BLOCK", "Split", "Tensor", "extra_bytes", "padded", "parameters", "part_bytes", "stages",
           "stored_bytes", "tensors"]  # fmt: skip


def stages(layers: int, pipeline: int) -> list[int]:
    """Layers of each pipeline stage (distributed/utils.py:198).

    What is left over goes one each to the stages before the last, from the second-last
    backwards: the last one also has the head.
    """
    counts = [layers // pipeline] * pipeline
    for back in range(2, layers % pipeline + 2):
        counts[-back] += 1
    return counts


def tensors(
    model: Architecture,
    split: Split,
    stage: int = 0,
    rank: int = 0,
    dtype: Dtype | None = None,
    padding: tuple[int, int] = (1, 1),
) -> Iterator[Tensor]:
    """Every parameter of one rank of a stage.

    + rank: among the TP x DP ranks of the stage; experts may spread unevenly
    + dtype: what vLLM serves in; the model's own unless given
    + padding: of MXFP4 experts, their width and the hidden size are made multiples of this
    """
    rows = Rows(model, split, rank, dtype or model.dtype, padding)
    counts = stages(model.num_hidden_layers, split.pipeline)
    first = sum(counts[:stage])
    yield from rows.ends(is_first=stage == 0, is_last=stage == split.pipeline - 1)
    for layer in range(first, first + counts[stage]):
        yield from rows.layer(layer)


def part_bytes(
    model: Architecture, split: Split, stage: int, dtype: Dtype, padding: tuple[int, int] = (1, 1)
) -> Counter[str]:
    """The bytes of `tensors` by part, of the rank with most; layers that are alike are counted once."""
    rows, kinds = Rows(model, split, 0, dtype, padding), layer_kinds(model)
    of_a_rank = replace(split, pipeline=1, context=1)
    counts = stages(model.num_hidden_layers, split.pipeline)
    first = sum(counts[:stage])
    alike = Counter(kinds[first : first + counts[stage]])
    parts: Counter[str] = Counter()
    for tensor in rows.ends(is_first=stage == 0, is_last=stage == split.pipeline - 1):
        parts[tensor.part] += tensor.bytes
    for layer, times in alike.items():
        for part, size in _layer_bytes(model, of_a_rank, layer, dtype, padding):
            parts[part] += times * size
    return parts


@lru_cache(maxsize=512)
def _layer_bytes(
    model: Architecture, split: Split, layer: int, dtype: Dtype, padding: tuple[int, int]
) -> tuple[tuple[str, int], ...]:
    """The bytes of a layer by part: the same in every stage and for every number of stages."""
    parts: Counter[str] = Counter()
    for tensor in Rows(model, split, 0, dtype, padding).layer(layer):
        parts[tensor.part] += tensor.bytes
    return tuple(parts.items())


@lru_cache(maxsize=64)
def layer_kinds(model: Architecture) -> tuple[int, ...]:
    """For each layer the first one that has the same tensors: what is quantized differs, too."""
    first: dict[tuple[object, ...], int] = {}
    kinds = []
    for layer in range(model.num_hidden_layers):
        shapes = tuple(model.quantization.of(f"model.layers.{layer}.{name}") for name in _QUANTIZED)
        kinds.append(first.setdefault((model.has_experts(layer), *shapes), layer))
    return tuple(kinds)


#: Modules of a layer that a quantization may leave as they are.
_QUANTIZED = (
    *(f"self_attn.{name}" for name in ("q_proj", "o_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa",
                                       "kv_b_proj")),
    "mlp.gate_proj", "mlp.down_proj", "mlp.experts", "mlp.shared_experts.gate_proj",
    "mlp.shared_experts.down_proj",
)  # fmt: skip


def stored_bytes(model: Architecture) -> int:
    """The bytes of the model's files, as good as all of which are parameters."""
    return sum(part_bytes(model, Split(), 0, model.dtype).values())


def parameters(model: Architecture) -> int:
    """How many numbers the model has: its own, without scales and padding."""
    shapes = Rows(model, Split(), 0, model.dtype)
    shapes.vocabulary = model.vocab_size
    yielded = [*shapes.ends(is_first=True, is_last=True)]
    for layer in range(model.num_hidden_layers):
        yielded += shapes.layer(layer)
    doubled = 2 if model.quantization.format == "mxfp4" else 1  # two numbers a byte
    return sum(
        tensor.count * (doubled if tensor.dtype == "uint8" else 1)
        for tensor in yielded
        if not tensor.name.endswith("scale")
    )


def extra_bytes(model: Architecture, split: Split, stage: int = 0) -> int:
    """What vLLM keeps besides the parameters once kernels are prepared.

    MLA of a quantized model: kv_b_proj once more, unquantized and absorbed into W_UK_T and
    W_UV (attention/mla_attention.py:1345); of an unquantized one these are views.
    """
    own = model.latent
    if own is None or model.quantization.format == "plain":
        return 0
    layers = stages(model.num_hidden_layers, split.pipeline)[stage]
    heads = model.num_attention_heads // split.tensor
    numbers = heads * own.kv_lora_rank * (own.qk_nope_head_dim + own.v_head_dim)
    return layers * numbers * BYTES[model.dtype]
