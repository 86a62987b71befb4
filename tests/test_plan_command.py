"""`rackserve plan` as it is typed: what it plans, as text and JSON, and how it ends."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import models
from deploys.settings import Settings
from models import source
from models.plan import Node, Request
from models.planner import plan
from roles.vllm.arguments import arguments
from scripts import plan as plan_command
from scripts.cli import main
from scripts.report import data
from scripts.report.found import Found
from tests.typed import LLAMA, R1, as_json, in_a_new_process, rackserve


def test_a_fit_says_the_split_the_memory_the_context_and_vllms_flags():
    done = rackserve(*LLAMA)
    assert done.exit_code == 0 and done.stderr == ""
    assert done.stdout.startswith("llama-3.1-70b-instruct fits: TP 4 x PP 1 on 4 H100\n")
    for part in ("attention", "KV cache", "activations", "CUDA graphs", "free"):
        assert f"\n  {part} " in done.stdout
    assert "Context                 131072 tokens" in done.stdout
    assert "  tensor-parallel-size: 4\n" in done.stdout


def test_a_refusal_says_what_is_missing_and_what_would_fit_and_ends_with_3():
    done = rackserve(*R1)
    assert done.exit_code == 3
    assert done.stdout.startswith("deepseek-r1 does not fit on 8 H100 (TP 8 x PP 1, EP): each GPU lacks ")
    assert done.stdout.endswith("What would fit:\n  2 nodes of 8 H100\n  H200 instead of H100\n")


def test_a_fit_as_json():
    found = as_json(*LLAMA)
    assert found["fits"] is True and found["repository"] == "meta-llama/Llama-3.1-70B-Instruct"
    assert sum(found["memory_per_gpu"].values()) == 85_028_896_768
    (replica,) = found["replicas"]
    assert (replica["tensor_parallel_size"], replica["pipeline_parallel_size"]) == (4, 1)
    assert replica["max_model_len"] == 131072
    assert replica["kv_cache_tokens"] == pytest.approx(replica["max_concurrency"] * 131072)
    assert set(replica["flags"]) >= {"tensor-parallel-size", "max-model-len"}
    assert found["estimate"]["throughput_tokens_per_second"] > 0


@pytest.mark.parametrize("executor", ["ray", "mp"])
@pytest.mark.parametrize("name", ["llama-3.1-70b-instruct", "deepseek-r1"])
def test_the_json_is_enough_to_write_vllms_config_file(name, executor):
    model, nodes = models.get(name), [Node(f"gpu{n}", f"10.0.0.{n}", 8, "H200") for n in (1, 2)]
    found = data.as_json(Found.of(model, nodes, Request(executor=executor)))
    (replica,) = json.loads(json.dumps(found))["replicas"]
    config = {flag: replica[flag.replace("-", "_")] for flag in replica["flags"]}
    assert Path(config["chat-template"]).is_absolute() and Path(config["chat-template"]).is_file()
    (made,) = plan(model, nodes, executor=executor).replicas
    told = arguments(model, made, "gpu1", "/path", config["chat-template"])
    own = {
        flag: told.pop(flag) for flag in ("model", "served-model-name", "host", "port", "shutdown-timeout")
    }
    told.pop("node-rank", None)
    assert config == told
    assert (replica["port"], found["revision"]) == (own["port"], model.revision)
    assert found["environment"] == dict(model.environment)


def test_a_refusal_as_json():
    found = as_json(*R1, ends=3)
    assert (found["fits"], found["replicas"]) == (False, [])
    assert found["missing_bytes"] > 2**30
    assert [one["change"] for one in found["suggestions"]] == [{"nodes": 2}, {"gpu": "H200"}]


@pytest.mark.parametrize(
    ("words", "tensor", "pipeline"),
    [
        (("llama-3.1-405b", "--gpus", "16xH100"), 8, 2),
        (("llama-3.1-405b", "--gpus", "16xH100", "--nodes", 4), 4, 4),
        (("llama-3.1-405b-instruct-fp8", "--gpus", "8xH100"), 8, 1),
        (("llama-3.1-405b-instruct-fp8", "--gpus", "4xH200"), 4, 1),
        (("deepseek-r1", "--gpus", "16xH100"), 8, 2),
        (("deepseek-r1-0528", "--gpus", "8xH200"), 8, 1),
        (("deepseek-r1", "--gpus", "16xH100", "--tp", 16, "--pp", 1), 16, 1),
        (("deepseek-r1", "--gpus", "8 x H200"), 8, 1),
        (("llama-3.3-70b", "--gpus", "4xNVIDIA H100 80GB HBM3"), 4, 1),
        (("Llama-3.1-70B", "--gpus", "4xA100-SXM4-80GB"), 4, 1),
    ],
)
def test_gpus_are_counted_in_all(words, tensor, pipeline):
    (replica,) = as_json(*words)["replicas"]
    assert (replica["tensor_parallel_size"], replica["pipeline_parallel_size"]) == (tensor, pipeline)
    assert len(replica["hosts"]) * replica["gpus_per_host"] == tensor * pipeline
    assert len(replica["stages"]) == pipeline


def test_targets_decide_the_context_and_whether_it_fits():
    asked = (*LLAMA, "--context", 32768)
    assert as_json(*asked)["replicas"][0]["max_model_len"] == 32768
    assert as_json(*asked, "--concurrency", 14)["replicas"][0]["max_concurrency"] >= 14
    changes = [one["change"] for one in as_json(*asked, "--concurrency", 15, ends=3)["suggestions"]]
    assert {"concurrency": 14} in changes


def test_what_is_optimized_for_chooses_the_preset_and_the_replicas():
    quick = as_json("llama-3.1-70b", "--gpus", "32xH100", "--optimize", "latency")["replicas"]
    many = as_json("llama-3.1-70b", "--gpus", "32xH100", "--optimize", "throughput")["replicas"]
    assert (len(quick), quick[0]["max_num_batched_tokens"]) == (4, 2048)
    assert (len(many), many[0]["max_num_seqs"]) == (8, 1024)


def test_the_preset_for_long_contexts_shares_the_cache_among_the_ranks():
    (replica,) = as_json("deepseek-r1", "--gpus", "8xH200", "--preset", "long-context")["replicas"]
    assert replica["decode_context_parallel_size"] == 8


def test_vllm_arguments_are_read_with_dashes_or_underscores():
    for name in ("max-model-len", "--max-model-len", "max_model_len"):
        assert as_json(*LLAMA, "--vllm-arg", f"{name}=4096")["replicas"][0]["max_model_len"] == 4096


def test_weights_made_fp8_while_loading_are_counted_and_other_ways_named_as_not_counted():
    made = as_json(*LLAMA, "--vllm-arg", "quantization=fp8")
    assert made["not_counted"] == {}
    assert list(as_json(*LLAMA, "--vllm-arg", "quantization=mxfp8")["not_counted"]) == ["quantization"]


def test_the_hub_of_an_inventory_is_asked_for_the_inventorys_revision(monkeypatch):
    asked = []
    monkeypatch.setattr(source, "find", lambda *what: asked.append(what) or models.get("tiny-llama"))
    own = Settings(address="10.0.0.1", revision="v2", hf_endpoint="http://hub", hf_token="hf_x")
    said = dict.fromkeys(("revision", "preset", "optimize"))
    for given in (said, {**said, "revision": "v3"}):
        plan_command._model("org/m", {**given, "vllm_args": ()}, own)
    assert asked == [("org/m", "v2", "http://hub", "hf_x"), ("org/m", "v3", "http://hub", "hf_x")]


def test_an_inventory_is_planned_as_serve_would():
    """In a process of its own: reading an inventory patches the whole process for gevent."""
    done = in_a_new_process("plan", "llama-3.1-70b", "-i", "cluster", "--json")
    (replica,) = json.loads(done.stdout)["replicas"]
    assert (replica["hosts"], replica["executor"]) == (["gpu1", "gpu2"], "ray")


def test_gpus_are_used_instead_of_the_inventory_of_the_environment():
    assert as_json(*LLAMA, inventory="cluster")["replicas"][0]["hosts"] == ["node1"]


def test_models_as_json_have_their_published_parameters():
    done = CliRunner().invoke(main, ["models", "--json"])
    listed = {one["name"]: one for one in json.loads(done.stdout)}
    assert list(listed) == models.names()
    assert listed["deepseek-r1"]["parameters"] == 671_026_419_200
    assert listed["llama-3.1-70b"]["weight_bytes"] == 141_107_412_992


@pytest.mark.parametrize("words", [LLAMA, R1, (*LLAMA, "--json")], ids=" ".join)
def test_planning_gpus_imports_neither_pyinfra_nor_what_else_takes_long(words):
    done = in_a_new_process("plan", *words, first="import atexit, sys; atexit.register("
                            "lambda: print(*sys.modules, file=sys.stderr))")  # fmt: skip
    assert done.returncode == (3 if words is R1 else 0)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "models" in loaded
    assert not loaded & {"pyinfra", "gevent", "torch", "vllm", "matplotlib", "huggingface_hub", "numpy"}
