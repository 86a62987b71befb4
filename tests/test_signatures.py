"""Causes that journals name, from lines as the programs print them."""

import re

import pytest

from roles.doctor import SIGNATURES, diagnose
from tests.seen import RECORDED

V = "2026-11-24T04:10:00+0000 node1 vllm[812]: "

#: {signature: a line, and what must be repeated of it}. vLLM's, Ray's and torch's Python lines are
#: those of their sources (vLLM 0.32.0, Ray 2.60.0: SIGNATURES says where) with values put in; the others
#: were printed by real programs, and the issue that shows each stands before it.
LINES = {
    "log.placement": (
        "(EngineCore pid=9) INFO 11-24 04:10:00 [ray_utils.py:467] Waiting for creating a placement group of"
        " specs for 30 seconds. specs=[{'GPU': 1.0}, {'GPU': 1.0}]. Check `ray status` and `ray list nodes`"
        " to see if you have enough resources, and make sure the IP addresses used by ray cluster are the"
        " same as VLLM_HOST_IP environment variable specified in each node if you are running on a"
        " multi-node.",
        "30 seconds",
    ),
    "log.placement-failed": (
        "ValueError: Cannot provide a placement group requiring 16 GPUs (placement_group_specs=[...])"
        " within 1800 seconds.",
        "requiring 16 GPUs",
    ),
    # pytorch/gloo#223
    "log.gloo-loopback": (
        "[<some path>/gloo/gloo/transport/tcp/pair.cc:761] connect [127.0.1.1]:60817: Connection refused",
        "[127.0.1.1]:60817",
    ),
    # vllm#9329
    "log.nccl-no-library": (
        "3837134f4773:4457:4457 [0] NCCL INFO Failed to open libibverbs.so[.1]",
        "Failed to open libibverbs.so[.1]",
    ),
    # vllm#9329
    "log.nccl-tcp": ("3837134f4773:4457:4457 [0] NCCL INFO Using network Socket", "Using network Socket"),
    # nccl-tests#206
    "log.memlock": (
        "misc/ibvwrap.cc:278 NCCL WARN Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory",
        "Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory",
    ),
    # ray#53845
    "log.step-timeout": (
        "ERROR 06-16 10:59:13 [core.py:505] ray.exceptions.RayChannelTimeoutError: System error: Timed out"
        " waiting for object available to read. ObjectID: 00cc316456d39201286bda103a37bbae72e42e38",
        "Timed out waiting for object available to read",
    ),
    "log.memory-free": (
        "ValueError: Free memory on device cuda:0 (31.02/79.11 GiB) on startup is less than desired GPU"
        " memory utilization (0.92, 72.78 GiB). Decrease GPU memory utilization or reduce GPU memory"
        " used by other processes.",
        "31.02/79.11 GiB",
    ),
    "log.memory-cache": (
        "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache"
        " is needed, which is larger than the available KV cache memory (3.1 GiB).",
        "16.0 GiB KV cache is needed, which is larger than the available KV cache memory (3.1 GiB)",
    ),
    "log.memory-none": (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when"
        " initializing the engine",
        "No available memory",
    ),
    # torch 2.x on an H100, as people quote it
    "log.memory-gpu": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 144.00 MiB. GPU 0 has a total capacity"
        " of 79.25 GiB of which 6.88 MiB is free. Process 1322713 has 79.23 GiB memory in use.",
        "Tried to allocate 144.00 MiB. GPU 0 has a total capacity of 79.25 GiB of which 6.88 MiB is free",
    ),
    # Ray's page on preventing lack of memory
    "log.memory-host": (
        "Memory on the node (IP: 10.0.62.231, ID: e5d9) where the task (task ID: 4353, name=allocate_memory,"
        " pid=11362, memory used=1.25GB) was running was 27.71GB / 28.80GB (0.962273), which exceeds the"
        " memory usage threshold of 0.95. Ray killed this worker",
        "27.71GB / 28.80GB (0.962273)",
    ),
    "log.ready-timeout": (
        "TimeoutError: Timed out waiting for engine core processes to start. This is often caused by slow"
        " weight loading for large models. Waited 600s (configured by VLLM_ENGINE_READY_TIMEOUT_S).",
        "Waited 600s",
    ),
    # nccl-tests#166
    "log.shm": (
        "ubuntu:9621:9688 [3] misc/shmutils.cc:112 NCCL WARN Error while creating shared memory segment"
        " /dev/shm/nccl-KWfVyt (size 5967872)",
        "/dev/shm/nccl-KWfVyt (size 5967872)",
    ),
    "log.versions": ("RuntimeError: Version mismatch: The cluster was started with:", "Version mismatch"),
    # found version 12080: torch 2.11 with CUDA 13 on driver branch 570
    "log.driver": (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12080).", "too old",
    ),
    # gpustack#1254
    "log.fabric": (
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
        "Error 802",
    ),
    "log.port": (
        "OSError: [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in"
        " use",
        "8000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("id", sorted(LINES))
def test_a_line_names_its_cause_and_repeats_what_counts(id):
    line, words = LINES[id]
    (cause,) = diagnose({"node1": [V + "INFO something else", V + line]})
    assert cause.id == id and words in cause.evidence
    assert cause.evidence.startswith("2026-11-24T04:10:00")
    assert cause.fix and cause.reference and cause.times == 1


def test_every_signature_has_a_line():
    assert set(LINES) == {one.id for one in SIGNATURES}


@pytest.mark.parametrize(("id", "line"), [
    ("log.gloo-loopback",
     "Gloo connectFullMesh failed with [../third_party/gloo/gloo/transport/tcp/pair.cc:144] no error"),
    # torch/csrc/distributed/c10d/GlooDeviceFactory.cpp, as torch 2.7 prints it
    ("log.gloo-loopback",
     "[rank0]:[W427 03:10:15.652192062 ProcessGroupGloo.cpp:715] Warning: Unable to resolve hostname to a"
     " (local) address. Using the loopback address as fallback. Manually set the network interface to bind"
     " to with GLOO_SOCKET_IFNAME. (function operator())"),
    # vllm#15255: as torch repeats it, without NCCL_DEBUG
    ("log.shm",
     "(VllmWorker rank=1 pid=97) ERROR 03-20 23:26:06 [multiproc_executor.py:375] Error while creating"
     " shared memory segment /dev/shm/nccl-6R371p (size 9637888)"),
    # nccl#226
    ("log.nccl-tcp",
     "ip-172-31-12-210:45305:45305 [0] NCCL INFO NET/Socket : Using [0]ens3:172.31.12.210<0>"),
    # ollama#11231
    ("log.memory-host", "nixos systemd[1]: ollama.service: Failed with result 'oom-kill'."),
    # NCCL's user guide; its older releases say no more
    ("log.memlock", "NCCL WARN Call to ibv_reg_mr failed"),
    ("log.memlock", "NCCL WARN Call to ibv_create_qp failed"),
    # vllm#17965
    ("log.step-timeout", "TimeoutError: RPC call to execute_model timed out."),
])  # fmt: skip
def test_a_cause_has_other_words_too(id, line):
    assert [cause.id for cause in diagnose({"node1": [line]})] == [id]


@pytest.mark.parametrize("name", ["ib", "ib-host", "roce-init", "ibext"])
def test_what_nccl_says_over_infiniband_is_no_cause(name):
    assert diagnose({"node1": (RECORDED / f"nccl.{name}.txt").read_text().splitlines()}) == []


def test_memory_that_is_not_there_is_not_memory_that_may_not_be_pinned():
    # nvidia's driver and the card's disagree, with `ulimit -l` unlimited
    line = "misc/ibvwrap.cc:153 NCCL WARN Call to ibv_reg_mr failed with error Bad address"
    assert diagnose({"node1": [line]}) == []


def test_the_versions_stand_in_the_lines_after_it():
    lines = ["RuntimeError: Version mismatch: The cluster was started with:", "    Ray: 2.60.0",
             "    Python: 3.12.11", "This process on 10.0.0.2 was started with:", "    Ray: 2.59.0",
             "    Python: 3.12.11", "other"]  # fmt: skip
    (cause,) = diagnose({"node2": [V + line for line in lines]})
    assert "Ray: 2.60.0" in cause.evidence and "Ray: 2.59.0" in cause.evidence
    assert "other" not in cause.evidence


def test_what_came_before_it_served_is_history():
    bad = V + LINES["log.memory-none"][0]
    serves = V + "INFO:     Application startup complete."
    assert diagnose({"node1": [bad, serves]}) == []
    assert [one.times for one in diagnose({"node1": [bad, serves, bad, bad]})] == [2]


def said(minute, text, host="node1"):
    return f"2026-11-24T04:{minute:02}:00+0000 {host} vllm[812]: {text}"


READY, BAD = "INFO:     Application startup complete.", LINES["log.memory-none"][0]


def test_what_came_on_a_worker_before_its_head_served_is_history():
    head, heads = [said(10, READY)], {"a": {"r": "a"}, "b": {"r": "a"}}
    assert diagnose({"a": head, "b": [said(9, BAD), "  more of it"]}, heads) == []
    (cause,) = diagnose({"a": head, "b": [said(9, BAD), said(11, BAD), "  more of it"]}, heads)
    assert (cause.host, cause.times, cause.evidence[:16]) == ("b", 1, "2026-11-24T04:11")


def test_the_clock_of_a_worker_may_be_in_another_zone():
    line = "2026-11-24T06:09:00+0200 b vllm[812]: " + BAD
    assert diagnose({"a": [said(10, READY)], "b": [line]}, {"b": {"r": "a"}}) == []


@pytest.mark.parametrize(("heads", "more"), [
    (None, {}),  # there is no plan
    ({"b": {"r": "a"}, "d": {"s": "a"}}, {}),  # its head has another, of which that may be said
    ({"b": {"r": "a", "s": "c"}}, {}),  # the other one cannot be reached
    ({"b": {"r": "a", "s": "c"}}, {"c": [said(12, "INFO starting")]}),  # it never served
    ({"b": {"r": "a", "s": "c"}}, {"c": [said(8, READY)]}),  # it served earlier, and this may be of it
])  # fmt: skip
def test_what_may_be_of_a_replica_that_did_not_serve_since_is_told(heads, more):
    journals = {"a": [said(10, READY)], "b": [said(9, BAD)], **more}
    assert [cause.host for cause in diagnose(journals, heads)] == ["b"]


def test_what_most_hosts_say_comes_first():
    one, other = LINES["log.port"][0], LINES["log.shm"][0]
    causes = diagnose({"a": [one], "b": [other], "c": [other]})
    assert [cause.id for cause in causes] == ["log.shm", "log.shm", "log.port"]
    assert [cause.host for cause in causes] == ["b", "c", "a"]


def test_lines_of_a_healthy_start_name_nothing():
    lines = ["INFO 11-24 04:10:00 [core.py:1] Initializing a V1 LLM engine (v0.32.0)",
             "INFO 11-24 04:10:09 [weight_utils.py:1] Loading safetensors took 3.10 seconds",
             "INFO:     Started server process [812]",
             "INFO:     Waiting for application startup."]  # fmt: skip
    assert diagnose({"node1": [V + line for line in lines]}) == []


@pytest.mark.parametrize("one", SIGNATURES, ids=lambda one: one.id)
def test_a_signature_is_whole(one):
    assert re.compile(one.pattern) and one.id.startswith("log.")
    assert all((one.cause, one.fix, one.reference, one.source))
