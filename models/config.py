"""A model's config.json, read as vLLM's classes read it.

What a class fills in that its config.json leaves out is transformers' rule for that class.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .architecture import Architecture, Dtype, Experts, Format, Latent, Quantization
from .errors import ModelError

Config = Mapping[str, Any]

#: Classes whose tensors models/layers.py lists, as vLLM builds them.
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

#: What transformers' configuration classes say where config.json does not.
DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "MistralForCausalLM": {"num_key_value_heads": 8, "sliding_window": 4096},
    "Qwen2ForCausalLM": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    "Qwen3ForCausalLM": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28,
                         "head_dim": 128},
    "Qwen3MoeForCausalLM": {"num_key_value_heads": 4, "sliding_window": 4096},
    "DeepseekV3ForCausalLM": {"num_key_value_heads": 128},
    "GptOssForCausalLM": {"num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128},
}  # fmt: skip

#: What a class calls its number of experts, and what transformers also takes for it.
_ROUTED = {
    "Qwen3MoeForCausalLM": ("num_experts", "num_local_experts"),
    "DeepseekV2ForCausalLM": ("n_routed_experts", "num_experts"),
    "DeepseekV3ForCausalLM": ("n_routed_experts", "num_local_experts"),
    "GptOssForCausalLM": ("num_local_experts", "num_experts"),
}

#: No model is near these; beyond them listing its tensors would take for ever.
MOST = {"num_hidden_layers": 10_000, "num_attention_heads": 100_000}


def read(config: Config) -> Architecture:
    """The architecture in a config.json; ModelError names what is missing or of a wrong kind."""
    names = config.get("architectures")
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise ModelError("config.json has no architectures: is it a model's?")
    kind = str(names[0])
    if kind not in KINDS:  # said first: other classes name their numbers otherwise
        raise ModelError(f"the memory of {kind} is not known; known are {', '.join(KINDS)}")
    config = ChainMap(config, DEFAULTS.get(kind, {}))  # type: ignore[arg-type]  # neither is written to
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
        latent=_latent(config) if kind.startswith("Deepseek") else None,
        quantization=_quantization(_object(config, "quantization_config")),
    )


#: What --quantization makes of weights that are not quantized: vllm/config/quantization.py:195;
#: fp8 is the old name of fp8_per_tensor (model_executor/model_loader/weight_utils.py:355).
ONLINE: Mapping[str, Format] = {
    "fp8": "fp8_tensor",
    "fp8_per_tensor": "fp8_tensor",
    "fp8_per_channel": "fp8_channel",
}

#: What else vLLM makes of such weights while it loads them (model_executor/layers/quantization/
#: __init__.py:43), or with a configuration of its own; their bytes are not counted. All other methods
#: are of weights that were stored so.
UNCOUNTED = ("fp8_per_block", "int8_per_channel_weight_only", "nvfp4_per_token", "mxfp8", "experts_int8",
             "torchao", "online")  # fmt: skip


def quantized(own: Architecture, asked: str) -> Architecture:
    """`own` with --quantization: FP8 for what is not quantized, or what config.json says anyway.

    Of what is in UNCOUNTED nothing is counted. vLLM takes a layer's weights, makes
    them FP8 and then takes the next one's (model_loader/reload/layerwise.py:120), so that what
    it holds is never all of them in 16 bits.
    """
    stored = own.quantization
    if stored.format != "plain":
        if asked != stored.method:  # config/model.py:1456
            raise ModelError(f"quantization is {asked}, and its weights are {stored.method}: leave it out")
        return own
    if asked in UNCOUNTED:
        return own
    if asked not in ONLINE:
        known = ", ".join((*ONLINE, *UNCOUNTED))
        raise ModelError(f"quantization is {asked}: weights that are not quantized are made {known}")
    return replace(own, quantization=Quantization(format=ONLINE[asked], method=asked, online=True))


def _experts(kind: str, config: Config, layers: int) -> Experts | None:
    """Their numbers are never guessed: transformers' defaults are those of one model of the class."""
    if kind not in _ROUTED:
        return None
    name, also = _ROUTED[kind]
    count = _positive(config, also if config.get(name) is None and config.get(also) is not None else name)
    own = _positive(config, "intermediate_size" if kind.startswith("GptOss") else "moe_intermediate_size")
    gated = _number(config, "shared_expert_intermediate_size", 0) if kind.startswith("Qwen") else 0
    chosen = _positive(config, "num_experts_per_tok")
    if chosen > count:
        raise ModelError(f"num_experts_per_tok is {chosen}, and there are {count} experts")
    return Experts(
        count=count,
        per_token=chosen,
        intermediate_size=own,
        shared_intermediate_size=_number(config, "n_shared_experts") * own
        if kind.startswith("Deepseek")
        else gated,
        shared_gate=gated > 0,
        dense_layers=_dense(kind, config, layers),
        correction_bias=config.get("topk_method") == "noaux_tc",
        bias=kind.startswith("GptOss"),
    )


def _dense(kind: str, config: Config, layers: int) -> tuple[int, ...]:
    """Layers without experts (models/deepseek_v2.py:1293, models/qwen3_moe.py:390)."""
    if kind.startswith("Deepseek"):
        first = _number(config, "first_k_dense_replace")
        frequency = _positive(config, "moe_layer_freq", 1)
        return tuple(layer for layer in range(layers) if layer < first or layer % frequency)
    if kind.startswith("GptOss"):
        return ()
    step, named = _positive(config, "decoder_sparse_step", 1), _list(config, "mlp_only_layers")
    return tuple(layer for layer in range(layers) if (layer + 1) % step or layer in named)


def _latent(config: Config) -> Latent:
    if "q_lora_rank" not in config:
        raise ModelError("config.json has no q_lora_rank")
    return Latent(
        q_lora_rank=None if config["q_lora_rank"] is None else _positive(config, "q_lora_rank"),
        kv_lora_rank=_positive(config, "kv_lora_rank"),
        qk_nope_head_dim=_positive(config, "qk_nope_head_dim"),
        qk_rope_head_dim=_positive(config, "qk_rope_head_dim"),
        v_head_dim=_positive(config, "v_head_dim"),
    )


def _windowed(kind: str, config: Config, layers: int) -> tuple[int, ...]:
    """The layers with a sliding window; a window that config.json switches off is none."""
    if not config.get("sliding_window"):
        return ()
    if kind.startswith("GptOss"):  # models/gpt_oss.py:175
        return tuple(range(0, layers, 2))
    if kind.startswith("Qwen") and not config.get("use_sliding_window"):
        return ()
    kinds = _list(config, "layer_types")
    if kinds and len(kinds) != layers:
        raise ModelError(f"layer_types has {len(kinds)} entries for {layers} layers")
    first = min(_number(config, "max_window_layers", 0), layers)  # only Qwen's
    windowed = [index for index, kind in enumerate(kinds) if kind == "sliding_attention"]
    windowed = windowed if kinds else list(range(first, layers))
    if kind.startswith("Qwen") and 0 < len(windowed) < layers:  # models/qwen2.py:351
        raise ModelError(f"a sliding window in {len(windowed)} of {layers} layers: vLLM does not serve it")
    return tuple(windowed)


#: Where each method names the modules that stay as they are; the first that is there counts.
_IGNORED = {
    "fp8": ("ignored_layers", "modules_to_not_convert"),
    "fbgemm_fp8": ("modules_to_not_convert",),
    "mxfp4": ("modules_to_not_convert",),
    "compressed-tensors": ("ignore",),
}

_STRATEGIES: Mapping[str, Format] = {"channel": "fp8_channel", "tensor": "fp8_tensor"}


def _quantization(given: Config) -> Quantization:
    if not given:
        return Quantization()
    method = str(given.get("quant_method", ""))
    named = next((name for name in _IGNORED.get(method, ()) if given.get(name)), "")
    ignored = tuple(map(str, _list(given, named)))
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
        targets = {str(one) for name in groups for one in _list(_object(groups, name), "targets")}
        strategies = {str(w.get("strategy")) for w in weights}
        if targets == {"Linear"} and all(
            w.get("num_bits") == 8 and w.get("type") == "float" for w in weights
        ):
            how = _STRATEGIES.get("".join(strategies))
    if how is None:
        raise ModelError(f"quantization {method!r} is not known; known are fp8, fbgemm_fp8, "
                         "compressed-tensors with 8-bit floats by channel or tensor, mxfp4")  # fmt: skip
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


def _positive(config: Config, name: str, default: int | None = None) -> int:
    value = _number(config, name, default)
    if value < 1:
        raise ModelError(f"{name} is {value}: must be at least 1")
    return value


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
