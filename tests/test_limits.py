"""Which splits vLLM starts a model with. Where it refuses one, so do we, and say what works."""

import pytest

import models
from models.config import read
from models.errors import PlanError
from models.limits import check, context_sizes, problem, valid_tensor_parallel
from models.weights import Split

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
LLAMA, R1, GPT_OSS, QWEN3 = (
    models.get(name).architecture
    for name in ("llama-3.1-70b", "deepseek-r1", "gpt-oss-120b", "qwen3-235b-a22b")
)


def changed(name, **fields):
    return read({**models.get(name).config, **fields})


QWEN3_FP8 = changed("qwen3-235b-a22b", quantization_config=FP8)


@pytest.mark.parametrize(
    ("model", "expert", "sizes"),
    [
        (LLAMA, False, [1, 2, 4, 8, 16, 32, 64]),
        (models.get("qwen2.5-32b-instruct").architecture, False, [1, 2, 4, 8]),
        (models.get("smollm2-135m-instruct").architecture, False, [1, 3]),
        (R1, True, [1, 2, 4, 8, 16]),  # 32: 64 of a shared expert's 2048 columns are half a block
        (R1, False, [1, 2, 4, 8, 16]),
        (QWEN3, False, [1, 2, 4, 8, 16, 32, 64]),
        (QWEN3_FP8, False, [1, 2, 4]),  # 8: 192 columns of an expert are a block and a half
        (QWEN3_FP8, True, [1, 2, 4, 8, 16, 32, 64]),
        (GPT_OSS, False, [1, 2, 4, 8]),  # its class copies no key-value heads
        (changed("llama-3.1-70b", vocab_size=128), False, [1, 2, 4, 8, 16, 32, 64]),
    ],
)
def test_tensor_parallel_sizes_that_vllm_starts_with(model, expert, sizes):
    assert list(valid_tensor_parallel(model, expert)) == sizes


def test_blocks_of_fp8_are_not_cut_in_attention_either():
    narrow = changed("llama-3.1-70b", head_dim=64, quantization_config=FP8, num_key_value_heads=64)
    assert valid_tensor_parallel(narrow) == (1, 2, 4, 8, 16, 32)
    assert "half" not in problem(narrow, Split(64)) and "attention output" in problem(narrow, Split(64))


def test_a_single_rank_cuts_no_block():
    assert problem(changed("llama-3.1-70b", intermediate_size=1000, quantization_config=FP8), Split()) is None


@pytest.mark.parametrize(
    ("model", "split", "message"),
    [
        (LLAMA, Split(3), "TP 3 does not divide 64 attention heads.*; TP can be 1, 2, 4, 8, 16, 32, 64 "),
        (changed("llama-3.1-70b", num_key_value_heads=4, num_attention_heads=12), Split(6), "TP 6 does not"),
        (
            changed("llama-3.1-70b", intermediate_size=100),
            Split(8),
            "the 100 columns of the MLP over 8 ranks",
        ),
        (models.get("smollm2-135m-instruct").architecture, Split(9), "does not divide the vocabulary"),
        (
            R1,
            Split(32),
            "leaves 576 of the 18432 columns of the MLP to a rank, which is not whole FP8 blocks",
        ),
        (QWEN3_FP8, Split(8), "192 of the 1536 columns of the experts to a rank"),
        (QWEN3_FP8, Split(4, data=2), "TP can be 1, 2, 4"),
        (GPT_OSS, Split(16), "more than 8 key-value heads, which this class cannot copy"),
        (GPT_OSS, Split(8, 7), "56 ranks do not divide its 2880 columns"),
        (LLAMA, Split(1, 81), "PP 81 is more than its 80 layers; PP can be 1 to 80"),
        (LLAMA, Split(1, 0), "both must be at least 1"),
        (LLAMA, Split(-1), "both must be at least 1"),
        (LLAMA, Split(8, expert=True), "no experts to spread"),
        (LLAMA, Split(8, data=2), "data parallelism inside a replica is for models with experts"),
        (QWEN3, Split(64, data=4, expert=True), "128 experts do not spread over 256 ranks"),
        (
            changed("qwen3-235b-a22b", num_experts=4, num_experts_per_tok=2),
            Split(8),
            "TP 8 is more than its 4 experts",
        ),
        (changed("qwen3-235b-a22b", decoder_sparse_step=3), Split(1, 47), "a stage without experts"),
        (LLAMA, Split(8, context=3), "DCP 3 does not divide TP 8"),
        (LLAMA, Split(8, context=2), "DCP 2 needs TP of at least 16"),
        (GPT_OSS, Split(8, context=2), "sliding window know no DCP"),
    ],
)
def test_a_split_that_vllm_would_refuse_is_refused_in_one_line(model, split, message):
    with pytest.raises(PlanError, match=f"^m: .*({message})") as refusal:
        check("m", model, split)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("model", "split"),
    [
        (LLAMA, Split(8, 3)),
        (LLAMA, Split(16)),
        (LLAMA, Split(64, context=8)),
        (R1, Split(8, data=2, expert=True)),
        (R1, Split(16, 61, expert=True)),
        (R1, Split(8, context=8)),
        (QWEN3, Split(8, context=2)),
        (GPT_OSS, Split(8, 5)),
        (changed("qwen3-235b-a22b", decoder_sparse_step=2), Split(1, 47)),
    ],
)
def test_a_split_that_vllm_starts_with_is_not_refused(model, split):
    check("m", model, split)


@pytest.mark.parametrize(
    ("model", "tp", "sizes"),
    [(R1, 8, [2, 4, 8]), (LLAMA, 8, []), (LLAMA, 32, [2, 4]), (QWEN3, 16, [2, 4]), (GPT_OSS, 8, [])],
)
def test_context_parallel_sizes(model, tp, sizes):
    assert context_sizes(model, tp) == sizes
