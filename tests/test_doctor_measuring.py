"""What is asked of a node to measure it, and the programs that do so, run here on loopback."""

import dataclasses
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from roles.doctor.check import Unclear
from roles.doctor.facts import NODE, program
from roles.doctor.measure import _start as started
from roles.doctor.measure import answered
from roles.doctor.tasks import LIMITS, Task, allreduce, connecting, disk, listening
from tests.seen import PORTS, RANKS, WEIGHTS, healthy

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has iptables; `make test` is root")


@contextmanager
def begun(folder, what, asked, before=()):
    """A program of node/ as systemd runs it; what it answers."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [*before, sys.executable, "-I", "-", json.dumps(asked)], stdin=subprocess.PIPE,
        env={**os.environ, "RUNTIME_DIRECTORY": str(folder)},
    )  # fmt: skip
    process.stdin.write(program(what, ("answering",)).encode())
    process.stdin.close()
    try:
        yield waited(folder / "answer", process)
    finally:
        process.terminate()
        process.wait()


def waited(answer, process):
    until = time.monotonic() + 60
    while not answer.exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    return json.loads(answer.read_text())


def measured(folder, what, asked):
    with begun(folder, what, asked) as found:
        return found


ASKED = {"bytes": 2**26, "leave": 2**20, "seconds": 5}


def test_a_disk_is_written_and_read_and_nothing_is_left(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    found = measured(tmp_path / "run", "disk", {"folder": str(disk), **ASKED})
    assert found["wrote"][0] == found["read"][0] == 2**26
    assert found["wrote"][1] > 0 and found["read"][1] > 0
    assert list(disk.iterdir()) == []


def test_it_ends_when_its_time_is_over(tmp_path):
    found = measured(
        tmp_path / "run", "disk", {"folder": str(tmp_path), **ASKED, "bytes": 2**30, "seconds": 0.05}
    )
    assert 0 < found["wrote"][0] < 2**30


def test_it_never_fills_a_disk(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    found = measured(tmp_path / "run", "disk", {"folder": str(tmp_path), **ASKED, "leave": free})
    assert "MiB free in" in found["error"]


def test_a_folder_that_is_not_there_is_said(tmp_path):
    assert "FileNotFoundError" in measured(tmp_path / "run", "disk", {"folder": "/nowhere", **ASKED})["error"]


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def connected(folder, *ports, before=()):
    targets = [["here", "127.0.0.1", port] for port in ports]
    with begun(folder, "connecting", {"targets": targets, "seconds": 2}, before) as found:
        return [row[1:] for row in found["rows"]]


def test_a_port_that_is_held_is_reached_and_free_again_after(tmp_path):
    port = free_port()
    with begun(tmp_path / "listen", "listening", {"ports": [port]}) as found:
        assert found == {"held": [port], "taken": {}}
        assert connected(tmp_path / "connect", port) == [[port, "open"]]
    assert connected(tmp_path / "again", port) == [[port, "refused"]]


def test_one_that_somebody_has_is_left_to_them(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        port = theirs.getsockname()[1]
        with begun(tmp_path / "listen", "listening", {"ports": [port]}) as found:
            assert found == {"held": [], "taken": {str(port): "Address already in use"}}
            assert connected(tmp_path / "connect", port) == [[port, "open"]]


@NEEDS_ROOT
def test_a_firewall_that_drops_is_told_from_one_that_rejects(tmp_path):
    """In a network namespace of its own: its loopback, its rules."""
    rules = "-p tcp --dport 20001 -j DROP", "-p tcp --dport 20002 -j REJECT"
    script = "ip link set lo up" + "".join(f"; iptables -A INPUT {rule}" for rule in rules) + '; exec "$@"'
    got = connected(tmp_path, 20000, 20001, 20002, before=["unshare", "--net", "sh", "-ec", script, "sh"])
    assert got == [[20000, "refused"], [20001, "silent"], [20002, "refused"]]


@pytest.mark.parametrize("name", ["disk", "listening", "connecting", "allreduce"])
def test_a_program_fits_in_an_argument_and_has_a_limit(name):
    assert len(program(name, ("answering",))) * 4 / 3 < 100_000  # as base64; MAX_ARG_STRLEN is 128 KiB
    assert 0 < LIMITS[name] <= 180 and (NODE / f"{name}.py").exists()


def idle():
    """The healthy hosts, by name, while nothing serves."""
    hosts = {host.name: host for host in healthy()}
    for host in hosts.values():
        host.seen.update(units=[], gpu_cgroups={})
    return hosts


def test_the_disk_of_the_weights_is_asked_in_its_nearest_folder():
    host = healthy()[0]
    host.seen["folders"][WEIGHTS] = {**host.seen["folders"][WEIGHTS], "there": "/var/lib"}
    assert disk(host).asked["folder"] == "/var/lib" and disk(host).user == "root"


def test_a_disk_of_which_nothing_was_seen_is_not_written():
    host = healthy()[0]
    del host.seen["folders"][WEIGHTS]
    with pytest.raises(Unclear, match="could not be read"):
        disk(host)


def test_everyone_listens_and_connects_but_to_those_that_are_away():
    hosts = idle()
    assert listening(hosts["gpu1"]).asked == {"ports": PORTS}
    assert connecting(hosts["gpu1"], hosts).asked["targets"] == [["gpu2", "10.0.0.2", port] for port in PORTS]
    assert connecting(hosts["gpu1"], {"gpu1": hosts["gpu1"]}) is None


def test_nobody_connects_before_all_listen_and_no_other_program_is_waited_for():
    hosts = idle()
    begins = {task.program: started(task) for task in (
        listening(hosts["gpu1"]), connecting(hosts["gpu1"], hosts), disk(hosts["gpu1"]),
        allreduce(hosts["gpu1"], RANKS, hosts),
    )}  # fmt: skip
    waits = {name for name, script in begins.items() if "until test -e /run/rackserve-doctor-" in script}
    assert waits == {"listening"}
    for name, script in begins.items():
        assert subprocess.run(["sh", "-n", "-c", script]).returncode == 0
        assert f"--property=RuntimeMaxSec={LIMITS[name]}" in script and len(script) < 100_000


def test_nothing_of_what_is_asked_is_a_variable_to_systemd():
    script = started(Task("disk", {"folder": "/srv/$HOME"}))
    assert "$" not in script and json.loads(shlex.split(script)[-1]) == {"folder": "/srv/$HOME"}


def test_ranks_meet_at_the_head_with_what_serving_would_be_told():
    hosts = idle()
    expected = dataclasses.replace(
        hosts["gpu2"].expected, environment_of={"replica-0": {"NCCL_IB_TC": "104"}}
    )
    task = allreduce(dataclasses.replace(hosts["gpu2"], expected=expected), RANKS, hosts)
    assert (task.python, task.user) == ("/opt/rackserve/runtime/cuda-0/bin/python", "rackserve")
    assert {key: task.asked[key] for key in ("address", "port", "rank", "nodes", "gpus", "backend")} == {
        "address": "10.0.0.1", "port": 29501, "rank": 1, "nodes": 2, "gpus": 2, "backend": "nccl",
    }  # fmt: skip
    assert task.asked["environment"] == {
        "VLLM_HOST_IP": "10.0.0.2", "NCCL_SOCKET_IFNAME": "=eth1", "GLOO_SOCKET_IFNAME": "eth1",
        "NCCL_IB_TC": "104",
    }  # fmt: skip


@pytest.mark.parametrize(("change", "words"), [
    ({"units": [{"Id": "rackserve-replica-0-vllm.service", "ActiveState": "active"}]}, "gpu2 serves"),
    ({"units": [{"Id": "rackserve-replica-0-gang.service", "ActiveState": "activating"}]}, "gpu2 serves"),
    ({"gpu_cgroups": {"700": "/user.slice"}}, "gpu2's GPUs are busy (pid 700)"),
    ({"installed": []}, "gpu2 has no torch"),
    ({"units": None}, "units could not be read"),
])  # fmt: skip
def test_what_is_in_the_way_on_any_host_is_why_none_begins(change, words):
    hosts = idle()
    hosts["gpu2"].seen.update(change)
    with pytest.raises(Unclear, match=words.replace("(", r"\(").replace(")", r"\)")):
        allreduce(hosts["gpu1"], RANKS, hosts)


def test_a_gateway_beside_them_is_no_replica_and_a_host_that_is_away_is_in_the_way():
    hosts = idle()
    hosts["gpu2"].seen["units"] = [{"Id": "rackserve-gateway-haproxy.service", "ActiveState": "active"}]
    assert allreduce(hosts["gpu1"], RANKS, hosts)
    with pytest.raises(Unclear, match="gpu2 could not be looked at"):
        allreduce(hosts["gpu1"], RANKS, {"gpu1": hosts["gpu1"]})


@pytest.mark.parametrize(("said", "found"), [
    ('motd\n{"held": [1]}', {"held": [1]}), ("Traceback\nMemoryError", {"error": "MemoryError"}),
    ("", {"error": "it ended without a word"}), ("[1]", {"error": "[1]"}),
])  # fmt: skip
def test_without_an_answer_its_last_words_are_why(said, found):
    assert answered(said) == found
