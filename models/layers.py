"""The tensors of one rank's layers, and of a stage's ends, as vLLM 0.32 and 0.33 create them.

Rules are read from vLLM's source; paths below are relative to vllm/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod

from .architecture import BYTES, Architecture, Dtype, Experts, Format, Latent

#: vocab_parallel_embedding.py:36: vocabularies are padded to a multiple of this.
VOCABULARY_PADDING = 64
FP8_BLOCK = 128
MXFP4_BLOCK = 32

#: Classes whose embeddings, final norm and head are on every pipeline stage
#: (models/qwen3_moe.py:468, models/gpt_oss.py:486).
ENDS_EVERYWHERE = ("Qwen3MoeForCausalLM", "GptOssForCausalLM")


@dataclass(frozen=True)
class Split:
    """How one replica is split. Ranks are counted TP fastest, then DP, then PP."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: bool = False  # experts are spread whole over DP x TP, not cut
    context: int = 1  # decode context parallelism: KV over TP ranks, no GPUs of its own

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def expert_ranks(self) -> int:
        """Ranks that the experts of a layer are spread over (fused_moe/config.py:1117)."""
        return self.tensor * self.data


@dataclass(frozen=True)
class Tensor:
    """A parameter of one rank."""

    part: str  # what a memory table calls it
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * BYTES[self.dtype]


def padded(vocabulary: int) -> int:
    return _up(vocabulary, VOCABULARY_PADDING)


class Rows:
    """The tensors of one rank's layers and ends."""

    def __init__(
        self, model: Architecture, split: Split, rank: int, dtype: Dtype, padding: tuple[int, int] = (1, 1)
    ) -> None:
        self.model, self.split, self.rank, self.dtype, self.padding = model, split, rank, dtype, padding
        self.vocabulary = padded(model.vocab_size)

    def ends(self, is_first: bool, is_last: bool) -> Iterator[Tensor]:
        """Embedding, final norm and head, where this stage has them."""
        model, tp = self.model, self.split.tensor
        everywhere = model.kind in ENDS_EVERYWHERE
        tied = model.tie_word_embeddings and not model.kind.startswith(("Deepseek", "GptOss"))
        table = (self.vocabulary // tp, model.hidden_size)
        if is_first or everywhere or (is_last and tied):
            yield Tensor("embedding", "embed_tokens.weight", table, self.dtype)
        if is_last or everywhere:
            yield self._norm("norm")
            if not tied:
                yield Tensor("head", "lm_head.weight", table, self.dtype)

    def layer(self, index: int) -> Iterator[Tensor]:
        model, prefix = self.model, f"model.layers.{index}"
        yield from self._latent(prefix, model.latent) if model.latent else self._attention(prefix)
        if model.experts and model.has_experts(index):
            yield from self._experts(prefix, model.experts)
        else:
            yield from self._mlp(f"{prefix}.mlp", "mlp", model.intermediate_size, model.mlp_bias)
        yield self._norm(f"{prefix}.input_layernorm")
        yield self._norm(f"{prefix}.post_attention_layernorm")

    def _attention(self, prefix: str) -> Iterator[Tensor]:
        model, tp = self.model, self.split.tensor
        heads = model.num_attention_heads // tp
        kv = max(1, model.num_key_value_heads // tp)  # replicated beyond (linear.py:1066)
        name = f"{prefix}.self_attn"
        width = (heads + 2 * kv) * model.head_dim
        yield from self._linear("attention", f"{name}.qkv_proj", model.hidden_size, width,
                                shards=("q_proj", "k_proj", "v_proj"))  # fmt: skip
        if model.qkv_bias:
            yield Tensor("attention", f"{name}.qkv_proj.bias", (width,), self.dtype)
        yield from self._linear("attention", f"{name}.o_proj", heads * model.head_dim, model.hidden_size)
        if model.o_bias:  # whole on every rank (linear.py:1757)
            yield Tensor("attention", f"{name}.o_proj.bias", (model.hidden_size,), self.dtype)
        if model.qk_norm:
            yield self._norm(f"{name}.q_norm", model.head_dim)
            yield self._norm(f"{name}.k_norm", model.head_dim)
        if model.sinks:
            yield Tensor("attention", f"{name}.sinks", (heads,), self.dtype)

    def _latent(self, prefix: str, own: Latent) -> Iterator[Tensor]:
        """Multi-head latent attention (models/deepseek_v2.py:1040)."""
        model, name = self.model, f"{prefix}.self_attn"
        heads = model.num_attention_heads // self.split.tensor
        queries = heads * (own.qk_nope_head_dim + own.qk_rope_head_dim)
        values = heads * (own.qk_nope_head_dim + own.v_head_dim)
        if own.q_lora_rank:
            down = own.q_lora_rank + own.cached
            yield from self._linear("attention", f"{name}.fused_qkv_a_proj", model.hidden_size, down,
                                    shards=("q_a_proj", "kv_a_proj_with_mqa"))  # fmt: skip
            yield self._norm(f"{name}.q_a_layernorm", own.q_lora_rank)
            yield from self._linear("attention", f"{name}.q_b_proj", own.q_lora_rank, queries)
        else:
            yield from self._linear("attention", f"{name}.kv_a_proj_with_mqa", model.hidden_size, own.cached)
            yield from self._linear("attention", f"{name}.q_proj", model.hidden_size, queries)
        yield self._norm(f"{name}.kv_a_layernorm", own.kv_lora_rank)
        yield from self._linear("attention", f"{name}.kv_b_proj", own.kv_lora_rank, values)
        yield from self._linear("attention", f"{name}.o_proj", heads * own.v_head_dim, model.hidden_size)

    def _mlp(self, name: str, part: str, width: int, bias: bool, tp: int | None = None) -> Iterator[Tensor]:
        hidden, own = self.model.hidden_size, width // (tp or self.split.tensor)
        yield from self._linear(
            part, f"{name}.gate_up_proj", hidden, 2 * own, shards=("gate_proj", "up_proj")
        )
        yield from self._linear(part, f"{name}.down_proj", own, hidden)
        if bias:
            yield Tensor(part, f"{name}.gate_up_proj.bias", (2 * own,), self.dtype)
            yield Tensor(part, f"{name}.down_proj.bias", (hidden,), self.dtype)

    def _experts(self, prefix: str, own: Experts) -> Iterator[Tensor]:
        hidden, name = self.model.hidden_size, f"{prefix}.mlp"
        if self.model.quantization.online and self.model.kind.startswith("Qwen"):  # models/qwen3_moe.py:170
            yield from self._linear("router", f"{name}.gate", hidden, own.count)
        else:
            yield Tensor("router", f"{name}.gate.weight", (own.count, hidden), self.dtype)
        if own.bias:
            yield Tensor("router", f"{name}.gate.bias", (own.count,), self.dtype)
        if own.correction_bias:
            yield Tensor("router", f"{name}.gate.e_score_correction_bias", (own.count,), "float32")
        count, width = self._share(own)
        if self.model.quantization.of(f"{name}.experts") == "mxfp4":
            width, hidden = _up(width, self.padding[0]), _up(hidden, self.padding[1])
            yield from self._mxfp4(f"{name}.experts", count, width)
        else:
            yield from self._stack(f"{name}.experts.w13", count, 2 * width, hidden, halves=2)
            yield from self._stack(f"{name}.experts.w2", count, hidden, width)
        if own.bias:
            yield Tensor("experts", f"{name}.experts.w13_bias", (count, 2 * width), self.dtype)
            yield Tensor("experts", f"{name}.experts.w2_bias", (count, hidden), self.dtype)
        if own.shared_intermediate_size:
            # With experts over several DP ranks the shared ones are whole on each
            # (config/parallel.py:768, use_sequence_parallel_moe).
            split = self.split
            whole = split.expert and split.tensor > 1 and split.data > 1 and not own.shared_gate
            yield from self._mlp(f"{name}.shared_experts", "shared experts", own.shared_intermediate_size,
                                 bias=False, tp=1 if whole else None)  # fmt: skip
            if own.shared_gate:
                yield Tensor("router", f"{name}.shared_expert_gate.weight", (1, hidden), self.dtype)

    def _share(self, own: Experts) -> tuple[int, int]:
        """Experts of this rank and their width (fused_moe/expert_map_manager.py:22)."""
        ranks = self.split.expert_ranks
        if not self.split.expert:
            return own.count, own.intermediate_size // ranks
        base, left = divmod(own.count, ranks)
        return base + (self.rank < left), own.intermediate_size

    def _stack(self, name: str, count: int, rows: int, columns: int, halves: int = 1) -> Iterator[Tensor]:
        """One tensor of all experts of this rank, with its scales (quantization/fp8.py:620)."""
        how = self.model.quantization.of(name.rpartition(".")[0])
        yield Tensor("experts", f"{name}_weight", (count, rows, columns), _stored(how, self.dtype))
        if how == "fp8_block":
            blocks = (count, halves * ceil(rows // halves / FP8_BLOCK), ceil(columns / FP8_BLOCK))
            yield Tensor("experts", f"{name}_weight_scale", blocks, "float32")
        elif how == "fp8_channel":
            yield Tensor("experts", f"{name}_weight_scale", (count, rows, 1), "float32")
        elif how == "fp8_tensor":
            scales = (count,) if self.model.quantization.online else (count, halves)
            yield Tensor("experts", f"{name}_weight_scale", scales, "float32")

    def _mxfp4(self, name: str, count: int, width: int) -> Iterator[Tensor]:
        """Two numbers a byte and a scale for 32 of them (quantization/mxfp4.py:200)."""
        hidden = _up(self.model.hidden_size, self.padding[1])
        for which, rows, columns in (("w13", 2 * width, hidden), ("w2", hidden, width)):
            yield Tensor("experts", f"{name}.{which}_weight", (count, rows, columns // 2), "uint8")
            scales = (count, rows, ceil(columns / MXFP4_BLOCK))
            yield Tensor("experts", f"{name}.{which}_weight_scale", scales, "uint8")

    def _linear(
        self, part: str, name: str, inputs: int, outputs: int, shards: tuple[str, ...] = ()
    ) -> Iterator[Tensor]:
        """A linear layer as this rank has it, with its scales.

        `shards` are config.json's names of the modules that vLLM fuses into it.
        """
        how = self._format(name, shards)
        yield Tensor(part, f"{name}.weight", (outputs, inputs), _stored(how, self.dtype))
        if how == "fp8_block":
            blocks = (ceil(outputs / FP8_BLOCK), ceil(inputs / FP8_BLOCK))
            yield Tensor(part, f"{name}.weight_scale", blocks, "float32")
        elif how == "fp8_channel":
            yield Tensor(part, f"{name}.weight_scale", (outputs, 1), "float32")
        elif how == "fp8_tensor":
            online = self.model.quantization.online  # one for what is fused (online/fp8.py:242)
            yield Tensor(part, f"{name}.weight_scale", (1 if online else max(1, len(shards)),), "float32")

    def _format(self, name: str, shards: tuple[str, ...]) -> Format:
        quantization = self.model.quantization
        if quantization.format == "mxfp4":
            return "plain"  # of gpt-oss only the experts are quantized
        parent = name.rpartition(".")[0]
        names = [f"{parent}.{shard}" for shard in shards] or [name]
        return quantization.of(names[0])

    def _norm(self, name: str, size: int | None = None) -> Tensor:
        return Tensor("norms", f"{name}.weight", (size or self.model.hidden_size,), self.dtype)


def _up(size: int, multiple: int) -> int:
    return ceil(size / multiple) * multiple


def _stored(how: Format, dtype: Dtype) -> str:
    return dtype if how == "plain" else "float8_e4m3fn"
