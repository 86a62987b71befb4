"""A model's config.json, read as vLLM's classes read it.

What a class fills in that its config.json leaves out is transformers' rule for that class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .architecture import Architecture, Dtype, Experts, Format, Latent, Quantization
from .errors import ModelError

Config = Mapping[str, Any]

#: Classes whose tensors models/weights.py lists, as vLLM 0.32 builds them.
KINDS = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "GptOssForCausalLM",
)

#: No model is near these; beyond them listing its tensors would take for ever.
MOST = {"num_hidden_layers": 10_000, "num_attention_heads": 100_000}


def read(config: Config) -> Architecture:
    """The architecture in a config.json; ModelError names what is missing or of a wrong kind."""
    names = config.get("architectures")
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise ModelError("config.json has no architectures: is it a model's?")
    kind = str(names[0])
    heads = _number(config, "num_attention_heads")
    hidden = _number(config, "hidden_size")
    layers = _number(config, "num_hidden_layers")
    windowed = _windowed(kind, config, layers)
    # As vllm/model_executor/models has it: some fields are only Llama's; Qwen2 and GptOss have
    # biases without saying so, and Qwen2 no head_dim of its own.
    llama = kind in ("LlamaForCausalLM", "MistralForCausalLM")
    bias = bool(config.get("attention_bias") or (llama and config.get("bias"))) or kind.startswith("GptOss")
    head_dim = None if kind.startswith("Qwen2") else config.get("head_dim")
    return Architecture(
        kind=kind,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=_number(config, "intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=_number(config, "num_key_value_heads", heads),
        head_dim=_whole("head_dim", (hidden // heads if heads else 0) if head_dim is None else head_dim),
        vocab_size=_number(config, "vocab_size"),
        max_position_embeddings=_number(config, "max_position_embeddings"),
        dtype=_dtype(config),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=kind.startswith("Qwen2") or bool(config.get("qkv_bias", bias) if llama else bias),
        o_bias=not kind.startswith("Qwen") and bias,
        mlp_bias=llama and bool(config.get("mlp_bias", False)),
        qk_norm=kind.startswith("Qwen3"),
        sinks=kind.startswith("GptOss"),
        window=_number(config, "sliding_window") if windowed else None,
        windowed_layers=windowed,
        experts=_experts(kind, config, layers),
        latent=_latent(config),
        quantization=_quantization(_object(config, "quantization_config")),
    )


def _experts(kind: str, config: Config, layers: int) -> Experts | None:
    count = config.get("n_routed_experts") or config.get("num_experts") or config.get("num_local_experts")
    if not count:
        return None
    own = _number(config, "moe_intermediate_size", _number(config, "intermediate_size"))
    gated = _number(config, "shared_expert_intermediate_size", 0)
    return Experts(
        count=_whole("the number of experts", count),
        per_token=_number(config, "num_experts_per_tok"),
        intermediate_size=own,
        shared_intermediate_size=gated or _number(config, "n_shared_experts", 0) * own,
        shared_gate=gated > 0,
        dense_layers=_dense(config, layers),
        correction_bias=config.get("topk_method") == "noaux_tc",
        bias=kind.startswith("GptOss"),
    )


def _dense(config: Config, layers: int) -> tuple[int, ...]:
    """Layers without experts (models/deepseek_v2.py:1293, models/qwen3_moe.py:389)."""
    first, frequency = _number(config, "first_k_dense_replace", 0), _number(config, "moe_layer_freq", 1)
    step, named = _number(config, "decoder_sparse_step", 1), _list(config, "mlp_only_layers")
    if not frequency or not step:
        raise ModelError("moe_layer_freq and decoder_sparse_step must be at least 1")
    return tuple(
        layer
        for layer in range(layers)
        if layer < first or layer % frequency or (layer + 1) % step or layer in named
    )


def _latent(config: Config) -> Latent | None:
    if not config.get("kv_lora_rank"):
        return None
    return Latent(
        q_lora_rank=_number(config, "q_lora_rank") if config.get("q_lora_rank") else None,
        kv_lora_rank=_number(config, "kv_lora_rank"),
        qk_nope_head_dim=_number(config, "qk_nope_head_dim"),
        qk_rope_head_dim=_number(config, "qk_rope_head_dim"),
        v_head_dim=_number(config, "v_head_dim"),
    )


def _windowed(kind: str, config: Config, layers: int) -> tuple[int, ...]:
    """The layers with a sliding window; a window that config.json switches off is none."""
    if not config.get("sliding_window"):
        return ()
    if kind.startswith("GptOss"):  # models/gpt_oss.py:176
        return tuple(range(0, layers, 2))
    kinds = _list(config, "layer_types")
    if kinds:
        if len(kinds) != layers:
            raise ModelError(f"layer_types has {len(kinds)} entries for {layers} layers")
        return tuple(index for index, kind in enumerate(kinds) if kind == "sliding_attention")
    # transformers' Qwen classes have none unless told, Mistral has it in every layer.
    used = config.get("use_sliding_window", not kind.startswith("Qwen"))
    return tuple(range(layers)) if used else ()


def _quantization(given: Config) -> Quantization:
    if not given:
        return Quantization()
    method = str(given.get("quant_method", ""))
    ignored = tuple(map(str, _list(given, "modules_to_not_convert") or _list(given, "ignore")))
    for rule in ignored:
        try:
            re.compile(rule[3:] if rule.startswith("re:") else "")
        except re.error as error:
            raise ModelError(f"quantization_config: {rule!r} is no pattern: {error}") from None
    how: Format | None = None
    if method == "fp8":
        how = "fp8_block" if given.get("weight_block_size") else "fp8_tensor"
        if how == "fp8_block" and list(_list(given, "weight_block_size")) != [128, 128]:
            raise ModelError(f"fp8 blocks of {given['weight_block_size']}: only [128, 128] is known")
    elif method == "fbgemm_fp8":
        how = "fp8_channel"
    elif method == "mxfp4":
        how = "mxfp4"
    elif method == "compressed-tensors":
        groups = _object(given, "config_groups")
        weights = [_object(_object(groups, name), "weights") for name in groups]
        if weights and all(w.get("num_bits") == 8 and w.get("type") == "float" for w in weights):
            strategies = {w.get("strategy") for w in weights}
            how = "fp8_channel" if strategies == {"channel"} else "fp8_tensor"
    if how is None:
        raise ModelError(f"quantization {method!r} is not known; known are fp8, fbgemm_fp8, "
                         "compressed-tensors with 8-bit floats, mxfp4")  # fmt: skip
    return Quantization(format=how, method=method, ignored=ignored)


def _dtype(config: Config) -> Dtype:
    given = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
    for dtype in dtypes:
        if dtype == given:
            return dtype
    raise ModelError(f"dtype is {given!r}: must be {', '.join(dtypes)}")


def _number(config: Config, name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None:
        if default is None:
            raise ModelError(f"config.json has no {name}")
        return default
    return _whole(name, value)


def _object(config: Config, name: str) -> Config:
    value = config.get(name) or {}
    if not isinstance(value, Mapping):
        raise ModelError(f"{name} is {value!r}: must be an object")
    return value


def _list(config: Config, name: str) -> Sequence[Any]:
    value = config.get(name) or ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ModelError(f"{name} is {value!r}: must be a list")
    return value


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(f"{name} is {value!r}: must be a whole number")
    if value < 0:
        raise ModelError(f"{name} is {value}: must not be negative")
    if value > MOST.get(name, 10**9):
        raise ModelError(f"{name} is {value}: must be at most {MOST.get(name, 10**9)}")
    return value
