"""`rackserve doctor` and the deploy preflight as they are typed, on hosts that answer what they are told."""

import json
import re

import pytest

from roles.doctor import CHECKS
from roles.doctor.facts import Look, program
from scripts import runner
from scripts.doctor import _hosts
from scripts.refusal import Interrupted
from tests.seen import NCCL_IB, NCCL_SOCKET, PORTS, WEIGHTS, measured, seen
from tests.test_cli import QUICK, rackserve, refused


@pytest.fixture
def answering(tmp_path):
    """answering({1: what gpu1 sees, 2: None}): an inventory; None: nothing could be asked there.

    + measured: {1: {what: what was measured on gpu1}}
    + journals: {1: the lines of gpu1's}
    """

    def made(hosts, measured=None, journals=None, **data):
        def of(number, saw):
            says: dict = {"python3 -I -S - take": "0"}  # the lock was free
            says |= {"python3 -I -c": json.dumps({**saw, "time": 4e9})} if saw else {}
            says |= {"journalctl": journals[number]} if journals else {}
            for what, found in (measured or {}).get(number, {}).items():
                says[f"/run/rackserve-doctor-{what}/answer"] = json.dumps(found)
            # The command of an operation that cannot go on; on a fake host it too succeeds.
            says[re.compile("^false$")] = {"success": False}
            own = {"address": f"10.0.0.{number}", "interface": "eth1", "gpus": 2, "gpu": "H100"}
            return (f"@fake/gpu{number}", {**QUICK, **own, "fake_responses": says, **data})

        rows = [of(number, saw) for number, saw in hosts.items()]
        file = tmp_path / "answering.py"
        file.write_text(f"import re\nhead = {rows[:1]!r}\nworkers = {rows[1:]!r}\n")
        return file

    return made


def test_the_list_is_the_registry_and_asks_no_host():
    done = rackserve("doctor", "--list", "--json", "-i", "nowhere")
    rows = json.loads(done.stdout)
    assert done.returncode == 0 and {row["id"] for row in rows} == set(CHECKS)
    assert all({"id", "title", "fix", "reference"} <= set(row) for row in rows)
    said = rackserve("doctor", "--list").stdout
    assert "gpu.fabric" in said and said.count("(--deep)") == 3


def test_findings_of_all_hosts_and_an_exit_code_that_says_whether_one_fails(answering):
    done = rackserve("doctor", "--json", "-i", answering({1: seen(1), 2: seen(2)}))
    rows = json.loads(done.stdout)
    failing = {row["id"] for row in rows if row["status"] == "fail"}
    assert failing == {"same.clock"} and done.returncode == 1  # the year 2096
    assert {row["host"] for row in rows} == {"@fake/gpu1", "@fake/gpu2"}
    assert {"host", "id", "status", "evidence", "fix", "reference", "title"} == set(rows[0])


def test_the_table_says_what_fails_first_once_for_all_its_hosts(answering):
    one, two = seen(1), seen(2)
    for saw in (one, two):
        saw["folders"]["/dev/shm"]["free"] = 0
        saw["numa_balancing"] = "1\n"
    done = rackserve("doctor", "-i", answering({1: one, 2: two}))
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and "fail" in lines[0]
    shm = [line for line in lines if "shm.size" in line]
    assert len(shm) == 1 and "@fake/gpu1, @fake/gpu2" in shm[0] and "0 B free" in shm[0]
    assert any("fix: sudo mount -o remount" in line for line in lines)
    numa = next(at for at, line in enumerate(lines) if "kernel.numa" in line)
    assert numa > lines.index(shm[0])
    assert " pass on 2 hosts" in lines[-1]


@pytest.mark.parametrize(("hcas", "status", "words"), [
    ("auto", "warn", "NCCL_IB_HCA==mlx5_7:1, told NCCL_IB_HCA==mlx5_0:1"),
    (False, "warn", "NCCL_IB_DISABLE=1"),
    ("mlx5_7", "warn", "NCCL_IB_HCA==mlx5_7, told"), ("mlx5_0", "fail", "mlx5_0 is not there"),
])  # fmt: skip
def test_what_nccl_is_told_is_compared_with_what_provision_would_tell(answering, hcas, status, words):
    port = "port|mlx5_7|1|4: ACTIVE|InfiniBand|400 Gb/sec (4X NDR)|1: CA|/sys/devices/x|0|ib0|"
    says = {
        "python3 -I -c": json.dumps(seen(1)),
        "echo fabric": [port, "kernel|6.8.0", "interface|2: eth1    inet 10.0.0.1/24", "fabric"],
    }
    inventory = answering({1: None}, fake_responses=says, runtime="cuda", hcas=hcas)
    rows = json.loads(rackserve("doctor", "--json", "-i", inventory).stdout)
    (row,) = [row for row in rows if row["id"] == "nccl.hcas"]
    assert row["status"] == status and words in row["evidence"] and "{" not in row["fix"]


def test_a_host_that_cannot_be_asked_is_a_result(answering):
    done = rackserve("doctor", "--json", "-i", answering({1: seen(1), 2: None}))
    rows = {row["id"]: row for row in json.loads(done.stdout) if row["host"] == "@fake/gpu2"}
    assert done.returncode == 1 and set(rows) == {"host.reach"}
    assert rows["host.reach"]["status"] == "fail"


def test_only_the_hosts_of_a_replica(answering):
    model = {"model": "llama-3.1-70b-instruct", "tensor_parallel": 2, "context": 2048, "replicas": 2,
             "gpu": "H200"}  # fmt: skip
    inventory = answering({1: seen(1), 2: seen(2)}, **model)
    done = rackserve("doctor", "--json", "--replica", "1", "-i", inventory)
    assert {row["host"] for row in json.loads(done.stdout)} == {"@fake/gpu2"}
    said = refused(rackserve("doctor", "--replica", "7", "-i", inventory))
    assert said == "no replica-7 in the plan; there are: replica-0, replica-1"


TWO_NODES = {"model": "llama-3.1-70b-instruct", "tensor_parallel": 2, "pipeline_parallel": 2, "gpu": "H200",
             "context": 2048, "weights_path": WEIGHTS}  # fmt: skip
DEEP = ("disk.speed", "net.reach", "gpu.allreduce")


def idle(number):
    return {**seen(number), "units": [], "gpu_cgroups": {}}


def found(number, how="open", nccl=NCCL_IB):
    """What is measured on a host of two; gpu1 is told `how` where it connects to port 20000."""
    rows = [
        [f"@fake/gpu{3 - number}", port, how if (number, port) == (1, 20000) else "open"] for port in PORTS
    ]
    its = measured(number)
    reduced = {**its["allreduce replica-0"], "nccl": nccl}
    return {
        "disk": its["disk"],
        "listening": its["listening"],
        "connecting": {"rows": rows},
        "allreduce": reduced,
    }


def deep_rows(done):
    return {
        row["id"]: row for row in json.loads(done.stdout) if row["id"] in DEEP and row["status"] != "pass"
    }


def test_deep_measures_says_what_it_does_and_adds_its_rows(answering):
    inventory = answering({1: idle(1), 2: idle(2)}, {n: found(n) for n in (1, 2)}, **TWO_NODES)
    done = rackserve("doctor", "--deep", "--json", "-i", inventory)
    rows = json.loads(done.stdout)
    deep = [(row["id"], row["host"], row["status"]) for row in rows if row["id"] in DEEP]
    assert sorted(deep) == [
        ("disk.speed", "@fake/gpu1", "pass"), ("disk.speed", "@fake/gpu2", "pass"),
        ("gpu.allreduce", "@fake/gpu1", "pass"),
        ("net.reach", "@fake/gpu1", "pass"), ("net.reach", "@fake/gpu2", "pass"),
    ]  # fmt: skip
    steps = [line for line in done.stderr.splitlines() if " s  " in line]
    assert [line.split()[2].rstrip(":") for line in steps] == [
        "disk.speed",
        "net.reach",
        "net.reach",
        "gpu.allreduce",
    ]
    plain = rackserve("doctor", "--json", "-i", inventory)
    assert not {row["id"] for row in json.loads(plain.stdout)} & {*DEEP} and not plain.stderr


def test_deep_names_who_does_not_reach_whom_and_what_it_would_serve_over(answering):
    told = {1: found(1, how="silent", nccl=NCCL_SOCKET), 2: found(2)}
    done = rackserve("doctor", "--deep", "--json", "-i",
                     answering({1: idle(1), 2: idle(2)}, told, hcas="mlx5_0", **TWO_NODES))  # fmt: skip
    rows = deep_rows(done)
    assert done.returncode == 1 and set(rows) == {"net.reach", "gpu.allreduce"}
    assert rows["net.reach"]["host"] == "@fake/gpu2"
    assert rows["net.reach"]["evidence"] == "silent from @fake/gpu1 to 20000 (a firewall drops them)"
    assert "it would serve over TCP, and `hcas` of @fake/gpu1" in rows["gpu.allreduce"]["evidence"]


def test_deep_leaves_alone_what_serves_and_says_what_ended_badly(answering):
    told = {n: {**found(n), "disk": "Killed"} for n in (1, 2)}
    rows = deep_rows(rackserve("doctor", "--deep", "--json", "--replica", "0", "-i",
                               answering({1: seen(1), 2: seen(2)}, told, **TWO_NODES)))  # fmt: skip
    assert {row["status"] for row in rows.values()} == {"unknown"}
    assert "serves (rackserve-replica-0-vllm" in rows["gpu.allreduce"]["evidence"]
    assert "Killed" in rows["disk.speed"]["evidence"]


def test_deep_and_logs_are_two_commands(answering):
    assert "one at a time" in refused(rackserve("doctor", "--deep", "--logs", "-i", answering({1: seen(1)})))


def test_deep_preflight_refuses_to_serve_over_tcp(answering):
    told = {1: found(1, nccl=NCCL_SOCKET), 2: found(2)}
    inventory = answering({1: idle(1), 2: idle(2)}, told, hcas="mlx5_0", **TWO_NODES)
    done = rackserve("deploy", "preflight_deep", "-i", inventory)
    assert done.returncode == 1 and "@fake/gpu1: gpu.allreduce: replica-0: " in done.stderr
    assert "it would serve over TCP" in done.stderr


def test_what_was_seen_until_ctrl_c_is_no_result(monkeypatch):
    def interrupted(words):
        raise Interrupted("interrupted")

    monkeypatch.setattr(runner, "run", interrupted)
    monkeypatch.setattr(runner, "hosts", lambda: ["gpu1"])
    with pytest.raises(Interrupted):
        _hosts("cluster", [])


def test_bad_input_is_refused_as_elsewhere(answering):
    said = refused(rackserve("doctor", "-i", answering({1: seen(1)}, executor="sometimes")))
    assert "executor is 'sometimes'" in said


def test_journals_without_a_known_cause(answering):
    done = rackserve("doctor", "--logs", "-i", answering({1: seen(1)}))
    assert done.returncode == 0 and "no known cause" in done.stdout


NO_MEMORY = "2026-11-24T04:10:00+0000 gpu1 vllm[812]: ValueError: No available memory for the cache blocks."
REPLICAS = {"model": "llama-3.1-70b-instruct", "tensor_parallel": 2, "context": 2048, "replicas": 2,
            "gpu": "H200"}  # fmt: skip


def journals(answering, says):
    """An inventory of two hosts, a replica on each; {pattern of units: what both journals have of them}."""
    responses = {**says, "journalctl": ["-- No entries --"]}
    return answering({1: None, 2: None}, fake_responses=responses, **REPLICAS)


def test_of_one_replica_only_its_own_units_are_read(answering):
    says = {"rackserve-replica-1-*": [NO_MEMORY], "rackserve-replica-1*": ["of replica-10"]}
    done = rackserve("doctor", "--logs", "--json", "--replica", "1", "-i", journals(answering, says))
    assert [row["id"] for row in json.loads(done.stdout)] == ["log.memory-none"] * 2


def test_what_a_worker_said_before_its_head_served_is_history(answering):
    serves = "2026-11-24T04:{}:00+0000 gpu1 vllm[812]: INFO:     Application startup complete."
    for minute, causes in (("11", []), ("09", ["@fake/gpu2"])):
        said = {1: [serves.format(minute)], 2: [NO_MEMORY]}
        inventory = answering({1: None, 2: None}, journals=said, **TWO_NODES)
        done = rackserve("doctor", "--logs", "--json", "-i", inventory)
        assert [row["host"] for row in json.loads(done.stdout)] == causes


def test_a_replica_that_never_was_has_no_journals(answering):
    said = refused(rackserve("doctor", "--logs", "--replica", "7", "-i", journals(answering, {})))
    assert said == "no replica-7 in the plan; there are: replica-0, replica-1"


def test_a_replica_that_is_no_more_has_journals(answering):
    says = {"rackserve-replica-7-*": [NO_MEMORY]}
    done = rackserve("doctor", "--logs", "--replica", "7", "-i", journals(answering, says))
    assert done.returncode == 1 and "no memory for a KV cache" in done.stdout


def test_preflight_ends_the_run_naming_host_check_and_fix(answering):
    done = rackserve("deploy", "preflight", "-i", answering({1: seen(1), 2: seen(2)}))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("rackserve: ")]
    assert "@fake/gpu2: same.clock: +" in line and "fix: sudo apt-get install -y chrony" in line


@pytest.mark.parametrize("output", [[], [""], ["bash: python3: not found"], ["null"]])
def test_an_answer_that_is_none_is_no_answer(output):
    assert Look().process(output) is None


def test_what_a_host_says_to_everyone_is_overheard():
    assert Look().process(["Authorized use only!", '{"time": 1}']) == {"time": 1}


def test_the_program_fits_in_one_argument_of_a_command():
    assert len(program()) < 100_000  # MAX_ARG_STRLEN is 128 KiB, and quoting takes some
