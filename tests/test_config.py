"""What a config.json says, read as vLLM's model classes read it."""

import pytest

import models
from models.config import MOST, quantized, read
from models.errors import ModelError

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 6, "hidden_size": 256,
    "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 1000, "max_position_embeddings": 4096,
}  # fmt: skip
MOE = {**LLAMA, "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 2,
       "moe_intermediate_size": 128}  # fmt: skip
DEEPSEEK = {**LLAMA, "architectures": ["DeepseekV3ForCausalLM"], "n_routed_experts": 8,
            "n_shared_experts": 0, "num_experts_per_tok": 2, "moe_intermediate_size": 128,
            "first_k_dense_replace": 0, "q_lora_rank": None, "kv_lora_rank": 512,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}  # fmt: skip
GPT_OSS = {**LLAMA, "architectures": ["GptOssForCausalLM"], "num_local_experts": 4,
           "num_experts_per_tok": 2, "sliding_window": 128}  # fmt: skip


QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 4096}


def of(kind, **fields):
    return {**LLAMA, "architectures": [kind], **fields}


def test_what_llama_leaves_out_is_filled_in_as_its_class_does():
    own = read({key: value for key, value in LLAMA.items() if key != "num_key_value_heads"})
    assert (own.num_key_value_heads, own.head_dim, own.dtype) == (8, 32, "bfloat16")
    assert not own.tie_word_embeddings and own.experts is None and own.latent is None
    assert own.quantization.format == "plain" and own.windowed_layers == ()


@pytest.mark.parametrize(
    ("config", "heads", "head_dim"),
    [
        (LLAMA, 8, 32),
        ({**LLAMA, "architectures": ["MistralForCausalLM"], "sliding_window": None}, 8, 32),
        ({**LLAMA, "architectures": ["Qwen2ForCausalLM"], "num_attention_heads": 32}, 32, 8),
        ({**LLAMA, "architectures": ["Qwen3ForCausalLM"], "num_attention_heads": 32}, 32, 128),
        (MOE, 4, 32),
        ({**DEEPSEEK, "architectures": ["DeepseekV2ForCausalLM"]}, 8, 32),
        ({**DEEPSEEK, "num_attention_heads": 128}, 128, 2),
        (GPT_OSS, 8, 64),
    ],
)
def test_heads_that_are_left_out_are_those_of_transformers_class(config, heads, head_dim):
    """Its configuration classes; test_lab_vllm.py asks them."""
    own = read({key: value for key, value in config.items() if key != "num_key_value_heads"})
    assert (own.num_key_value_heads, own.head_dim) == (heads, head_dim)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        *((DEEPSEEK, key) for key in DEEPSEEK if key not in {*LLAMA, "topk_method"}),
        *(({**DEEPSEEK, "architectures": ["DeepseekV2ForCausalLM"]}, key)
          for key in ("kv_lora_rank", "qk_rope_head_dim", "n_routed_experts")),
        (MOE, "num_experts"),
        (MOE, "num_experts_per_tok"),
        (MOE, "moe_intermediate_size"),
        (GPT_OSS, "num_local_experts"),
        (GPT_OSS, "num_experts_per_tok"),
    ],
)  # fmt: skip
def test_what_is_latent_and_what_experts_are_is_never_guessed(config, key):
    with pytest.raises(ModelError, match=f"^config.json has no {key}$"):
        read({name: value for name, value in config.items() if name != key})


def test_the_number_of_experts_may_have_the_name_that_transformers_also_takes():
    own = {key: value for key, value in MOE.items() if key != "num_experts"}
    assert read({**own, "num_local_experts": 16}).experts.count == 16


def test_a_token_goes_to_no_more_experts_than_there_are():
    assert read({**MOE, "num_experts": 16, "num_experts_per_tok": 16}).experts.per_token == 16
    with pytest.raises(ModelError, match="num_experts_per_tok is 17, and there are 16 experts"):
        read({**MOE, "num_experts": 16, "num_experts_per_tok": 17})


def test_what_a_class_does_not_read_changes_nothing():
    foreign = {"num_experts": 8, "kv_lora_rank": 512, "n_shared_experts": 1}
    assert read({**LLAMA, **foreign}) == read(LLAMA)


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_the_dtype_has_two_names(field):
    assert read({**LLAMA, field: "float16"}).dtype == "float16"


@pytest.mark.parametrize(
    ("kind", "fields", "qkv", "output", "mlp"),
    [
        ("LlamaForCausalLM", {}, False, False, False),
        ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}, True, True, True),
        ("LlamaForCausalLM", {"bias": True}, True, True, False),
        ("LlamaForCausalLM", {"attention_bias": True, "qkv_bias": False}, False, True, False),
        ("Qwen2ForCausalLM", {"mlp_bias": True}, True, False, False),
        ("Qwen3ForCausalLM", {"attention_bias": True}, True, False, False),
        ("GptOssForCausalLM", {}, True, True, False),
    ],
)
def test_biases_are_those_of_the_class(kind, fields, qkv, output, mlp):
    own = read({**GPT_OSS, **fields} if kind.startswith("GptOss") else of(kind, **fields))
    assert (own.qkv_bias, own.o_bias, own.mlp_bias) == (qkv, output, mlp)


def test_qwen2_has_no_head_size_of_its_own():
    assert read(of("Qwen3ForCausalLM", head_dim=128)).head_dim == 128
    assert read(of("Qwen2ForCausalLM", head_dim=128)).head_dim == 32


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (LLAMA, []),
        (MOE, [0, 1, 2, 3, 4, 5]),
        ({**MOE, "decoder_sparse_step": 2}, [1, 3, 5]),
        ({**MOE, "mlp_only_layers": [0, 5]}, [1, 2, 3, 4]),
        ({**DEEPSEEK, "first_k_dense_replace": 3}, [3, 4, 5]),
        ({**DEEPSEEK, "moe_layer_freq": 2}, [0, 2, 4]),
    ],
)
def test_experts_are_in_the_layers_that_the_class_gives_them(config, layers):
    own = read(config)
    assert [layer for layer in range(6) if own.has_experts(layer)] == layers


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({**LLAMA, "architectures": ["MistralForCausalLM"]}, 4096),
        ({key: value for key, value in GPT_OSS.items() if key != "sliding_window"}, 128),
        (LLAMA, None),
    ],
)
def test_a_window_that_is_left_out_is_that_of_transformers_class(config, window):
    assert read(config).window == window


def test_shared_experts_are_counted_or_have_a_width():
    assert read({**DEEPSEEK, "n_shared_experts": 2}).experts.shared_intermediate_size == 256
    gated = read({**MOE, "shared_expert_intermediate_size": 64}).experts
    assert gated.shared_intermediate_size == 64 and gated.shared_gate


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({**LLAMA, "architectures": ["MistralForCausalLM"], "sliding_window": 4096}, (0, 1, 2, 3, 4, 5)),
        ({**LLAMA, "architectures": ["MistralForCausalLM"], "sliding_window": None}, ()),
        ({**LLAMA, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 4096}, ()),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": 0}, (0, 1, 2, 3, 4, 5)),
        ({**QWEN2, "use_sliding_window": True}, ()),  # 28 layers are full unless it says otherwise
        ({**QWEN2, "layer_types": ["sliding_attention"] * 6}, ()),
        ({**MOE, "sliding_window": 64, "use_sliding_window": True}, (0, 1, 2, 3, 4, 5)),
        ({**MOE, "sliding_window": 64, "use_sliding_window": False}, ()),
        (GPT_OSS, (0, 2, 4)),
        (
            {**LLAMA, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"] * 3},
            (1, 3, 5),
        ),
    ],
)
def test_a_sliding_window_is_in_the_layers_that_use_it(config, layers):
    own = read(config)
    assert own.windowed_layers == layers
    assert own.window == (config["sliding_window"] if layers else None)


def compressed(targets=("Linear",), strategy="channel"):
    group = {"targets": list(targets), "weights": {"num_bits": 8, "type": "float", "strategy": strategy}}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
        ({"quant_method": "fp8"}, "fp8_tensor"),
        ({"quant_method": "fbgemm_fp8"}, "fp8_channel"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        (compressed(), "fp8_channel"),
        (models.get("llama-3.1-405b-instruct-fp8-redhat").config["quantization_config"], "fp8_tensor"),
    ],
)
def test_quantizations_are_told_apart(quantization, expected):
    assert read({**LLAMA, "quantization_config": quantization}).quantization.format == expected


@pytest.mark.parametrize(
    ("method", "key"),
    [("fp8", "modules_to_not_convert"), ("fp8", "ignored_layers"), ("fbgemm_fp8", "modules_to_not_convert"),
     ("compressed-tensors", "ignore")],
)  # fmt: skip
def test_a_module_that_is_not_converted_stays_as_it_is(method, key):
    rules = ["lm_head", r"re:model\.layers\.\d+\.self_attn"]  # compressed_tensors matches beginnings
    quantization = compressed() if method == "compressed-tensors" else {"quant_method": method}
    own = read({**LLAMA, "quantization_config": {**quantization, key: rules}})
    assert own.quantization.of("lm_head") == "plain"
    assert own.quantization.of("model.layers.3.self_attn.o_proj") == "plain"
    assert own.quantization.of("model.layers.3.mlp.down_proj") == own.quantization.format != "plain"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": "LlamaForCausalLM"}, "no architectures"),
        ({"architectures": []}, "no architectures"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"dtype": {"a": 1}}, "dtype is "),
        ({"num_hidden_layers": 10**9}, f"must be at most {MOST['num_hidden_layers']}"),
        ({"vocab_size": 10**30}, "vocab_size is .* must be at most"),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, "layer_types has 1 entries for 6 layers"),
        ({"sliding_window": 8, "layer_types": 6}, "layer_types is 6: must be a list"),
        ({"sliding_window": "x"}, "sliding_window is 'x'"),
        ({"architectures": ["BertModel"]}, "the memory of BertModel is not known; known are Llama"),
        ({**MOE, "num_experts": "8"}, "num_experts is '8'"),
        ({**MOE, "num_experts": 0}, "num_experts is 0: must be at least 1"),
        ({**MOE, "decoder_sparse_step": 0}, "decoder_sparse_step is 0: must be at least 1"),
        ({**MOE, "mlp_only_layers": "0"}, "must be a list"),
        ({**DEEPSEEK, "kv_lora_rank": 0}, "kv_lora_rank is 0: must be at least 1"),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": 4}, "a sliding window in 2 of 6 layers"),
        ({"quantization_config": "fp8"}, "quantization_config is 'fp8': must be an object"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization 'gptq' is not known"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}}, "only .128, 128."),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": 128}}, "must be a list"),
        ({"quantization_config": {"quant_method": "fp8", "ignored_layers": "lm_head"}}, "must be a list"),
        ({"quantization_config": {"quant_method": "fp8", "ignored_layers": ["re:("]}}, "is no pattern"),
        ({"quantization_config": compressed(strategy="block")}, "'compressed-tensors' is not known"),
        ({"quantization_config": compressed(targets=["re:.*mlp.*"])}, "'compressed-tensors' is not known"),
        ({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": [1]}}, "an object"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "is not known"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused_in_one_line(fields, message):
    with pytest.raises(ModelError, match=message) as refusal:
        read({**LLAMA, **fields})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("asked", "how"),
    [("fp8", "fp8_tensor"), ("fp8_per_tensor", "fp8_tensor"), ("fp8_per_channel", "fp8_channel"),
     ("mxfp8", "plain")],
)  # fmt: skip
def test_weights_are_quantized_as_the_user_says_and_as_far_as_it_is_known(asked, how):
    own = quantized(read(LLAMA), asked)
    assert own.quantization.format == how
    assert own.quantization.online is (how != "plain")


def test_weights_that_are_quantized_stay_so():
    own = read({**LLAMA, "quantization_config": {"quant_method": "fp8"}})
    assert quantized(own, "fp8") == own
    with pytest.raises(ModelError, match="^quantization is fp8_per_tensor, and its weights are fp8: leave"):
        quantized(own, "fp8_per_tensor")
