"""The KV cache, block by block. Token counts marked so were printed by vLLM 0.32 on CPUs."""

import pytest

import models
from models import kv
from models.config import read
from models.errors import ModelError
from models.kv import Cache
from models.weights import Split

GIB = 2**30
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 5, "hidden_size": 128,
    "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 4096,
}  # fmt: skip
WIDE = {**LLAMA, "num_hidden_layers": 4, "head_dim": 64}
LATENT = {**WIDE, "architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 512, "qk_nope_head_dim": 128,
          "qk_rope_head_dim": 64, "v_head_dim": 128, "q_lora_rank": None, "n_routed_experts": 8,
          "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
          "first_k_dense_replace": 1, "num_key_value_heads": 4}  # fmt: skip
WINDOWED = {**WIDE, "architectures": ["GptOssForCausalLM"], "num_hidden_layers": 6, "sliding_window": 128,
            "num_local_experts": 4, "num_experts_per_tok": 2}  # fmt: skip
R1, GPT_OSS, QWEN3, LLAMA_70B = (
    models.get(name).architecture
    for name in ("deepseek-r1", "gpt-oss-120b", "qwen3-235b-a22b", "llama-3.1-70b")
)
PAGED = Cache(block_size=16, number=2)


def cpu(batched=2048, batches=1):
    return Cache(block_size=128, number=2, batched=batched, batches=batches)


# Each worker has 1 GiB, each request 1000 tokens.
@pytest.mark.parametrize(
    ("config", "split", "cache", "tokens"),
    [
        (LLAMA, Split(), cpu(), 819_125),
        ({**LLAMA, "num_key_value_heads": 1}, Split(), cpu(), 1_638_375),
        (WIDE, Split(), cpu(), 512_000),
        (WIDE, Split(2), cpu(), 1_024_000),
        (WIDE, Split(pipeline=2), cpu(batches=2), 1_024_000),
        (LATENT, Split(), cpu(), 227_500),
        (LATENT, Split(2), cpu(), 227_500),
        (WINDOWED, Split(), cpu(batched=4000), 321_235),
    ],
)
def test_the_cache_holds_as_many_tokens_as_vllm_printed(config, split, cache, tokens):
    found = kv.capacity(read(config), split, cache, [GIB] * split.pipeline, 1000)
    assert found.tokens == tokens
    assert found.concurrency == pytest.approx(tokens / 1000, rel=1e-5)


@pytest.mark.parametrize(
    ("model", "split", "size"),
    [
        (LLAMA_70B, Split(), 2 * 8 * 128 * 2),
        (LLAMA_70B, Split(8), 2 * 128 * 2),
        (LLAMA_70B, Split(64), 2 * 128 * 2),  # copied: eight ranks have each head
        (QWEN3, Split(8), 2 * 128 * 2),
        (R1, Split(), 576 * 2),
        (R1, Split(16), 576 * 2),  # whole on every rank
    ],
)
def test_a_tokens_bytes_in_a_layer(model, split, size):
    assert kv.bytes_per_token(model, split, PAGED) == size


def test_a_block_has_the_layers_of_its_stage():
    assert kv.block_bytes(LLAMA_70B, Split(8, 3), PAGED) == [layers * 16 * 512 for layers in (27, 27, 26)]


def test_the_stage_with_the_fewest_blocks_decides():
    sizes = kv.block_bytes(LLAMA_70B, Split(8, 2), PAGED)
    assert kv.capacity(LLAMA_70B, Split(8, 2), PAGED, [9 * sizes[0], 5 * sizes[1] + 1], 16).blocks == 5


def test_memory_is_used_in_whole_blocks_and_none_of_it_when_there_is_none():
    (size,) = kv.block_bytes(LLAMA_70B, Split(), PAGED)
    blocks = [kv.capacity(LLAMA_70B, Split(), PAGED, [have], 16).blocks for have in (-5, 0, size - 1, size)]
    assert blocks == [0, 0, 0, 1]


@pytest.mark.parametrize(("length", "blocks"), [(1, 1), (16, 1), (17, 2), (131072, 8192)])
def test_a_request_takes_whole_blocks(length, blocks):
    assert kv.blocks_per_request(LLAMA_70B, Split(8), PAGED, length) == blocks


def test_tokens_are_rounded_as_vllms_floating_point_does():
    (size,) = kv.block_bytes(LLAMA_70B, Split(), cpu())
    found = kv.capacity(LLAMA_70B, Split(), cpu(), [1014 * size], 10112)
    assert found.tokens == 129_791  # 1014 blocks of 128 are 129792


def test_context_parallelism_shares_a_request_among_ranks():
    assert kv.blocks_per_request(R1, Split(8, context=8), PAGED, 8192) == 8192 // 8 // 16
    alone, shared = (kv.capacity(R1, Split(8, context=size), PAGED, [GIB], 8192).tokens for size in (1, 8))
    assert shared == pytest.approx(8 * alone, rel=0.01)


def test_layers_with_a_window_share_a_pool_with_the_others():
    """18 layers of each kind: a block is one group's, and a request takes some of both."""
    assert kv.block_bytes(GPT_OSS, Split(), PAGED) == [18 * 16 * 2 * 8 * 64 * 2]
    cache = Cache(block_size=16, number=2, batched=8192, batches=2)
    windowed = -(-(127 + 2 * 8192) // 16) + 1
    assert kv.blocks_per_request(GPT_OSS, Split(), cache, 131072) == 131072 // 16 + windowed
    assert kv.blocks_per_request(GPT_OSS, Split(), cache, 160) == 10 + 11


def test_a_model_of_windows_only_needs_no_more_for_longer_requests():
    mistral = read({**LLAMA, "architectures": ["MistralForCausalLM"], "sliding_window": 1024})
    cache = Cache(block_size=16, number=2, batched=1024)
    lengths = [kv.blocks_per_request(mistral, Split(), cache, length) for length in (2047, 4096, 10**6)]
    assert lengths == [129, 129, 129]


@pytest.mark.parametrize("model", [LLAMA_70B, R1, GPT_OSS])
@pytest.mark.parametrize("available", [10**8, 10**9, 7 * 10**9])
def test_the_longest_request_fits_and_one_token_more_does_not(model, available):
    length = kv.longest(model, Split(8), PAGED, [available], 131072)
    assert length == 0 or kv.needed(model, Split(8), PAGED, length)[0] <= available
    if length < 131072:
        assert kv.needed(model, Split(8), PAGED, length + 1)[0] > available


def test_one_block_is_vllms_own():
    (size,) = kv.block_bytes(LLAMA_70B, Split(), PAGED)
    assert kv.needed(LLAMA_70B, Split(), PAGED, 16) == [2 * size]
    assert kv.needed(LLAMA_70B, Split(), PAGED, 16, requests=5) == [6 * size]
    assert [kv.longest(LLAMA_70B, Split(), PAGED, [blocks * size], 999) for blocks in (0, 1, 2)] == [0, 0, 16]


@pytest.mark.parametrize(
    ("dtype", "asked", "size"),
    [("bfloat16", "auto", 2), ("float32", "auto", 4), ("bfloat16", "fp8", 1), ("float32", "bfloat16", 2)],
)
def test_a_cached_numbers_bytes(dtype, asked, size):
    assert kv.number_bytes(dtype, asked) == size


def test_a_cache_of_an_unknown_kind_is_refused():
    with pytest.raises(ModelError, match="kv-cache-dtype is 'int3': must be auto, fp8"):
        kv.number_bytes("bfloat16", "int3")


@pytest.mark.parametrize(("limit", "true_up_to"), [(0, 0), (10, 0), (10, 3), (10, 10), (10, 99)])
def test_the_largest_that_fits_is_found(limit, true_up_to):
    assert kv.largest(limit, lambda number: number <= true_up_to) == min(limit, true_up_to)
