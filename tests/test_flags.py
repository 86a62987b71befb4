"""vLLM's flags: each is decided by a plan, refused, counted, named as not counted, or changes nothing."""

from pathlib import Path

import pytest

import models
from models import arguments, conflicts, flags
from models.errors import ModelError, PlanError
from models.plan import Node
from models.planner import plan

R1, GPT_OSS, LLAMA = (models.get(name) for name in ("deepseek-r1", "gpt-oss-120b", "llama-3.1-70b"))
GROUPS = arguments.groups()

#: Models for CPUs.
LAB = ("smollm2-135m-instruct", "tiny-llama", "tiny-llama-gated")

#: For each flag that is counted: a model, and a value that changes its plan.
COUNTED = {
    "async-scheduling": (GPT_OSS, False),
    "block-size": (R1, 64),
    "data-parallel-size": (R1, 8),
    "decode-context-parallel-size": (R1, 8),
    "device-memory-utilization": (R1, 0.8),
    "disable-chunked-prefill": (R1, True),
    "disable-expert-parallel": (R1, True),
    "dtype": (R1, "float32"),
    "enable-chunked-prefill": (R1, False),
    "enable-expert-parallel": (R1, False),
    "enforce-eager": (R1, True),
    "gpu-memory-utilization": (R1, 0.8),
    "hf-overrides": (R1, {"num_hidden_layers": 30}),
    "kv-cache-dtype": (R1, "fp8"),
    "kv-cache-memory-bytes": (R1, 10**9),
    "max-model-len": (R1, 9000),
    "max-num-batched-tokens": (R1, 4096),
    "max-num-seqs": (R1, 4096),
}


def planned(own, **said):
    """What is planned of a model on 8 H200: its split and its memory; or why nothing is."""
    try:
        (replica,) = plan(own.with_(arguments=said), [Node("gpu1", "10.0.0.1", 8, "H200")]).replicas
    except PlanError as refusal:
        return str(refusal)
    return replica.split, replica.fit


def test_every_flag_is_in_one_group():
    lines = Path(models.__file__).with_name("vllm_flags.txt").read_text().splitlines()
    written = [line.partition(":")[0] for line in lines if not line.startswith("#")]
    assert len(written) == len(set(written)) == len(arguments.names()) > 300
    heads = [line.removeprefix("# ").partition(":")[0] for line in lines if line.startswith("#")]
    assert heads == list(GROUPS)
    assert all(GROUPS["not counted"].values()), "each says what it changes"


def test_what_a_plan_decides_is_refused_with_what_to_set_instead():
    assert set(GROUPS["decided"]) == set(conflicts.PLANNED)
    for flag, setting in conflicts.PLANNED.items():
        assert planned(LLAMA, **{flag: 1}).endswith(f"leave it out of vLLM's arguments and set {setting}")


def test_what_no_plan_has_is_refused():
    for flag in GROUPS["refused"]:
        assert planned(LLAMA, **{flag: 2}) == f"{flag} is not planned: leave it out of vLLM's arguments"


def test_a_value_is_known_for_each_flag_that_is_counted():
    assert set(COUNTED) == set(GROUPS["counted"])


@pytest.mark.parametrize("flag", COUNTED)
def test_what_is_counted_changes_the_plan(flag):
    model, value = COUNTED[flag]
    assert planned(model, **{flag: value}) != planned(model)


@pytest.mark.parametrize("flag", GROUPS["nothing"])
def test_what_changes_nothing_changes_nothing(flag):
    assert planned(LLAMA, **{flag: "x"}) == planned(LLAMA)
    assert named(LLAMA, **{flag: "x"}) == {}


def named(own, gpu="H200", **said):
    made = plan(own.with_(arguments=said), [Node("gpu1", "10.0.0.1", 8, gpu)])
    return flags.not_counted(made.replicas[0], made.model)


@pytest.mark.parametrize("flag", GROUPS["not counted"])
def test_what_is_not_counted_is_named_with_what_it_changes(flag):
    value = "mxfp8" if flag == "quantization" else "x"
    assert planned(LLAMA, **{flag: value}) == planned(LLAMA)
    assert named(LLAMA, **{flag: value}) == {flag: GROUPS["not counted"][flag]}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"cpu-offload-gb": 0}, {}),
        ({"attention-backend": "auto"}, {}),
        ({"enable-lora": False}, {}),
        ({"disable-lora": True}, {}),
        ({"disable-lora": False}, {"enable-lora"}),
        ({"enable-hybrid-kv-cache-manager": False}, {"disable-hybrid-kv-cache-manager"}),
        ({"compilation-config.mode": 3}, {"compilation-config.mode"}),
        ({"compilation-config": {"mode": 3}, "enforce-eager": True}, {}),
        ({"speculative_config": {"method": "mtp"}}, {"speculative-config"}),
    ],
)
def test_only_what_does_something_is_named(said, told):
    assert set(named(LLAMA, **said)) == set(told)


def test_no_model_of_the_catalogue_has_what_is_not_counted_on_gpus():
    for name in models.names():
        graphs = {flag for flag, what in GROUPS["not counted"].items() if what == "CUDA graphs"}
        known = graphs if name in LAB else set()
        assert not set(models.get(name).arguments) & set(GROUPS["not counted"]) - known, name


def test_a_cpu_has_no_graphs():
    made = plan(models.get("tiny-llama"), [Node("node1", "10.0.0.1", 1, "cpu")])
    (replica,) = made.replicas
    assert "compilation-config" in replica.arguments and flags.not_counted(replica, made.model) == {}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"no-enable-expert-parallel": True}, {"enable-expert-parallel": False}),
        ({"no_enable_expert_parallel": False}, {"enable-expert-parallel": True}),
        ({"disable-expert-parallel": True}, {"enable-expert-parallel": False}),
        ({"no-disable-chunked-prefill": True}, {"enable-chunked-prefill": True}),
        ({"device_memory_utilization": 0.8}, {"gpu-memory-utilization": 0.8}),
        ({"disable-custom-all-reduce": True}, {"disable-custom-all-reduce": True}),
        ({"compilation_config.mode": 3}, {"compilation-config.mode": 3}),
    ],
)
def test_a_flag_has_one_spelling(written, meant):
    changed = R1.with_(arguments=written)
    assert dict(changed.arguments) == {**R1.arguments, **meant}
    assert changed.said == set(meant)


def test_a_flag_that_is_said_in_two_spellings_is_refused():
    both = {"device-memory-utilization": 0.8, "gpu_memory_utilization": 0.9}
    with pytest.raises(ModelError, match="vLLM's gpu-memory-utilization is said twice"):
        R1.with_(arguments=both)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("enable-expert-parallel", "False"),
        ("disable_expert_parallel", "False"),
        ("no-enforce-eager", "yes"),
        ("enforce-eager", 0),
        ("async-scheduling", None),
    ],
)
def test_what_is_neither_on_nor_off_is_refused(flag, value):
    """Any text is on in Python: the plan would have the opposite of what was meant."""
    with pytest.raises(ModelError, match=f"{flag.replace('_', '-')} is {value!r}: must be true or false"):
        R1.with_(arguments={flag: value})


def test_a_flag_whose_name_is_no_text_is_no_flag():
    with pytest.raises(ModelError, match="vLLM has no flag 5"):
        R1.with_(arguments={5: 1})
