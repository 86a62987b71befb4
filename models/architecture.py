"""What a model is made of: the numbers that its size and its splits follow from.

Field names are config.json's own where it has one; models/config.py reads it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .errors import ModelError

Dtype = Literal["float32", "bfloat16", "float16"]
Format = Literal["plain", "fp8_block", "fp8_channel", "fp8_tensor", "mxfp4"]

#: Bytes of one number.
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "uint8": 1}


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The mixture-of-experts layers of a model."""

    count: int  # routed experts of a layer
    per_token: int
    intermediate_size: int
    shared_intermediate_size: int = 0  # of the experts that every token takes; 0: none
    shared_gate: bool = False
    dense_layers: tuple[int, ...] = ()  # those with an MLP instead
    correction_bias: bool = False
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Multi-head latent attention (MLA): keys and values are kept compressed."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    @property
    def cached(self) -> int:
        """Numbers kept in the KV cache for a token and layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How the weights of linear layers are stored, and which are left as they are."""

    format: Format = "plain"
    method: str = ""  # quantization_config's own quant_method, or --quantization
    online: bool = False  # made by vLLM while it loads weights that are not quantized
    ignored: tuple[str, ...] = ()  # module names, or "re:" and a pattern

    def of(self, module: str) -> Format:
        return "plain" if any(_matches(rule, module) for rule in self.ignored) else self.format


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The numbers that decide how large a model is and how it can be split."""

    kind: str  # architectures[0]: the class that vLLM loads
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    dtype: Dtype = "bfloat16"
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    window: int | None = None  # tokens that a layer with a sliding window looks back
    windowed_layers: tuple[int, ...] = ()
    experts: Experts | None = None
    latent: Latent | None = None
    quantization: Quantization = Quantization()

    def __post_init__(self) -> None:
        for name in _COUNTED:
            if getattr(self, name) < 1:
                raise ModelError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"{self.num_attention_heads} attention heads do not divide among "
                f"{self.num_key_value_heads} key-value heads"
            )

    def has_experts(self, layer: int) -> bool:
        return self.experts is not None and layer not in self.experts.dense_layers


_COUNTED = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings",
)  # fmt: skip


def _matches(rule: str, module: str) -> bool:
    """A pattern need only match the beginning, as in compressed_tensors' own match."""
    if rule.startswith("re:"):
        return re.match(rule[3:], module) is not None
    return module == rule
