"""Which splits vLLM can start a model with. Each rule names where vLLM has it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from .architecture import Architecture
from .errors import PlanError
from .weights import FP8_BLOCK, Split, padded, stages


def check(name: str, model: Architecture, split: Split) -> None:
    """Raise PlanError, with what would work, for a split that vLLM would refuse."""
    wrong = problem(model, split)
    if wrong:
        raise PlanError(f"{name}: {wrong}")


@lru_cache(maxsize=64)
def valid_tensor_parallel(model: Architecture, expert: bool = False) -> tuple[int, ...]:
    """Every TP size that vLLM starts this model with."""
    sizes = range(1, model.num_attention_heads + 1)
    return tuple(tp for tp in sizes if not _tensor_problem(model, Split(tp, expert=expert)))


def problem(model: Architecture, split: Split) -> str | None:
    """Why vLLM would refuse the split, and what would work; None when it would not."""
    if min(split.tensor, split.pipeline, split.data, split.context) < 1:
        return f"TP {split.tensor} x PP {split.pipeline}: both must be at least 1"
    reason = _tensor_problem(model, split)
    if reason:
        works = valid_tensor_parallel(model, split.expert)
        return f"TP {split.tensor} {reason}; TP can be {_spoken(works)} (set tensor_parallel)"
    return _pipeline_problem(model, split) or _expert_problem(model, split) or _context_problem(model, split)


def _tensor_problem(model: Architecture, split: Split) -> str | None:
    tp, heads, kv = split.tensor, model.num_attention_heads, model.num_key_value_heads
    # config/model.py:1559; key-value heads are divided or copied, never split (linear.py:1068).
    shared = model.latent is not None or kv % tp == 0 or tp % kv == 0
    if heads % tp or not shared:
        return f"does not divide {heads} attention heads and {kv} key-value heads"
    if model.kind.startswith("GptOss") and kv % tp:  # models/gpt_oss.py:134
        return f"is more than {kv} key-value heads, which this class cannot copy"
    if padded(model.vocab_size) % tp:  # vocab_parallel_embedding.py
        return f"does not divide the vocabulary, padded to {padded(model.vocab_size)}"
    for what, width, ranks in _widths(model, split):
        if width % ranks:
            return f"does not divide the {width} columns of the {what} over {ranks} ranks"
        # quantization/utils/fp8_utils.py:1318: a rank's part is whole blocks.
        if model.quantization.format == "fp8_block" and ranks > 1 and width // ranks % FP8_BLOCK:
            part = f"{width // ranks} of the {width} columns of the {what}"
            return f"leaves {part} to a rank, which is not whole FP8 blocks of {FP8_BLOCK}"
    return None


def _widths(model: Architecture, split: Split) -> list[tuple[str, int, int]]:
    """(what, its columns, over how many ranks they are cut)."""
    tp, experts = split.tensor, model.experts
    widths = []
    if model.latent and model.quantization.format == "fp8_block":
        own = model.latent
        widths.append(
            ("queries", model.num_attention_heads * (own.qk_nope_head_dim + own.qk_rope_head_dim), tp)
        )
        widths.append(
            ("keys and values", model.num_attention_heads * (own.qk_nope_head_dim + own.v_head_dim), tp)
        )
    values = model.latent.v_head_dim if model.latent else model.head_dim
    widths.append(("attention output", model.num_attention_heads * values, tp))
    if experts is None or experts.dense_layers:
        widths.append(("MLP", model.intermediate_size, tp))
    if experts and not split.expert:
        widths.append(("experts", experts.intermediate_size, split.expert_ranks))
    if experts and experts.shared_intermediate_size and not (split.expert and split.data > 1):
        widths.append(("shared experts", experts.shared_intermediate_size, tp))
    return widths


def _pipeline_problem(model: Architecture, split: Split) -> str | None:
    if split.pipeline > model.num_hidden_layers:
        return (
            f"PP {split.pipeline} is more than its {model.num_hidden_layers} layers; "
            f"PP can be 1 to {model.num_hidden_layers} (set pipeline_parallel)"
        )
    if model.kind == "GptOssForCausalLM" and model.intermediate_size % split.gpus:  # models/gpt_oss.py:389
        return (
            f"{split.gpus} ranks do not divide its {model.intermediate_size} columns, which this class asks "
            "(set pipeline_parallel)"
        )
    return None


def _expert_problem(model: Architecture, split: Split) -> str | None:
    if split.expert and model.experts is None:  # config/model.py:1498
        return "it has no experts to spread: leave enable-expert-parallel out"
    if model.experts and split.expert and split.expert_ranks > model.experts.count:
        return f"{model.experts.count} experts do not spread over {split.expert_ranks} ranks"
    if model.kind == "Qwen3MoeForCausalLM" and model.experts:  # models/qwen3_moe.py:607
        if split.tensor > model.experts.count:
            return f"TP {split.tensor} is more than its {model.experts.count} experts"
        first = 0
        for count in stages(model.num_hidden_layers, split.pipeline):
            if not any(model.has_experts(layer) for layer in range(first, first + count)):
                return f"PP {split.pipeline} leaves a stage without experts (set pipeline_parallel)"
            first += count
    if split.data > 1 and model.experts is None:  # engine/arg_utils.py:2456
        return "data parallelism inside a replica is for models with experts: use replicas"
    return None


def _context_problem(model: Architecture, split: Split) -> str | None:
    """config/parallel.py:599, config/model.py:1578."""
    dcp, tp, kv = split.context, split.tensor, model.num_key_value_heads
    if dcp == 1:
        return None
    if tp % dcp:
        return f"DCP {dcp} does not divide TP {tp}"
    if model.windowed_layers:
        return "layers with a sliding window know no DCP"
    if model.latent is None and (tp <= kv or dcp > tp // kv or model.num_attention_heads // kv % dcp):
        return f"DCP {dcp} needs TP of at least {dcp * kv}: {kv} key-value heads, each copied so many times"
    return None


def context_sizes(model: Architecture, tensor: int) -> list[int]:
    """Every DCP size beyond 1 for that TP."""
    return [size for size in range(2, tensor + 1) if not _context_problem(model, Split(tensor, context=size))]


def _spoken(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
