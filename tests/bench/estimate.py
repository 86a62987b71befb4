"""The planner's estimates beside what others measured and published.

Rows say what they were used for: a constant of models/performance.py was solved from it
("solved"), it was in view while they were chosen ("seen"), or it was not ("fresh").
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import click

import models
from models import hardware
from models.model import Model
from models.performance import Placed, estimate, step, work
from models.weights import Split
from tests.bench.report import report

LLAMA = models.get("llama-3.1-70b-instruct")
FP8 = {"quantization_config": {"quant_method": "fp8"}}
LLAMA_FP8 = replace(LLAMA, config={**LLAMA.config, **FP8})
LLAMA_405B_FP8 = models.get("llama-3.1-405b-instruct-fp8-redhat")
R1 = models.get("deepseek-r1")
QWEN_MOE = models.get("qwen3-235b-a22b")
GPT_OSS = models.get("gpt-oss-120b")
QWEN_72B = replace(
    LLAMA, config={**LLAMA.config, "architectures": ["Qwen2ForCausalLM"], "intermediate_size": 29568,
                   "vocab_size": 152064},
)  # fmt: skip

JCZ = "jingchaozhang.github.io, LLM Inference Across NVLink and InfiniBand (2026-01)"
KEMPNER = "KempnerInstitute/distributed-inference-vllm, DeepSeek-R1_multinode-server (eager)"
KEMPNER_405B = "KempnerInstitute/distributed-inference-vllm, 405B-FP8 (eager; 'expected', its middle)"
SILICON = "ai-dynamo/aiconfigurator silicon_sample.csv, vLLM"
INFERENCEX = "InferenceX#870, SGLang 0.5.7"
GPUSTACK = "gpustack performance-lab, vLLM 0.11"


class Row(NamedTuple):
    what: str
    unit: str
    published: float
    estimated: float
    use: str
    source: str


@click.command()
def main() -> None:
    rows = list(_rows())
    report(
        "estimate", [{**row._asdict(), "error, %": 100 * (row.estimated / row.published - 1)} for row in rows]
    )
    for use in ("solved", "seen", "fresh"):
        errors = [abs(row.estimated / row.published - 1) for row in rows if row.use == use]
        click.echo(f"{use:7} {len(errors):3} rows, median error {100 * statistics.median(errors):.0f} %, "
                   f"largest {100 * max(errors):.0f} %")  # fmt: skip


def _rows() -> Iterator[Row]:
    for split, nodes, published in (
        (Split(4), 1, 60.8),
        (Split(8), 1, 99.5),
        (Split(8, 2), 1, 67.5),
        (Split(16), 2, 34.3),
    ):
        alone = _load(QWEN_72B, "H100", split, 1, 57, 512, nodes).per_token
        yield Row(
            f"Qwen2.5-72B, H100, {_named(split)}, alone", "tokens/s", published, 1 / alone, "solved", JCZ
        )
    for batch, published in ((1, 10.3), (8, 78.4), (32, 307.1), (64, 607.7), (112, 1030), (256, 2251.8),
                             (512, 4008.5), (1024, 5834.4)):  # fmt: skip
        rate = batch / _step(R1, "H100", Split(16), 4, batch, 600, eager=True)
        yield Row(f"R1, 16 H100, TP 16, eager, {batch} at once", "tokens/s", published, rate,
                  "solved" if batch == 1 else "seen", KEMPNER)  # fmt: skip
    for batch, published in ((96, 690), (128, 921), (144, 1022)):
        rate = batch / _step(R1, "H200", Split(8), 2, batch, 600, eager=True)
        yield Row(
            f"R1, 8 H200 on 2 nodes, TP 8, eager, {batch} at once",
            "tokens/s",
            published,
            rate,
            "seen",
            KEMPNER,
        )
    for gpu, split, nodes, published in (("H100", Split(8), 2, 18), ("H200", Split(4), 1, 10)):
        rate = 1 / _step(LLAMA_405B_FP8, gpu, split, nodes, 1, 500, eager=True)
        yield Row(f"405B FP8, {split.gpus} {gpu}, {_named(split)}, eager, alone", "tokens/s", published, rate,
                  "seen", KEMPNER_405B)  # fmt: skip
    for clients, published in ((8, 12.8), (16, 17.2), (32, 25.6), (64, 34.6)):
        token = _load(R1, "H200", Split(8), clients, 1024, 1024).loaded_per_token
        yield Row(f"R1, 8 H200, TP 8, {clients} clients, 1024/1024", "ms a token", published, token * 1e3,
                  "solved" if clients == 8 else "seen", INFERENCEX)  # fmt: skip
    for gpu, tensor, published in (
        ("H100", 2, (17.41, 18.22, 19.74, 23.54, 28.77)), ("H100", 4, (11.78, 12.11, 13.19, 16.49, 19.51)),
        ("H100", 8, (9.11, 9.36, 11.39, 12.64, 15.45)), ("H200", 1, (21.47, 22.56, 24.72, 33.19, 37.44)),
        ("H200", 2, (13.91, 14.36, 15.65, 20.35, 22.71)), ("H200", 4, (9.85, 10.14, 10.94, 14.38, 16.07)),
        ("H200", 8, (7.93, 8.52, 9.71, 11.01, 12.73)), ("B200", 1, (16.34, 16.63, 17.67, 19.56, 23.10)),
        ("B200", 8, (6.32, 6.90, 7.61, 9.23, 12.54)),
    ):  # fmt: skip
        for clients, value in zip((4, 8, 16, 32, 64), published, strict=True):
            token = _load(LLAMA_FP8, gpu, Split(tensor), clients, 1024, 1024).loaded_per_token
            what = f"70B FP8, {gpu}, TP {tensor}, {clients} clients, 1024/1024"
            yield Row(what, "ms a token", value, token * 1e3, "fresh", SILICON)
    for gpu, tensor, published in (
        ("H100", 2, (5.03, 6.25, 8.18, 10.94, 14.83)),
        ("H200", 8, (3.62, 3.97, 4.62, 5.58, 7.05)),
    ):
        for clients, value in zip((4, 8, 16, 32, 64), published, strict=True):
            token = _load(GPT_OSS, gpu, Split(tensor), clients, 1024, 1024).loaded_per_token
            yield Row(f"gpt-oss-120b, {gpu}, TP {tensor}, {clients} clients, 1024/1024", "ms a token", value,
                      token * 1e3, "fresh", SILICON)  # fmt: skip
    for name, model, gpu, published in (
        ("R1", R1, "H200", 15808), ("Qwen3-235B", QWEN_MOE, "H100", 21113),
        ("Qwen3-235B", QWEN_MOE, "A100-80", 8170),
    ):  # fmt: skip
        rate = _load(model, gpu, Split(8), 500, 4000, 200).throughput * 21
        what = f"{name}, 8 {gpu}, TP 8, 500 requests of 4000/200"
        yield Row(what, "tokens/s in and out", published, rate, "seen", GPUSTACK)


def _load(model: Model, gpu: str, split: Split, clients: int, prompt: int, output: int, nodes: int = 1):
    placed = Placed(hardware.gpu(gpu), split, nodes)
    return estimate(work(model.architecture, 2), placed, clients, prompt, output)


def _step(model: Model, gpu: str, split: Split, nodes: int, batch: int, context: int, eager: bool) -> float:
    return step(work(model.architecture, 2), Placed(hardware.gpu(gpu), split, nodes, eager), batch, context)


def _named(split: Split) -> str:
    return f"TP {split.tensor}" + (f" x PP {split.pipeline}" if split.pipeline > 1 else "")


if __name__ == "__main__":
    main()
