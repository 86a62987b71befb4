"""Tiny models of every class that the planner knows, and how they are split to be measured."""

from __future__ import annotations

from typing import Any

_COMMON = {
    "num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "vocab_size": 512, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip

LLAMA = {**_COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
QWEN2 = {**_COMMON, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
QWEN3_MOE = {
    **_COMMON, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 64,
    "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "norm_topk_prob": True,
}  # fmt: skip
DEEPSEEK = {
    **_COMMON, "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "num_key_value_heads": 4, "q_lora_rank": 96, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 64, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "n_group": 2, "topk_group": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
    "norm_topk_prob": True, "routed_scaling_factor": 2.5,
}  # fmt: skip
GPT_OSS = {
    **_COMMON, "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "head_dim": 64,
    "intermediate_size": 128, "num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True,
    "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 2, "swiglu_limit": 7.0,
    "rope_theta": 150000, "rope_scaling": {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}  # fmt: skip

#: What each is there for: (config.json, TP, PP, EP, --quantization).
CASES: dict[str, tuple[dict[str, Any], int, int, bool, str | None]] = {
    "uneven pipeline stages": ({**LLAMA, "num_hidden_layers": 5}, 1, 2, False, None),
    "copied key-value heads": ({**LLAMA, "num_key_value_heads": 1}, 2, 1, False, None),
    "MLA and shared experts": (DEEPSEEK, 2, 1, False, None),
    "MLA over pipeline stages": (DEEPSEEK, 1, 2, False, None),
    "experts, cut": (QWEN3_MOE, 2, 1, False, None),
    "experts, spread unevenly": (QWEN3_MOE, 2, 1, True, None),
    "tied embeddings": ({**LLAMA, "tie_word_embeddings": True}, 2, 2, False, None),
    "padded vocabulary and biases": ({**QWEN2, "vocab_size": 500}, 2, 1, False, None),
    "sliding windows and sinks": (GPT_OSS, 1, 2, False, None),
    "FP8 while loading": (LLAMA, 2, 1, False, "fp8_per_tensor"),
    "FP8 while loading, by its old name, and biases": (QWEN2, 2, 1, False, "fp8"),
    "FP8 while loading, of experts": (QWEN3_MOE, 2, 1, True, "fp8_per_tensor"),
    "FP8 while loading, of MLA": (DEEPSEEK, 2, 1, False, "fp8_per_tensor"),
    "FP8 while loading, sinks": (GPT_OSS, 1, 1, False, "fp8_per_tensor"),
}
