"""The planner held against vLLM itself: its parameters, its parsers. Needs no node.

The CPU build is the lab's own, 0.32; for GPUs it is 0.33, of which only the Python runs here.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import models
from models.arguments import names
from models.config import DEFAULTS, KINDS, quantized, read
from models.errors import PlanError
from models.hardware import GPUS
from models.model import PRESETS, Model
from models.plan import Node
from models.planner import plan
from models.weights import Split, tensors
from roles.vllm.arguments import arguments, variables
from tests.lab import software
from tests.lab.paths import ENVIRONMENT
from tests.lab.tiny import CASES

pytestmark = pytest.mark.lab

HERE = Path(__file__).parent / "lab"
#: What must not pass, and what is said of it.
WRONG = (
    ({"arguments": {"model": "/m", "tensor-parallel": 8}}, "unknown: tensor-parallel"),  # a prefix
    ({"arguments": {"model": "/m", "max-model-len": "long"}}, "refused: "),
    ({"arguments": {"model": "/m", "enable-auto-tool-choice": True, "tool-call-parser": "x"}}, "refused: "),
    ({"arguments": {"model": "/m", "reasoning-parser": "x"}}, "refused: "),
    (
        {"arguments": {"model": "/m"}, "environment": {"VLLM_KVCACHE_SPACE": "1"}},
        "unknown: VLLM_KVCACHE_SPACE",
    ),
)

#: Where a node has the template is told; here it is read where the repository has it.
TEMPLATES = Path(models.__file__).parent / "templates"


@pytest.fixture(scope="module", autouse=True)
def environment() -> None:
    software.prepare(print)


@pytest.fixture(scope="module")
def ranks() -> dict[str, list[int]]:
    """{case: bytes of the parameters that vLLM made on each rank}"""
    keys = ("config", "tensor", "pipeline", "expert", "quantization")
    cases = [dict(zip(keys, case, strict=True)) for case in CASES.values()]
    return dict(zip(CASES, ask("ranks.py", cases), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_the_weights_of_every_rank_are_those_that_vllm_makes(name: str, ranks: dict[str, list[int]]) -> None:
    config, tensor, pipeline, expert, quantization = CASES[name]
    own, split = read(config), Split(tensor, pipeline, expert=expert)
    own = quantized(own, quantization) if quantization else own
    planned = [
        sum(one.bytes for one in tensors(own, split, stage=rank // tensor, rank=rank % tensor)
            if not one.name.endswith("scale"))
        for rank in range(split.gpus)
    ]  # fmt: skip
    assert planned == ranks[name]


def test_what_a_config_leaves_out_is_what_transformers_classes_say() -> None:
    """None is a rule of ours, too: as many key-value heads as heads, hidden size over heads."""
    asked = ("num_key_value_heads", "sliding_window", "max_window_layers", "head_dim")
    said = ask("defaults.py", dict.fromkeys(KINDS, asked))
    for kind in KINDS:
        told = {key: value for key, value in said[kind].items() if value is not None}
        assert told == DEFAULTS.get(kind, {}), kind


def test_vllm_for_cpus_parses_every_plan_of_the_lab_and_would_have_said_what_is_wrong() -> None:
    plans = list(every_plan(cpu=True))
    said = ask("parse.py", [*plans, *({"environment": {}, **wrong} for wrong, _ in WRONG)])
    assert said["version"].startswith("0.32.")
    assert [wrong for wrong in said["wrong"][: len(plans)] if wrong] == []
    for told, (_, expected) in zip(said["wrong"][len(plans) :], WRONG, strict=True):
        assert (told or "").startswith(expected)


def test_vllm_for_gpus_parses_every_plan_for_gpus() -> None:
    plans = list(every_plan(cpu=False))
    assert len(plans) > 1000
    said = ask("parse.py", plans, PYTHONPATH=str(software.gpu_vllm()))
    assert said["version"].startswith("0.33.")
    flags = {name.removeprefix("no-") for name in said["names"]} - {"help", "config"}
    assert flags == names()
    assert [wrong for wrong in said["wrong"] if wrong] == []


def every_plan(cpu: bool) -> Iterator[dict[str, Any]]:
    """What a host is told for each model, GPU, preset, number of nodes and executor that fit."""
    for name in models.names():
        for row in GPUS.values():
            if (row.vendor == "cpu") is not cpu or (name in LAB) is not cpu:
                continue
            for preset in (None, *PRESETS):
                model = models.get(name).with_(preset=preset)
                for nodes in (1, 2, 4):
                    for executor in ("ray", "mp"):
                        yield from _told(model, row.name, row.per_node, nodes, executor)


#: Models that are served by the CPU build only.
LAB = ("smollm2-135m-instruct", "tiny-llama", "tiny-llama-gated")


def _told(model: Model, gpu: str, gpus: int, count: int, executor: str) -> Iterator[dict[str, Any]]:
    nodes = [Node(f"node{index}", f"10.0.0.{index}", gpus, gpu) for index in range(1, count + 1)]
    try:
        replica = plan(model, nodes, executor=executor).replicas[0]
    except PlanError:
        return
    for host in {replica.hosts[0], replica.hosts[-1]}:
        template = str(TEMPLATES / f"{model.template}.jinja") if model.template else None
        yield {
            "arguments": arguments(model, replica, host, "/srv/model", template),
            "environment": variables(model, "/var/cache/rackserve"),
        }


def ask(script: str, question: Any, **environment: str) -> Any:
    """Run a script of tests/lab in vLLM's environment; it answers the last line it prints."""
    done = subprocess.run(
        [ENVIRONMENT / "bin/python", HERE / script],
        input=json.dumps(question), text=True, capture_output=True, timeout=300, env=environment or None,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
