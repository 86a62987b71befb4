"""`rackserve plan` as it is typed: what it prints, as text and JSON, and how it ends."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import models
from models.plan import Node, Request, plan
from roles.vllm.arguments import arguments
from scripts.cli import main
from scripts.report import data
from scripts.report.found import Found

REPOSITORY = Path(__file__).parents[1]
LLAMA = ("llama-3.1-70b-instruct", "--gpus", "4xH100")
R1 = ("deepseek-r1", "--gpus", "8xH100")
LOG = """\
(Worker_TP0 pid=1) INFO [gpu_model_runner.py:4007] Model loading took 32.90 GiB and 12.1 seconds
(Worker_TP0 pid=1) INFO [gpu_worker.py:760] Available KV cache memory: 38.00 GiB
(EngineCore pid=2) INFO [kv_cache_utils.py:2326] GPU KV cache size: 497,936 tokens, \
Maximum concurrency for 131,072 tokens per request: 3.80x
"""


@pytest.fixture(autouse=True)
def without_an_inventory(monkeypatch):
    monkeypatch.delenv("RACKSERVE_INVENTORY", raising=False)


def rackserve(*words):
    done = CliRunner().invoke(main, ["plan", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def as_json(*words, ends=0):
    done = rackserve(*words, "--json")
    assert done.exit_code == ends, done.output
    return json.loads(done.stdout)


def refused(*words):
    """The one line with which it was refused as bad input."""
    done = rackserve(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("rackserve: ")
    return line


def in_a_new_process(*words, first=""):
    code = f"{first}\nfrom scripts.cli import main\nmain({list(words)!r})"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=environment
    )


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


def table(said):
    """{part: [GiB of each column]} of the table of memory, and its head."""
    lines = said[said.index("Memory of a GPU") :].split("\n\n")[0].splitlines()
    rows, head = {}, []
    for line in lines:
        if not re.match("  [a-zA-Z]", line):
            head += [line] if "(" not in line else []
        else:
            cells = re.findall(r"(-?[\d.]+) ([GM])iB|(?<= )-(?= |$)", line[22:])
            rows[line[:22].strip()] = [float(n or 0) / (1024 if unit == "M" else 1) for n, unit in cells]
    return rows, head


@pytest.mark.parametrize(
    "words",
    [
        LLAMA,
        R1,
        ("llama-3.1-405b", "--gpus", "16xH100", "--nodes", 4),
        ("llama-3.1-405b", "--gpus", "8xH100", "--context", 131072, "--concurrency", 4),
        (*LLAMA, "--vllm-arg", "gpu-memory-utilization=0.995"),
        (*LLAMA, "--vllm-arg", "kv-cache-memory-bytes=6000000000"),
        (*LLAMA, "--vllm-arg", "kv-cache-memory-bytes=60000000000"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_the_table_adds_up_to_the_gpu_and_what_is_free_to_what_is_missing(words):
    rows, _ = table(rackserve(*words).stdout)
    for column in zip(*rows.values(), strict=True):
        *parts, whole = column
        assert whole == 79.2
        assert sum(parts) == pytest.approx(whole, abs=0.05 * len(parts))
    found = json.loads(rackserve(*words, "--json").stdout)
    missing = found.get("missing_bytes", 0)
    assert min(rows["free"]) == pytest.approx(found["memory_per_gpu"]["free"] / 2**30, abs=0.051)
    assert found["memory_per_gpu"]["free"] == -missing if missing else min(rows["free"]) >= 0


def test_a_refusal_shows_the_kv_cache_that_was_wanted():
    said = rackserve(*R1, "--context", 16384, "--concurrency", 3).stdout
    assert table(said)[0]["KV cache wanted"] == [pytest.approx(3 * 16384 * 61 * 576 * 2 / 2**30, abs=0.06)]
    assert "\n  (KV cache wanted: for 3 x 16384 tokens)\n" in said
    assert "(free: of vLLM's share, 92 % of a GPU (gpu-memory-utilization))" in said


def test_the_columns_of_the_table_say_their_stage_their_host_and_their_ranks():
    stages, hosts, ranks = table(rackserve("llama-3.1-405b", "--gpus", "16xH100", "--nodes", 4).stdout)[1]
    assert stages.removeprefix("Memory of a GPU").split() == [
        "stage", "0", "stage", "1,", "fullest", "stage", "3",
    ]  # fmt: skip
    assert hosts.split() == ["node1", "node2", "node4"]
    assert ranks.split() == ["ranks", "0-3", "ranks", "4-7", "ranks", "12-15"]


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
    assert (len(many), many[0]["max_num_seqs"]) == (4, 1024)


def test_one_copy_over_many_nodes_is_called_slow_with_what_is_quicker():
    words = ("llama-3.1-70b", "--gpus", "512xH100", "--nodes", 64)
    line = rackserve(*words).stdout.splitlines()[1]
    assert line.startswith("Slow: --replicas 64 --tp 8 --pp 1 has ")
    quicker, now = as_json(*words, "--replicas", 64, "--tp", 8, "--pp", 1), as_json(*words)
    throughput = quicker["estimate"]["throughput_tokens_per_second"] * 64
    ratio = throughput / now["estimate"]["throughput_tokens_per_second"]
    assert f" {ratio:.1f} times the tokens/s" in line and ratio > 10
    assert now["remarks"] == [line] and quicker["remarks"] == []


@pytest.mark.parametrize("words", [LLAMA, ("deepseek-r1", "--gpus", "16xH100"), R1])
def test_what_is_as_quick_as_others_has_no_remark(words):
    assert rackserve(*words).stdout.splitlines()[1] == ""


def test_gpus_that_stay_unused_are_said():
    words = ("llama-3.1-70b", "--gpus", "800xH100", "--nodes", 100)
    assert rackserve(*words).stdout.splitlines()[1] == "Unused: 160 of 800 GPUs"


def test_what_serve_refuses_is_said_of_a_plan_and_of_a_refusal():
    line = "Not served yet: `serve` refuses MI300X, there is no ROCm runtime"
    for gpus, ends in (("8xMI300X", 0), ("2xMI300X", 3)):
        done = rackserve("llama-3.1-405b", "--gpus", gpus)
        assert (done.exit_code, done.stdout.splitlines()[1]) == (ends, line)


def test_the_preset_for_long_contexts_shares_the_cache_among_the_ranks():
    (replica,) = as_json("deepseek-r1", "--gpus", "8xH200", "--preset", "long-context")["replicas"]
    assert replica["decode_context_parallel_size"] == 8


def test_vllm_arguments_are_read_with_dashes_or_underscores():
    for name in ("max-model-len", "--max-model-len", "max_model_len"):
        assert as_json(*LLAMA, "--vllm-arg", f"{name}=4096")["replicas"][0]["max_model_len"] == 4096


def test_weights_made_fp8_while_loading_are_counted_and_other_ways_named_as_not_counted():
    made = as_json(*LLAMA, "--vllm-arg", "quantization=fp8")
    assert made["not_counted"] == []
    assert as_json(*LLAMA, "--vllm-arg", "quantization=bitsandbytes")["not_counted"] == ["quantization"]


def test_an_inventory_is_planned_as_serve_would():
    """In a process of its own: reading an inventory patches the whole process for gevent."""
    done = in_a_new_process("plan", "llama-3.1-70b", "-i", "cluster", "--json")
    (replica,) = json.loads(done.stdout)["replicas"]
    assert (replica["hosts"], replica["executor"]) == (["gpu1", "gpu2"], "ray")


@pytest.mark.parametrize(("name", "message"), [("nosuch", "no inventory nosuch"), ("local", "no gpu is set")])
def test_an_inventory_that_cannot_be_planned_is_refused(name, message):
    done = in_a_new_process("plan", "tiny-llama", "-i", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]


def test_gpus_are_used_instead_of_the_inventory_of_the_environment(monkeypatch):
    monkeypatch.setenv("RACKSERVE_INVENTORY", "cluster")
    assert as_json(*LLAMA)["replicas"][0]["hosts"] == ["node1"]


def test_explain_says_the_arithmetic_with_its_sources():
    said = rackserve(*LLAMA, "--explain").stdout
    assert "v1/worker/utils.py:724" in said and "85028896768" in said
    assert "1024 = 2 x 2 heads x 128 x 2" in said.replace("    ", "") and "source, config" in said
    assert as_json(*LLAMA, "--explain")["explain"][0].startswith("The arithmetic of a GPU")
    assert "explain" not in as_json(*LLAMA)
    assert "1152 = 576 x 2 (MLA: whole on every TP rank)" in rackserve(*R1, "--explain").stdout


@pytest.mark.parametrize(
    ("ending", "magic"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("SVG", b"<?xml"), ("PNG", b"\x89PNG")]
)
def test_a_plot_is_written_for_a_fit_and_for_a_refusal(tmp_path, ending, magic):
    for words, code in ((LLAMA, 0), (R1, 3)):
        file = tmp_path / f"memory.{ending}"
        assert rackserve(*words, "--plot", file).exit_code == code
        assert file.read_bytes().startswith(magic)
        file.unlink()


def test_a_plot_has_a_line_where_the_gpu_ends(tmp_path):
    file = tmp_path / "memory.svg"
    rackserve(*R1, "--plot", file)
    assert '<g id="limit">' in file.read_text()


def test_a_log_of_vllms_is_set_beside_the_plan(tmp_path):
    log = tmp_path / "vllm.log"
    log.write_text(LOG)
    lines = rackserve(*LLAMA, "--against-log", log).stdout.splitlines()
    rows = {line[:26].strip(): line[26:].split() for line in lines[3:]}
    assert rows["max_model_len"] == ["131072", "131072", "+0.0", "%"]
    assert rows["KV cache, tokens"][1] == "497936"
    assert rows["weights of a GPU, GiB"][1] == "32.90"
    assert abs(float(rows["weights of a GPU, GiB"][2])) < 1


def test_a_log_is_compared_for_machines_too(tmp_path):
    log = tmp_path / "vllm.log"
    log.write_text(LOG)
    found = as_json(*LLAMA, "--against-log", log)
    assert found["model"] == "llama-3.1-70b-instruct" and found["plan"] == "TP 4 x PP 1"
    compared = found["compared"]
    assert compared["kv_cache_tokens"]["vllm"] == 497936
    planned = as_json(*LLAMA)
    assert compared["kv_cache_tokens"]["plan"] == planned["replicas"][0]["kv_cache_tokens"]
    assert compared["max_model_len"] == {"plan": 131072, "vllm": 131072, "off_by": 0}
    weights = compared["weight_bytes_per_gpu"]
    assert weights["vllm"] == 32.9 * 2**30
    assert weights["off_by"] == pytest.approx(weights["plan"] / weights["vllm"] - 1)


def test_a_log_is_compared_with_the_arithmetic_and_the_chart_that_were_asked_for(tmp_path):
    log, chart = tmp_path / "vllm.log", tmp_path / "memory.svg"
    log.write_text(LOG)
    said = rackserve(*LLAMA, "--against-log", log, "--explain", "--plot", chart).stdout
    assert "off by" in said and "The arithmetic of a GPU of stage 0" in said
    assert chart.read_bytes().startswith(b"<?xml")
    assert as_json(*LLAMA, "--against-log", log, "--explain")["explain"][0].startswith("The arithmetic")


@pytest.mark.parametrize("log", ["", "hello", "GPU KV cache size: many tokens", "\x00\xff"])
def test_a_log_without_the_line_is_refused(tmp_path, log):
    file = tmp_path / "vllm.log"
    file.write_bytes(log.encode("latin-1"))
    assert "the log has no line" in refused(*LLAMA, "--against-log", file)


def test_a_strange_log_is_no_traceback(tmp_path):
    file = tmp_path / "vllm.log"
    file.write_text(LOG.replace("32.90", "3.2.9").replace("38.00", "-0.5").replace("497,936", "0"))
    assert rackserve(*LLAMA, "--against-log", file).exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpus", "4xH100"), "which model?"),
        (("", "--gpus", "4xH100"), "which model?"),
        (("llama-3.1-70b-instrukt", "--gpus", "4xH100"), "the nearest are: llama-3.1-70b-instruct,"),
        (("x" * 5000, "--gpus", "4xH100"), "unknown model"),
        (("tiny-llama", "--gpus", "nonsense"), "write how many and which, as in 16xH100"),
        (("tiny-llama", "--gpus", ""), "write how many and which"),
        (("tiny-llama", "--gpus", "-4xH100"), "write how many and which"),
        (("tiny-llama", "--gpus", "8xH100,8xA100"), "write how many and which"),
        (("tiny-llama", "--gpus", "0xH100"), "at least 1 GPU"),
        (("tiny-llama", "--gpus", "4xA100"), "GPU 'A100' may be A100-40 or A100-80: say which"),
        (("tiny-llama", "--gpus", "4xH101"), "unknown GPU 'H101'; the nearest are: H100"),
        (("tiny-llama", "--gpus", "16xH100", "--nodes", 3), "do not spread evenly over 3 nodes"),
        (("tiny-llama", "--gpus", "16xH100", "--nodes", 0), "--nodes 0: must be at least 1"),
        (("tiny-llama", "--gpus", "16xH100", "--nodes", -1), "--nodes -1: must be at least 1"),
        (("tiny-llama", "--nodes", 2), "give both"),
        (("./nosuch", "--gpus", "4xH100"), "unknown model './nosuch': there is no such folder"),
        (("bad-/name-", "--gpus", "4xH100"), "not a repository of the hub"),
        (("tiny-llama", "--gpus", "4xH100", "-i", "cluster"), "either --gpus or an inventory"),
        ((*LLAMA, "--context", 0), "context is 0"),
        ((*LLAMA, "--context", -1), "context is -1"),
        ((*LLAMA, "--context", 10**12), "more than the model's own 131072"),
        ((*LLAMA, "--concurrency", 0), "concurrency is 0"),
        ((*LLAMA, "--concurrency", 10**9), "concurrency is 1000000000"),
        ((*LLAMA, "--tp", 0), "tensor_parallel is 0"),
        ((*LLAMA, "--tp", 3), "TP can be 1, 2, 4"),
        ((*LLAMA, "--tp", 8), "needs 8 GPUs"),
        ((*LLAMA, "--pp", -1), "pipeline_parallel is -1"),
        ((*LLAMA, "--replicas", -1), "replicas is -1"),
        ((*LLAMA, "--replicas", 2), "2 replicas need as many nodes"),
        ((*LLAMA, "--vllm-arg", "nonsense"), "write NAME=VALUE"),
        ((*LLAMA, "--vllm-arg", "=1"), "write NAME=VALUE"),
        ((*LLAMA, "--vllm-arg", "max-num-seqs=many"), "max-num-seqs is 'many'"),
        ((*LLAMA, "--vllm-arg", "gpu-memory-utilization=2"), "above 0 and at most 1"),
        ((*LLAMA, "--vllm-arg", "kv-cache-dtype=int3"), "kv-cache-dtype is 'int3'"),
        ((*LLAMA, "--vllm-arg", "hf-overrides=x"), "hf-overrides is 'x'"),
        ((*LLAMA, "--vllm-arg", "tensor-parallel-size=2"), "set tensor_parallel"),
        ((*LLAMA, "--tp", 2, "--vllm-arg", "tensor-parallel-size=2"), "set tensor_parallel"),
        ((*LLAMA, "--vllm-arg", "pipeline-parallel-size=2"), "set pipeline_parallel"),
        ((*LLAMA, "--vllm-arg", "distributed-executor-backend=mp"), "set executor"),
        ((*LLAMA, "--vllm-arg", "nnodes=2"), "set executor"),
        ((*LLAMA, "--vllm-arg", "port=9"), "set port"),
        ((*LLAMA, "--vllm-arg", "max-num-seqs=1", "--concurrency", 10),
         "max-num-seqs is 1, and concurrency 10: make one fit the other"),
        ((*LLAMA, "--vllm-arg", "max_num_active_seqs=1", "--concurrency", 10), "max-num-active-seqs is 1"),
        ((*LLAMA, "--vllm-arg", "max-num-batched-tokens=9", "--concurrency", 10), "tokens is 9,"),
        ((*LLAMA, "--vllm-arg", "max-model-len=4096", "--context", 8192),
         "max-model-len is 4096, and context 8192: leave one of them out"),
        ((*LLAMA, "--vllm-arg", "enable-chunked-prefill=false"),
         "max-num-batched-tokens must be at least max-model-len: 8192 and 131072"),
        ((*LLAMA, "--vllm-arg", "enable-expert-parallel=true"), "no experts to spread"),
        ((*LLAMA, "--plot", "x.pdf"), "must end in .svg or .png"),
        ((*LLAMA, "--against-log", "/nonexistent/x"), "No such file"),
        ((*LLAMA, "--against-log", "/"), "Is a directory"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_ends_with_2(words, message):
    assert message in refused(*words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--vllm-arg", "max-num-seqs=10", "--concurrency", 10), {"max_num_seqs": 10}),
        (("--vllm-arg", "max-model-len=4096", "--context", 4096), {"max_model_len": 4096}),
        (("--preset", "latency", "--concurrency", 40, "--context", 1024), {"max_num_seqs": 40}),
        (("--vllm-arg", "enable-chunked-prefill=false", "--context", 8192), {"max_model_len": 8192}),
    ],
)
def test_what_is_said_twice_and_alike_is_planned_and_a_preset_gives_way(words, told):
    (replica,) = as_json(*LLAMA, *words)["replicas"]
    assert replica.items() >= told.items()


def test_a_plot_that_cannot_be_written_is_refused():
    done = rackserve(*LLAMA, "--plot", "/nonexistent/x.svg")
    assert done.exit_code == 2
    assert done.stderr == "rackserve: --plot /nonexistent/x.svg: No such file or directory\n"


def test_a_catalogue_file_with_a_mistake_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "with-a-mistake.yaml").write_text("repository: a/b\nconfig: {}\n")
    monkeypatch.setattr(models, "_CATALOGUE", tmp_path)
    done = CliRunner().invoke(main, ["models"])
    assert (done.exit_code, done.stdout) == (2, "")
    place = "models/catalogue/with-a-mistake.yaml"
    assert done.stderr == f"rackserve: {place}: config: has no architectures: is it a model's?\n"


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


def test_a_plan_names_the_gpus_of_every_stage_and_what_it_does_not_count():
    said = CliRunner().invoke(main, ["plan", "qwen2.5-32b-instruct", "--gpus", "3xH100",
                                     "--vllm-arg", "cpu-offload-gb=4"]).stdout  # fmt: skip
    assert "node1 GPU 0: 21 layers; node1 GPU 1: 22 layers; node1 GPU 2: 21 layers" in said
    assert "Not counted in this plan: cpu-offload-gb" in said
