"""The parameters of each rank: numbers from vLLM 0.32's own processes, and from published counts."""

from collections import Counter
from dataclasses import replace

import pytest

import models
from models.architecture import Quantization
from models.config import quantized, read
from models.weights import Split, extra_bytes, padded, parameters, part_bytes, stages, tensors

CATALOGUE = [models.get(name) for name in models.names()]
SMALL = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 5, "hidden_size": 64,
    "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
    "max_position_embeddings": 4096,
}  # fmt: skip
R1, QWEN3, GPT_OSS = (
    models.get(name).architecture for name in ("deepseek-r1", "qwen3-235b-a22b", "gpt-oss-120b")
)


def architecture(name):
    return models.get(name).architecture


def size(model, split, stage=0, rank=0, **how):
    return sum(tensor.bytes for tensor in tensors(model, split, stage, rank, **how))


def of_part(model, split, part, stage=0, rank=0, **how):
    return sum(one.bytes for one in tensors(model, split, stage, rank, **how) if one.part == part)


@pytest.mark.parametrize(
    "model", [model for model in CATALOGUE if model.parameters], ids=lambda model: model.name
)
def test_parameters_are_the_published_number_to_the_last_digit(model):
    assert parameters(model.architecture) == model.parameters


@pytest.mark.parametrize(
    ("layers", "pipeline", "counts"),
    [
        (80, 1, [80]),
        (80, 3, [27, 27, 26]),
        (61, 2, [31, 30]),
        (126, 4, [31, 32, 32, 31]),
        (11, 4, [3, 3, 3, 2]),
        (5, 3, [2, 2, 1]),
        (4, 4, [1, 1, 1, 1]),
    ],
)
def test_layers_that_are_left_over_go_to_the_stages_before_the_last(layers, pipeline, counts):
    assert stages(layers, pipeline) == counts


@pytest.mark.parametrize(("vocabulary", "rows"), [(512, 512), (1000, 1024), (129280, 129280), (1, 64)])
def test_vocabularies_are_padded_to_64(vocabulary, rows):
    assert padded(vocabulary) == rows


# What a reference that was compared with vLLM 0.32 name by name makes of these splits.
@pytest.mark.parametrize(
    ("name", "split", "sizes"),
    [
        ("llama-3.1-70b", Split(), [141_107_412_992]),
        ("llama-3.1-70b", Split(8), [17_640_734_720]),
        ("llama-3.1-70b", Split(8, 2), [8_820_359_168, 8_820_375_552]),
        ("llama-3.1-405b", Split(8, 2), [50_735_284_224, 50_735_316_992]),
        ("llama-3.1-405b", Split(16), [51_267_928_064]),
        ("qwen3-235b-a22b", Split(8), [58_959_617_024]),
        ("qwen3-235b-a22b", Split(8, 2), [29_635_395_072, 29_635_395_072]),
        ("qwen2.5-32b-instruct", Split(2), [32_764_536_832]),
        ("deepseek-r1", Split(8), [85_140_130_848]),
        ("deepseek-r1", Split(8, 2), [41_243_924_832, 43_896_206_016]),
        ("deepseek-r1", Split(16), [43_139_382_208]),
        ("deepseek-r1", Split(16, expert=True), [43_139_382_208]),
        ("gpt-oss-120b", Split(), [65_248_815_744]),
    ],
)
def test_a_rank_holds_as_many_bytes_as_in_vllm(name, split, sizes):
    assert [size(architecture(name), split, stage) for stage in range(split.pipeline)] == sizes


@pytest.mark.parametrize(
    ("padding", "split", "expected"),
    [
        ((64, 1), Split(8), 8_711_167_680),
        ((128, 256), Split(), 70_756_592_256),
        ((128, 256), Split(8), 9_254_395_584),
    ],
)
def test_mxfp4_experts_are_padded_as_the_gpus_kernels_want(padding, split, expected):
    assert size(GPT_OSS, split, padding=padding) == expected


def test_key_value_heads_are_copied_when_tensor_parallel_exceeds_them():
    def rows(tp):
        return next(one.shape[0] for one in tensors(QWEN3, Split(tp)) if one.name.endswith("qkv_proj.weight"))

    assert [rows(tp) for tp in (1, 4, 8, 64)] == [72 * 128, 18 * 128, 10 * 128, 3 * 128]


def test_the_ends_of_llama_are_on_the_first_and_the_last_stage():
    llama = read(SMALL)
    parts = [{one.part for one in tensors(llama, Split(pipeline=3), stage)} for stage in range(3)]
    assert ["embedding" in part for part in parts] == [True, False, False]
    assert ["head" in part for part in parts] == [False, False, True]


def test_a_tied_head_is_the_embedding_once_more_on_the_last_stage_only():
    tied = read({**SMALL, "tie_word_embeddings": True})
    assert [of_part(tied, Split(pipeline=3), "embedding", stage) for stage in range(3)] == [131072, 0, 131072]
    assert of_part(tied, Split(), "embedding") == 131072
    assert of_part(tied, Split(), "head") == 0


@pytest.mark.parametrize("model", [QWEN3, GPT_OSS])
def test_some_classes_have_their_ends_on_every_stage(model):
    for stage in range(4):
        assert of_part(model, Split(pipeline=4), "embedding", stage)
        assert of_part(model, Split(pipeline=4), "head", stage)


def test_stages_together_hold_what_one_holds():
    for name in ("llama-3.1-70b", "deepseek-r1"):
        own = architecture(name)
        split = Split(1, 7)
        assert sum(size(own, split, stage) for stage in range(7)) == size(own, Split())


def test_experts_are_cut_without_expert_parallelism_and_whole_with_it():
    def shape(split, rank=0):
        return next(one.shape for one in tensors(QWEN3, split, rank=rank) if "w13_weight" in one.name)

    assert shape(Split(8)) == (128, 2 * 192, 4096)
    assert shape(Split(8, expert=True)) == (16, 2 * 1536, 4096)
    assert shape(Split(4, data=2, expert=True)) == (16, 2 * 1536, 4096)
    assert shape(Split(4, data=2)) == (128, 2 * 192, 4096)
    # 128 over 3 x 4 ranks: the first eight have one more.
    assert [shape(Split(4, data=3, expert=True), rank)[0] for rank in (0, 7, 8, 11)] == [11, 11, 10, 10]


def test_shared_experts_are_whole_on_each_rank_of_several_data_parallel_ones():
    one = of_part(R1, Split(), "shared experts")
    assert of_part(R1, Split(8, expert=True), "shared experts") == one // 8
    assert of_part(R1, Split(8, data=2, expert=True), "shared experts") == one
    assert of_part(R1, Split(8, data=2), "shared experts") == one // 8


def test_of_latent_attention_the_compression_is_whole_on_every_rank():
    def shape(name, tp):
        return next(one.shape for one in tensors(R1, Split(tp)) if one.name.endswith(name))

    assert shape("fused_qkv_a_proj.weight", 1) == shape("fused_qkv_a_proj.weight", 16) == (2112, 7168)
    assert shape("fused_qkv_a_proj.weight_scale", 16) == (17, 56)  # the last block is half a one
    assert (shape("q_b_proj.weight", 8), shape("kv_b_proj.weight", 8)) == ((3072, 1536), (4096, 512))


def test_latent_attention_that_is_quantized_is_kept_once_more_unquantized():
    assert extra_bytes(R1, Split()) == 61 * 128 * 512 * 256 * 2
    assert extra_bytes(R1, Split(8, 2), 1) == 30 * 16 * 512 * 256 * 2
    config = {**models.get("deepseek-r1").config, "quantization_config": None}
    assert extra_bytes(read(config), Split()) == 0
    assert extra_bytes(architecture("llama-3.1-70b"), Split()) == 0


def test_what_is_not_converted_keeps_its_bytes():
    meta, red_hat = architecture("llama-3.1-405b-instruct-fp8"), architecture(
        "llama-3.1-405b-instruct-fp8-redhat"
    )  # fmt: skip
    assert of_part(meta, Split(), "attention") == of_part(
        architecture("llama-3.1-405b"), Split(), "attention"
    )
    assert of_part(red_hat, Split(), "attention") < of_part(meta, Split(), "attention") * 0.51
    kinds = {
        one.dtype for one in tensors(meta, Split()) if one.name == "model.layers.125.mlp.down_proj.weight"
    }
    assert kinds == {"bfloat16"}


def test_a_dtype_that_is_asked_for_is_that_of_all_that_is_not_quantized():
    tiny = read(SMALL)
    assert size(tiny, Split(), dtype="float32") == 2 * size(tiny, Split())


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
def test_more_ranks_never_hold_more(model):
    own = model.architecture
    sizes = [size(own, Split(tp)) for tp in (1, 2, 4) if own.num_attention_heads % tp == 0]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("name", models.names())
def test_bytes_by_part_are_those_of_the_tensors_one_by_one(name):
    model = models.get(name).architecture
    for split in (Split(), Split(tensor=2, pipeline=3), Split(tensor=2, expert=model.experts is not None)):
        for stage in range(split.pipeline):
            parts = Counter()
            for tensor in tensors(model, split, stage, dtype="bfloat16"):
                parts[tensor.part] += tensor.bytes
            assert part_bytes(model, split, stage, "bfloat16") == parts


@pytest.mark.parametrize(("asked", "scale"), [("fp8_per_tensor", 1), ("fp8_per_channel", 768)])
def test_what_is_quantized_while_loading_is_all_but_the_ends_and_norms(asked, scale):
    """Which layers those are tests/test_lab_vllm.py asks vLLM; scales are those of online/fp8.py."""
    own = quantized(read({**SMALL, "intermediate_size": 384}), asked)
    one = {tensor.name: tensor for tensor in tensors(own, Split())}
    assert {name for name, tensor in one.items() if tensor.dtype == "bfloat16"} == {
        "embed_tokens.weight", "lm_head.weight", "norm.weight",
        *(name for name in one if name.endswith("layernorm.weight")),
    }  # fmt: skip
    assert one["model.layers.0.mlp.gate_up_proj.weight_scale"].count == scale


def test_of_experts_that_are_quantized_while_loading_so_is_qwens_router_but_not_deepseeks():
    def router(model):
        return {tensor.dtype for tensor in tensors(model, Split()) if tensor.name.endswith("mlp.gate.weight")}

    assert router(quantized(QWEN3, "fp8_per_tensor")) == {"float8_e4m3fn"}
    assert router(quantized(replace(R1, quantization=Quantization()), "fp8_per_tensor")) == {"bfloat16"}


def test_latent_attention_that_is_quantized_while_loading_is_kept_once_more_too():
    plain = replace(R1, quantization=Quantization())
    assert extra_bytes(plain, Split(8)) == 0
    assert extra_bytes(quantized(plain, "fp8_per_tensor"), Split(8)) == extra_bytes(R1, Split(8)) > 0
