"""What the benchmark of rollouts makes of what it saw."""

import json

import pytest

from tests.bench.rollout import cases, faults
from tests.bench.rollout.layouts import PAIRS, SHARED, Served
from tests.bench.rollout.processes import kinds, parsed
from tests.bench.rollout.watch import Watch
from tests.lab.node import Node
from tests.lab.shell import LabError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for module in ("tests.bench.report", "tests.bench.rollout.cases", "tests.bench.rollout.layouts"):
        monkeypatch.setattr(f"{module}.FOLDER", tmp_path)
    return tmp_path


def test_what_has_passed_is_not_measured_again_and_what_is_left_is_seen():
    measured = []

    def case(name, passes):
        def run(_):
            measured.append(name)
            if name == "raises":
                raise LabError("no lab is up")
            return {"passed": passes, "why": ""}

        return run

    def run(last, again=False):
        made = {"good": case("good", True), "raises": case("raises", True), "last": case("last", last)}
        return cases.run("x", made, again)

    assert not run(last=False) and not cases.complete("x")
    assert [row["passed"] for row in cases.rows_of("x")] == [True, False, False]
    assert cases.rows_of("x")[1]["why"] == "not measured: no lab is up"
    assert not run(last=True)
    assert measured == ["good", "raises", "last", "raises", "last"]
    run(last=True, again=True)
    assert measured[5:] == ["good", "raises", "last"]


def test_a_scenario_that_was_broken_off_is_not_complete():
    def broken_off(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cases.run("x", {"good": lambda _: {"passed": True}, "later": broken_off})
    assert not cases.complete("x")
    assert cases.run("x", {"good": broken_off, "later": lambda _: {"passed": True}})
    assert cases.complete("x")


@pytest.fixture
def seen(folder):
    """seen([(at, status, sessions), ...]): a watch that saw replica-1 so."""

    def made(looks):
        lines = [
            {"at": at, "servers": {"replica-1": {
                "status": status, "sessions": sessions, "in": not status.startswith("MAINT")}}}
            for at, status, sessions in looks
        ]  # fmt: skip
        file = folder / "watch.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"at": 99, "ser')
        return Watch(Node(1), file, 1)

    return made


def test_a_watch_tells_when_a_replica_left_and_since_when_it_is_back(seen):
    watch = seen([(1, "UP", 3), (2, "UP 1/3", 3), (3, "DOWN", 0), (4, "UP", 0), (5, "DOWN (agent)", 0),
                  (6, "UP", 1), (7, "UP", 1)])  # fmt: skip
    assert (watch.left("replica-1", 1), watch.left("replica-1", 6)) == (3, None)
    assert (watch.back("replica-1", 1), watch.back("replica-1", 6)) == (6, 6)
    assert watch.still("replica-1", 1, 1) and not watch.still("replica-1", 1, 1.5)


def test_a_watch_that_ends_with_a_replica_out_does_not_say_it_is_back(seen):
    watch = seen([(1, "UP", 3), (2, "DOWN", 0)])
    assert watch.back("replica-1", 1) is None and not watch.still("replica-1", 1, 0)
    assert watch.back("replica-2", 1) is None


def test_a_watch_tells_of_each_drain_how_many_requests_it_met(seen):
    watch = seen([(1, "UP", 24), (2, "MAINT", 23), (3, "MAINT", 0), (4, "UP", 0), (5, "MAINT", 9)])
    assert list(watch.drains()) == [(2, "replica-1", 24), (5, "replica-1", 9)]


LISTED = """\
11 rackserve-replica-1-gang.service python3\t-u\t/opt/rackserve/libexec/gang/gang.py\t/etc/gang.json
12 rackserve-replica-1-ray.service /opt/env/bin/python\t/opt/env/bin/ray\tstart\t--block\t--head
13 rackserve-replica-1-ray.service /opt/env/lib/ray/core/src/ray/gcs/gcs_server\t--log_dir=/x
14 rackserve-replica-1-ray.service /opt/env/bin/python\t-u\t/opt/env/lib/ray/dashboard/agent.py\t--node-ip=x
15 rackserve-replica-1-ray.service ray::RayWorkerWrapper.execute_method
16 rackserve-replica-1-ray.service ray::IDLE
17 rackserve-replica-1-ray.service ray::IDLE
18 rackserve-replica-1-vllm.service /opt/env/bin/python3\t/opt/env/bin/vllm\tserve\t--config\t/etc/x
19 rackserve-replica-1-vllm.service VLLM::EngineCore
20 rackserve-replica-1-vllm.service /opt/env/bin/python\t-m\tthing.run
21 rackserve-replica-1-vllm.service /opt/bin/python\t-c\tfrom multiprocessing.forkserver import x;x(7)
22 rackserve-replica-1-vllm.service\x20
"""


def test_processes_of_a_kind_are_one_kind_and_have_a_name_that_says_what_they_are():
    assert kinds(list(parsed(LISTED, "replica-1"))) == [
        "gang: gang.py", "ray: ray", "ray: gcs_server", "ray: dashboard/agent.py",
        "ray: ray::RayWorkerWrapper", "ray: ray::IDLE", "vllm: vllm", faults.ENGINE, "vllm: thing.run",
        "vllm: multiprocessing.forkserver",
    ]  # fmt: skip


def test_replicas_are_asked_where_they_are():
    shared, pairs = Served(SHARED), Served(PAIRS)
    assert [shared.url(name)[-5:] for name in shared.names] == [":8000", ":8001"]
    assert [pairs.members(name) for name in pairs.names] == [[Node(1), Node(2)], [Node(3), Node(4)]]
    assert [pairs.url(name) for name in pairs.names] == [
        f"http://{Node(number).address}:8000" for number in (1, 3)
    ]
    assert pairs.gateways == [Node(1), Node(3)] and shared.gateways == [Node(1)]
    words = shared.command("rollout", **shared.version(63))
    assert (
        words[1:3] == ["rollout", "-i"] and 'vllm_args={"max-model-len": 2048, "max-num-seqs": 63}' in words
    )
