"""What a GPU's memory goes to, and whether that leaves room for what is wanted."""

from dataclasses import replace
from math import ceil

import pytest

import models
from models import hardware, kv
from models.errors import ModelError, PlanError
from models.fit import Targets, fit, memory_parts
from models.hardware import GPUS
from models.memory import Serving, block_size, check_share, serving, stage_memory
from models.weights import Split, tensors

GIB = 2**30
H100, H200, CPU = GPUS["H100"], GPUS["H200"], GPUS["cpu"]
LLAMA, R1, QWEN3 = (
    models.get(name).architecture for name in ("llama-3.1-70b", "deepseek-r1", "qwen3-235b-a22b")
)
SMOL = models.get("smollm2-135m-instruct")
HOW = Serving(dtype="bfloat16")


def fitted(model=LLAMA, split=Split(4), gpu=H100, how=HOW, **targets):  # noqa: B008
    return fit(model, split, gpu, how, Targets(**targets))


def of(arguments=(), environment=(), model=LLAMA, gpu=H100):
    return serving(model, dict(arguments), dict(environment), gpu)


def test_vllm_takes_its_share_and_the_cache_what_is_left_of_it():
    (stage,) = stage_memory(LLAMA, Split(4), H100, HOW)
    assert stage.requested == ceil(H100.memory * 0.92)
    assert stage.weight_bytes == sum(one.bytes for one in tensors(LLAMA, Split(4)))
    left = stage.requested - stage.weight_bytes - stage.activations - stage.graphs
    assert stage.available == left > 30 * GIB


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("gpu", ["H100", "H200", "MI300X"])
def test_the_parts_are_all_of_the_memory(name, gpu):
    model = models.get(name).architecture
    for split in (Split(), Split(1, 2)):
        found = fit(model, split, GPUS[gpu], HOW, Targets())
        for stage in range(split.pipeline):
            assert sum(memory_parts(model, split, found, stage).values()) == GPUS[gpu].memory


@pytest.mark.parametrize(("gpu", "split", "most"), [("H100", Split(4), 0.98), ("A100-40", Split(2, 2), 0.97)])
def test_what_lies_outside_vllms_share_must_fit_in_what_it_leaves(gpu, split, most):
    check_share(split, GPUS[gpu], most)
    with pytest.raises(PlanError, match=f"at most {most}"):
        check_share(split, GPUS[gpu], most + 0.01)


def test_a_gpu_without_neighbours_keeps_no_room_for_nccl():
    check_share(Split(), H100, 0.99)
    with pytest.raises(PlanError, match="0.5 GiB of H100"):
        check_share(Split(), H100, 1)


def test_a_cpu_has_no_share():
    check_share(Split(), CPU, 1)


def test_the_last_stage_samples_and_the_stages_differ():
    first, last = stage_memory(LLAMA, Split(2, 2), H100, replace(HOW, sequences=4096))
    assert last.activations > first.activations


@pytest.mark.parametrize("more", [{"batched": 16384}, {"sequences": 8192}])
def test_larger_steps_leave_less_for_the_cache(more):
    assert fitted(how=replace(HOW, **more)).stages[0].available < fitted().stages[0].available


def test_eager_mode_needs_no_graphs():
    assert fitted(how=replace(HOW, eager=True)).stages[0].graphs == 0


def test_experts_are_padded_for_the_gpus_kernels():
    model = models.get("gpt-oss-120b").architecture
    sizes = {name: stage_memory(model, Split(8), GPUS[name], HOW)[0].weights["experts"]
             for name in ("H100", "A100-80", "MI300X")}  # fmt: skip
    assert sizes["MI300X"] < sizes["H100"] < sizes["A100-80"]


def test_without_a_context_the_longest_that_fits_is_found():
    assert fitted().max_model_len == 131072
    found = fitted(models.get("llama-3.1-405b-instruct-fp8").architecture, gpu=H200)
    assert found.fits and 8192 <= found.max_model_len < 131072
    assert found.capacity.concurrency >= 1


def test_a_context_that_is_said_is_the_one_that_is_served():
    found = fitted(context=4096)
    assert found.max_model_len == 4096
    assert found.capacity.concurrency > 100


def test_a_fit_means_room_for_8192_tokens_or_for_all_the_model_has():
    split, gpu = Split(), GPUS["H100"]
    need = kv.needed(LLAMA, split, HOW.cache(split), 8192)[0]
    (stage,) = stage_memory(LLAMA, split, gpu, HOW)
    larger = replace(gpu, memory=200 * GIB)
    assert fitted(split=split).missing_bytes == need - stage.available > 0
    assert fitted(split=split, gpu=larger).fits
    short = replace(LLAMA, max_position_embeddings=100)
    assert fitted(short, gpu=larger).max_model_len == 100


def test_what_is_missing_is_exactly_what_is_missing():
    found = fitted(split=Split(1), concurrency=4, context=8192)
    have = found.stages[0].available + found.missing_bytes
    needed = kv.needed(LLAMA, Split(1), found.cache, 8192, 4)[0]
    assert have == needed


def test_what_does_not_fit_shows_the_cache_that_was_asked_for_and_what_is_missing():
    found = fitted(R1, Split(8), concurrency=2, context=16384)
    parts = memory_parts(R1, Split(8), found, 0)
    assert parts["KV cache"] == kv.needed(R1, Split(8), found.cache, 16384, 2)[0]
    assert parts["free"] == -found.missing_bytes < 0


def test_what_vllm_may_not_take_is_a_part_of_its_own():
    parts = memory_parts(LLAMA, Split(4), fitted(), 0)
    (stage,) = stage_memory(LLAMA, Split(4), H100, HOW)
    assert parts["beyond vLLM's share"] == H100.memory - stage.requested - stage.communication


def test_more_requests_need_more_room():
    assert fitted(concurrency=3, context=131072).fits
    assert not fitted(concurrency=4, context=131072).fits


def test_the_fullest_stage_decides():
    found = fitted(R1, Split(8, 2, expert=True))
    assert found.fullest == found.stages[1]
    assert (
        found.capacity.blocks * kv.block_bytes(R1, Split(8, 2), found.cache)[1] <= found.stages[1].available
    )


@pytest.mark.parametrize("size", [2 * GIB, 30 * GIB])
def test_a_cache_whose_size_is_said_has_that_size_while_there_is_room(size):
    assert fitted(how=replace(HOW, kv_cache_memory=size)).stages[0].available == size
    assert not fitted(how=replace(HOW, kv_cache_memory=50 * GIB)).fits
    assert not fitted(R1, Split(8), how=replace(HOW, kv_cache_memory=size)).fits


def test_arguments_that_memory_depends_on_are_read():
    how = of({"gpu-memory-utilization": 0.8, "max-num-seqs": 7, "max-num-batched-tokens": 99,
              "kv-cache-dtype": "fp8", "enforce-eager": True, "block-size": 32})  # fmt: skip
    assert (how.utilization, how.sequences, how.batched, how.block_size, how.eager) == (0.8, 7, 99, 32, True)
    assert how.cache(Split(4, 2)) == kv.Cache(block_size=32, number=1, batched=99, batches=3)
    assert of() == HOW


@pytest.mark.parametrize(
    ("model_dtype", "asked", "served"),
    [("float32", "auto", "bfloat16"), ("float16", "auto", "float16"), ("bfloat16", "float32", "float32")],
)
def test_float32_is_served_in_bfloat16_unless_asked(model_dtype, asked, served):
    assert of({"dtype": asked}, model=replace(LLAMA, dtype=model_dtype)).dtype == served


def test_on_cpus_the_cache_has_what_the_environment_says():
    how = of(SMOL.arguments, {"VLLM_CPU_KVCACHE_SPACE": "1"}, SMOL.architecture, CPU)
    assert (how.kv_cache_memory, how.block_size, how.dtype) == (GIB, 128, "float32")
    found = fit(SMOL.architecture, Split(), CPU, how, Targets(context=1024))
    assert found.capacity.tokens == GIB // (30 * 128 * 2 * 3 * 64 * 4) * 128
    assert found.stages[0].activations == 0
    assert of(model=R1, gpu=CPU).block_size == 16
    assert of(environment={"VLLM_CPU_KVCACHE_SPACE": "1"}).kv_cache_memory is None
    assert how.cache(Split(1, 3)).batches == 3


@pytest.mark.parametrize(
    ("name", "gpu", "dtype", "expected"),
    [
        ("deepseek-r1", "H100", "auto", 16),
        ("deepseek-r1", "H200", "bfloat16", 16),
        ("deepseek-r1", "H200", "fp8", 64),
        ("deepseek-r1", "B200", "auto", 32),
        ("deepseek-r1", "B200", "fp8", 32),
        ("deepseek-r1", "A100-80", "auto", 16),
        ("deepseek-r1", "L40S", "auto", 16),
        ("llama-3.1-70b", "B200", "auto", 16),
        ("llama-3.1-70b", "H100", "fp8", 16),
        ("gpt-oss-120b", "B200", "auto", 16),
        ("llama-3.1-70b", "cpu", "auto", 128),
    ],
)
def test_a_block_has_as_many_tokens_as_the_attention_of_model_and_gpu_takes(name, gpu, dtype, expected):
    own, row = models.get(name).architecture, hardware.gpu(gpu)
    assert serving(own, {"kv-cache-dtype": dtype}, {}, row).block_size == expected
    assert serving(own, {"block-size": 256}, {}, row).block_size == 256


def test_heads_of_another_size_than_flashinfers_take_cutlass_blocks():
    latent = replace(R1.latent, qk_nope_head_dim=96)
    assert block_size(replace(R1, latent=latent), hardware.gpu("B200"), "auto") == 128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpu-memory-utilization": 0}, "above 0 and at most 1"),
        ({"gpu-memory-utilization": 1.1}, "above 0 and at most 1"),
        ({"gpu-memory-utilization": float("nan")}, "above 0 and at most 1"),
        ({"gpu-memory-utilization": "most"}, "above 0 and at most 1"),
        ({"gpu-memory-utilization": True}, "above 0 and at most 1"),
        ({"max-num-seqs": 0}, "max-num-seqs is 0"),
        ({"max-num-seqs": "8"}, "max-num-seqs is '8'"),
        ({"max-num-batched-tokens": 1.5}, "max-num-batched-tokens is 1.5"),
        ({"block-size": -1}, "block-size is -1"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"kv-cache-memory-bytes": "1G"}, "kv-cache-memory-bytes is '1G'"),
        ({"kv-cache-memory-bytes": -1}, "kv-cache-memory-bytes is -1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ModelError, match=message):
        of(arguments).cache(Split())


def test_a_cache_of_half_a_gib_cannot_be_said_to_vllms_cpu_build():
    with pytest.raises(ModelError, match="VLLM_CPU_KVCACHE_SPACE is '0.5'"):
        of(environment={"VLLM_CPU_KVCACHE_SPACE": "0.5"}, gpu=CPU)


@pytest.mark.parametrize(
    ("written", "row"),
    [
        ("h100", "H100"),
        ("H 100", "H100"),
        ("H100-80GB", "H100"),
        ("h100-sxm", "H100"),
        ("H100 SXM5 80GB", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("A100-80", "A100-80"),
        ("A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("a100-80g", "A100-80"),
        ("a100-40gb", "A100-40"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA L40S", "L40S"),
        ("AMD Instinct MI300X", "MI300X"),
        ("H100 PCIe", "H100-PCIe"),
        ("mi300x", "MI300X"),
    ],
)
def test_a_gpu_has_other_spellings(written, row):
    assert hardware.gpu(written).name == row


@pytest.mark.parametrize("written", ["A100", "a100-sxm", "NVIDIA A100-SXM4"])
def test_a_gpu_that_may_be_two_is_refused_with_both(written):
    with pytest.raises(hardware.UnknownGpu, match=f"GPU '{written}' may be A100-40 or A100-80: say which"):
        hardware.gpu(written)


@pytest.mark.parametrize(
    "written", ["H100 NVL", "NVIDIA GH200 480GB", "NVIDIA A100-PCIE-40GB", "H20", "MI300A"]
)
def test_a_gpu_that_is_not_in_the_table_is_not_taken_for_another(written):
    with pytest.raises(hardware.UnknownGpu, match="unknown GPU"):
        hardware.gpu(written)


def test_an_unknown_gpu_names_the_nearest():
    with pytest.raises(hardware.UnknownGpu, match="unknown GPU 'H101'; the nearest are: H100"):
        hardware.gpu("H101")


def test_every_gpu_of_the_table_is_whole():
    for name, row in GPUS.items():
        assert row.name == name and row.source
        assert row.memory > 0 and row.bandwidth > 0 and row.fp8 >= row.bf16 > 0 and 0 < row.share <= 1
