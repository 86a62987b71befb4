"""What `rackserve plan` says of a plan: its table, its remarks, its chart, and a log beside it."""

import json
import re

import pytest
from click.testing import CliRunner

from scripts.cli import main
from tests.typed import LLAMA, R1, as_json, rackserve, refused

LOG = """\
(Worker_TP0 pid=1) INFO [gpu_model_runner.py:4007] Model loading took 32.90 GiB and 12.1 seconds
(Worker_TP0 pid=1) INFO [gpu_worker.py:760] Available KV cache memory: 38.00 GiB
(EngineCore pid=2) INFO [kv_cache_utils.py:2326] GPU KV cache size: 497,936 tokens, \
Maximum concurrency for 131,072 tokens per request: 3.80x
"""


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
        (*LLAMA, "--vllm-arg", "gpu-memory-utilization=0.98"),
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


def test_a_plan_names_the_gpus_of_every_stage_and_what_it_does_not_count():
    said = CliRunner().invoke(main, ["plan", "qwen2.5-32b-instruct", "--gpus", "3xH100",
                                     "--vllm-arg", "cpu-offload-gb=4"]).stdout  # fmt: skip
    assert "node1 GPU 0: 21 layers; node1 GPU 1: 22 layers; node1 GPU 2: 21 layers" in said
    assert "\nNot counted in this plan: cpu-offload-gb (weights in the host's memory)\n" in said


def test_a_refusal_says_too_what_it_does_not_count():
    done = rackserve(*R1, "--vllm-arg", "cpu-offload-gb=40")
    assert done.exit_code == 3 and "\nNot counted in this plan: cpu-offload-gb (" in done.stdout
    assert as_json(*R1, "--vllm-arg", "cpu-offload-gb=40", ends=3)["not_counted"] == {
        "cpu-offload-gb": "weights in the host's memory"
    }


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


def test_explain_says_the_arithmetic_with_its_sources():
    said = rackserve(*LLAMA, "--explain").stdout
    assert "v1/worker/utils.py:724" in said and "85028896768" in said
    assert "1024 = 2 x 2 heads x 128 x 2" in said.replace("    ", "") and "source, config" in said
    assert as_json(*LLAMA, "--explain")["explain"][0].startswith("The arithmetic of a GPU")
    assert "explain" not in as_json(*LLAMA)
    assert "1152 = 576 x 2 (MLA: whole on every TP rank)" in rackserve(*R1, "--explain").stdout


@pytest.mark.parametrize("name", ["gpt-oss-120b", "llama-3.1-70b"])
def test_the_blocks_that_explain_says_are_what_is_left_over_the_size_of_one(name):
    """Of gpt-oss, whose layers form two groups, a block is of half the layers."""
    lines = as_json(name, "--gpus", "4xH100", "--explain")["explain"]
    said = {line[2:24].strip(): int(re.match(r"\d+", line[24:])[0]) for line in lines[1:12]}
    assert said["blocks"] == said["left for KV"] // said["a block"]


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
