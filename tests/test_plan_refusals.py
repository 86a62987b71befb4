"""What `rackserve plan` refuses: one line, and exit code 2."""

import pytest
from click.testing import CliRunner

import models
from scripts.cli import main
from tests.typed import LLAMA, as_json, in_a_new_process, rackserve, refused


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
        ((*LLAMA, "--replicas", 5), "5 replicas need as many GPUs"),
        ((*LLAMA, "--vllm-arg", "nonsense"), "write NAME=VALUE"),
        ((*LLAMA, "--vllm-arg", "=1"), "write NAME=VALUE"),
        ((*LLAMA, "--vllm-arg", "seed=1", "--vllm-arg", "seed=2"), "seed=2: seed is said twice"),
        ((*LLAMA, "--vllm-arg", "max-num-seqs=" + "[" * 100_000), "max-num-seqs is '[["),
        ((*LLAMA, "--vllm-arg", "enforce-eager=False"), "must be true or false"),
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
        (("--preset", "throughput", "--concurrency", 1100, "--context", 64), {"max_num_seqs": 1100}),
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


@pytest.mark.parametrize(("name", "message"), [("nosuch", "no inventory nosuch"), ("local", "no gpu is set")])
def test_an_inventory_that_cannot_be_planned_is_refused(name, message):
    done = in_a_new_process("plan", "tiny-llama", "-i", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("method", ["bogus", "awq", "bitsandbytes"])
def test_a_quantization_that_vllm_cannot_make_while_loading_is_refused(method):
    said = refused(*LLAMA, "--vllm-arg", f"quantization={method}")
    assert f"quantization is {method}: weights that are not quantized are made fp8" in said
