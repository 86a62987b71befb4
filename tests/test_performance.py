"""Estimates: what moves them and which way, and how far they are from published measurements."""

from dataclasses import replace

import pytest

import models
from models import performance
from models.config import read
from models.hardware import GPUS
from models.performance import Placed, estimate, prefill, step, work
from models.weights import Split, parameters

H100, H200, MI300X = GPUS["H100"], GPUS["H200"], GPUS["MI300X"]
LLAMA, R1, GPT_OSS = (
    work(models.get(name).architecture, 2) for name in ("llama-3.1-70b", "deepseek-r1", "gpt-oss-120b")
)
FP8_405B = work(models.get("llama-3.1-405b-instruct-fp8-redhat").architecture, 2)
QWEN_72B = work(
    read(
        {
            **models.get("qwen2.5-32b-instruct").config,
            "num_hidden_layers": 80,
            "hidden_size": 8192,
            "intermediate_size": 29568,
            "num_attention_heads": 64,
        }
    ),
    2,
)


def on(gpu, *sizes, nodes=1, eager=False, **fields):
    return Placed(replace(gpu, **fields), Split(*sizes), nodes, eager)


# Published runs, and the error of the estimate that docs/performance.md states for each.
@pytest.mark.parametrize(
    ("model", "placed", "batch", "context", "milliseconds", "within"),
    [
        # jingchaozhang.github.io: Qwen2.5-72B, vLLM 0.17, one request of 512 tokens
        (QWEN_72B, on(H100, 4), 1, 300, 1e3 / 60.8, 0.05),
        (QWEN_72B, on(H100, 8), 1, 300, 1e3 / 99.5, 0.05),
        (QWEN_72B, on(H100, 8, 2), 1, 300, 1e3 / 67.5, 0.05),
        (QWEN_72B, on(H100, 16, nodes=2), 1, 300, 1e3 / 34.3, 0.15),
        # Lambda: Llama 3.1 70B, vLLM 0.6, 4 to 6 requests
        (LLAMA, on(H100, 4), 5, 512, 17.4, 0.1),
        # AMD: Llama 3.1 405B FP8
        (FP8_405B, on(MI300X, 8), 1, 1152, 23.5, 0.1),
        # tt-inference-server#356: DeepSeek-R1-0528, one request
        (R1, on(H100, 16, nodes=2), 1, 1088, 31.2, 0.15),
        # Kempner: DeepSeek-R1 without CUDA graphs
        (R1, on(H100, 16, nodes=2, eager=True), 1, 512, 1e3 / 10.3, 0.1),
    ],
)
def test_a_decode_step_is_within_the_stated_error_of_what_was_measured(
    model, placed, batch, context, milliseconds, within
):
    assert step(model, placed, batch, context) * 1e3 == pytest.approx(milliseconds, rel=within)


# InferenceX#870: DeepSeek-R1 on 8 H200, prompts and answers of 1024 tokens
@pytest.mark.parametrize(
    ("clients", "milliseconds", "tokens_a_second"),
    [(8, 12.8, 596.8), (16, 17.2, 895.2), (32, 25.6, 1208.8), (64, 34.6, 1788.8)],
)
def test_r1_under_load_is_within_a_tenth_of_what_was_measured(clients, milliseconds, tokens_a_second):
    found = estimate(R1, on(H200, 8), clients, prompt=1024, output=1024)
    assert found.loaded_per_token * 1e3 == pytest.approx(milliseconds, rel=0.1)
    assert found.throughput == pytest.approx(tokens_a_second, rel=0.1)


def test_work_counts_what_a_token_uses():
    r1 = models.get("deepseek-r1").architecture
    embedding = r1.vocab_size * r1.hidden_size
    assert R1.common + R1.routed == parameters(r1) - embedding
    assert R1.active / 1e9 == pytest.approx(37, abs=1)  # the published number of active parameters
    assert R1.touched(1) == pytest.approx(R1.active)
    assert R1.touched(10**6) == pytest.approx(R1.common + R1.routed)
    assert GPT_OSS.active / 1e9 == pytest.approx(5.1, abs=0.6)
    assert LLAMA.active == LLAMA.common and LLAMA.layers * LLAMA.cache_bytes == 80 * 2 * 8 * 128 * 2


def test_a_layer_with_a_sliding_window_looks_at_no_more_than_that():
    assert (GPT_OSS.layers, GPT_OSS.windowed, GPT_OSS.window) == (36, 18, 128)
    assert GPT_OSS.looked_at(100) == 36 * 100
    assert GPT_OSS.looked_at(100_000) == 18 * 100_000 + 18 * 128
    assert LLAMA.looked_at(100_000) == 80 * 100_000
    for tokens in (100, 4096):
        looked = sum(GPT_OSS.looked_at(before) for before in range(tokens))
        assert GPT_OSS.pairs(tokens) == pytest.approx(looked, rel=0.02)
    assert LLAMA.pairs(4096) == 80 * 4096**2 / 2


def test_windows_halve_what_a_long_context_costs():
    whole = replace(GPT_OSS, windowed=0)
    placed = on(H100, 1)
    costs = [step(one, placed, 32, 100_000) - step(one, placed, 32, 0) for one in (GPT_OSS, whole)]
    assert costs[0] / costs[1] == pytest.approx(0.5, abs=0.01)
    assert prefill(GPT_OSS, placed, 100_000) < prefill(whole, placed, 100_000)


@pytest.mark.parametrize("model", [LLAMA, R1, GPT_OSS, FP8_405B])
@pytest.mark.parametrize(
    "better",
    [
        {"bandwidth": 2 * H100.bandwidth},
        {"bf16": 2 * H100.bf16, "fp8": 2 * H100.fp8},
        {"link": 2 * H100.link},
        {"reduce": H100.reduce / 2},
    ],
)
@pytest.mark.parametrize("batch", [1, 64])
def test_a_better_gpu_is_never_slower(model, better, batch):
    own, other = on(H100, 8), on(H100, 8, **better)
    assert step(model, other, batch, 4096) <= step(model, own, batch, 4096)
    assert prefill(model, other, 4096) <= prefill(model, own, 4096)
    assert estimate(model, other, batch).throughput >= estimate(model, own, batch).throughput


@pytest.mark.parametrize("model", [LLAMA, R1, GPT_OSS])
def test_more_work_takes_longer(model):
    placed = on(H100, 8)
    assert step(model, placed, 1, 1024) < step(model, placed, 16, 1024) < step(model, placed, 256, 1024)
    assert step(model, placed, 16, 1024) < step(model, placed, 16, 65536)
    assert prefill(model, placed, 1024) < prefill(model, placed, 16384) < prefill(model, placed, 131072)


def test_many_requests_at_once_have_more_throughput_and_wait_longer():
    guesses = [estimate(LLAMA, on(H100, 8), clients) for clients in (1, 8, 64, 256)]
    assert [one.throughput for one in guesses] == sorted(one.throughput for one in guesses)
    assert [one.loaded_per_token for one in guesses] == sorted(one.loaded_per_token for one in guesses)
    assert guesses[0].loaded_per_token == pytest.approx(guesses[0].per_token)


def test_a_pipeline_does_not_help_one_request_and_does_help_many():
    one, two = on(H100, 8), on(H100, 8, 2)
    assert step(LLAMA, two, 1, 1024) > step(LLAMA, one, 1, 1024)
    assert estimate(LLAMA, two, 256).throughput > estimate(LLAMA, one, 256).throughput


def test_tensor_parallelism_helps_inside_a_node_and_not_across_nodes():
    assert step(LLAMA, on(H100, 8), 1, 1024) < step(LLAMA, on(H100, 4), 1, 1024)
    assert step(LLAMA, on(H100, 16, nodes=2), 1, 1024) > step(LLAMA, on(H100, 8), 1, 1024)


def test_eager_mode_is_slower_and_bound_by_launches():
    guess = estimate(R1, on(H200, 8, eager=True), 1)
    assert guess.per_token > estimate(R1, on(H200, 8), 1).per_token
    assert guess.bound == "kernel launches"


@pytest.mark.parametrize(
    ("model", "bound"), [(LLAMA, "memory bandwidth"), (GPT_OSS, "communication and kernels")]
)
def test_what_bounds_a_token_is_said(model, bound):
    assert estimate(model, on(H100, 8), 1).bound == bound


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", models.names())
def test_every_estimate_is_a_time(gpu, name):
    guess = estimate(work(models.get(name).architecture, 2), on(GPUS[gpu], 1, 2), 8)
    for seconds in (guess.first_token, guess.per_token, guess.loaded_per_token, guess.throughput):
        assert 0 < seconds < float("inf")
    assert guess.bound in {"memory bandwidth", "compute", "communication and kernels", "scheduling"}
    assert performance.PROMPT > performance.OUTPUT > 0
