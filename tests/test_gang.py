"""A replica's agents as processes on real sockets; systemd and vLLM are the tests' own (tests/gangs.py)."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import lines
import pytest

from tests.gangs import PROGRAM, RAY, VLLM, Gang, Vllm, free_port, until


@pytest.fixture
def gang(tmp_path):
    """gang(count, **times): a replica that is up."""
    made = []

    def start(count=2, up=True, **options):
        made.append(Gang(tmp_path, count, **options))
        made[0].start()
        if up:
            made[0].awaits("up")
        return made[0]

    yield start
    for one in made:
        one.close()


def test_all_parts_are_started_in_order_and_it_is_up_once_there_is_a_token(gang):
    own = gang(up=False)
    own.vllm.generates = False
    own.awaits("starting")
    until(lambda: own.head.runs().keys() == {RAY, VLLM} and own.nodes[1].runs().keys() == {RAY}, "no units")
    time.sleep(0.5)
    assert own.state()["state"] == "starting" and own.says() == "down #starting"
    own.vllm.generates = True
    told = own.awaits("up")
    assert own.says() == "up" and own.vllm.asked[0] == "Bearer key"
    assert [line for line in own.head.commands if line.startswith("start")] == [
        f"start {RAY}",
        f"start {VLLM}",
    ]
    assert (told["falls"], told["recent"], told["members"]["node2"]["state"]) == (0, [], "running")


def test_what_ran_before_without_an_epoch_is_stopped_first(gang, tmp_path):
    own = Gang(tmp_path)
    own.nodes[1].says(RAY, "active", "success", "of nobody")
    own.start()
    try:
        own.awaits("up")
        assert own.nodes[1].runs()[RAY] != "of nobody"
    finally:
        own.close()


@pytest.mark.parametrize(
    ("number", "unit", "why"),
    [
        (0, RAY, "node1: rackserve-replica-0-ray ended (signal 9)"),
        (0, VLLM, "node1: rackserve-replica-0-vllm ended (signal 9)"),
        (1, RAY, "node2: rackserve-replica-0-ray ended (signal 9)"),
    ],
)
def test_one_that_dies_takes_all_down_and_all_come_back(gang, number, unit, why):
    own = gang()
    before = [node.runs() for node in own.nodes]
    own.nodes[number].die(unit)
    told = own.awaits("up", falls=1)
    after = [node.runs() for node in own.nodes]
    assert [fall["why"] for fall in told["recent"]] == [why]
    for was, now in zip(before, after, strict=True):
        assert was.keys() == now.keys() and not set(was.values()) & set(now.values())
    assert f"fall 1: {why}; starts again at once" in own.head.journal
    assert f"kill {RAY}" in own.nodes[1].commands


@pytest.mark.parametrize(("name", "title"), [("raylet", "x"), ("x", "ray::RayWorkerProc.run")])
def test_a_unit_that_runs_on_without_one_of_what_it_needs_takes_all_down(gang, tmp_path, name, title):
    own, group = gang(), tmp_path / "group"
    group.mkdir()
    shutil.copy("/bin/sleep", tmp_path / name)
    runs = {"args": [title, "30"], "executable": tmp_path / name}
    with subprocess.Popen(**runs) as one, subprocess.Popen(**runs) as other:
        (group / "cgroup.procs").write_text(f"{one.pid}\n{other.pid}\n")
        node = own.nodes[1]
        node.says(RAY, "active", "success", node.runs()[RAY], ControlGroup=f"/../../..{group}")
        time.sleep(1)  # ten looks
        assert own.state()["falls"] == 0
        one.kill()
        one.wait()
        told = own.awaits("up", falls=1)
        other.kill()
    need = "raylet" if name == "raylet" else "ray::RayWorker"
    assert [fall["why"] for fall in told["recent"]] == [
        f"node2: rackserve-replica-0-ray runs on, but a {need} of its ended"
    ]


FORKS = "(while :; do :; done) & echo $!; wait; read line"


def test_a_child_that_is_no_other_program_yet_is_none_of_what_a_unit_needs(gang, tmp_path):
    own, group = gang(), tmp_path / "group"
    group.mkdir()
    shutil.copy("/bin/sh", tmp_path / "raylet")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([tmp_path / "raylet", "-c", FORKS], **pipes) as parent:
        child = int(parent.stdout.readline())
        (group / "cgroup.procs").write_text(f"{os.getpid()}\n{parent.pid}\n{child}\n")
        node = own.nodes[1]
        node.says(RAY, "active", "success", node.runs()[RAY], ControlGroup=f"/../../..{group}")
        had = node.folder / "run/member.json"
        until(lambda: json.loads(had.read_text())["had"].get(RAY) == {"raylet": 1}, "it was not seen")
        os.kill(child, signal.SIGKILL)
        time.sleep(1)  # ten looks
        assert own.state()["falls"] == 0
        node.kill()  # what it had is known to the next agent, too
        parent.communicate("")
        node.start()
        told = own.awaits("up", falls=1)
    assert "a raylet of its ended" in told["recent"][0]["why"]


def test_shared_memory_that_nobody_has_any_more_goes_with_a_fall(gang):
    own = gang()
    path = Path(f"/dev/shm/psm_{secrets.token_hex(8)}")
    path.write_bytes(b"x")
    os.utime(path, (time.time() - 60, time.time() - 60))
    try:
        time.sleep(0.3)
        assert path.exists()  # while it runs nothing is swept
        own.nodes[1].die(RAY)
        own.awaits("up", falls=1)
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)


def test_no_part_starts_before_every_part_has_ended(gang):
    own = gang()
    own.nodes[1].said("slow").touch()  # its systemctl stop takes a while
    own.head.die(VLLM)
    own.awaits("stopping")
    while own.state()["state"] == "stopping":
        assert own.head.commands[-1] != f"start {RAY}" or own.nodes[1].runs() == {}
        time.sleep(0.02)
    own.awaits("up", falls=1)


def test_the_gateway_hears_it_before_anything_is_stopped(gang):
    own = gang()
    for node in own.nodes:
        node.said("slow").touch()
    own.nodes[1].die(RAY)
    until(lambda: own.says() != "up", "it stayed up")
    assert own.says() == "down #stopping node2: rackserve-replica-0-ray ended (signal 9)"
    assert VLLM in own.head.runs() or own.head.commands[-1].startswith(("kill", "stop"))


def test_one_that_dies_while_it_starts_takes_all_down_too(gang):
    own = gang(up=False)
    own.vllm.generates = False
    epoch = own.awaits("starting")["epoch"]
    until(lambda: own.nodes[1].runs(), "not started")
    own.nodes[1].die(RAY)
    told = own.awaits("starting", falls=1)
    assert told["epoch"] != epoch


def test_a_part_waits_for_the_port_that_it_needs_and_says_so(gang):
    port = free_port()
    own = gang(up=False, awaits=["127.0.0.1", port])
    why = f"{RAY} waits for 127.0.0.1 port {port}"
    until(lambda: own.state().get("members", {}).get("node2", {}).get("why") == why, own.journals)
    assert own.nodes[1].runs() == {} and own.state()["state"] == "starting"
    with socket.create_server(("127.0.0.1", port)):
        own.awaits("up")


def test_a_unit_that_does_not_start_is_named_and_tries_go_apart(gang):
    own = gang(up=False, backoff=0.4, longest=0.8)
    own.nodes[1].said("fails").touch()
    until(lambda: own.state()["falls"] == 4, own.journals, 20)
    told = own.state()
    assert told["recent"][-1]["why"] == "node2: rackserve-replica-0-ray ended (status 1)"
    first, *_, last = [fall["when"] for fall in told["recent"]]
    assert last - first > 0.4 + 0.8
    for said in ("at once", "after 0 s", "after 1 s"):
        assert f"starts again {said}" in own.head.journal
    own.nodes[1].said("fails").unlink()
    own.awaits("up")


@pytest.mark.parametrize("number", [0, 1])
def test_an_agent_that_dies_leaves_all_running_and_the_next_goes_on(gang, number):
    own = gang()
    before, told = [node.runs() for node in own.nodes], own.state()
    own.nodes[number].kill()
    time.sleep(0.5)
    own.nodes[number].start()
    until(lambda: own.says() == "up", own.journals)
    time.sleep(2.5)  # longer than silence
    assert [node.runs() for node in own.nodes] == before
    assert own.awaits("up")["epoch"] == told["epoch"] and own.state()["falls"] == 0
    if number == 0:
        assert f"adopts {told['epoch']}, which is up" in own.head.journal
        assert abs(own.state()["since"] - told["since"]) < 1


def test_a_gateway_that_asks_an_agent_just_started_never_hears_that_it_is_down(gang):
    own = gang()
    for _ in range(2):
        own.head.kill()
        assert own.says() is None
        own.head.start()
        heard = set()
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            heard.add(own.says())
        assert heard == {None, "up"}


def test_an_agent_that_died_while_its_part_did_says_so_when_it_is_back(gang):
    own = gang()
    own.nodes[1].kill()
    own.nodes[1].die(RAY)
    own.nodes[1].start()
    told = own.awaits("up", falls=1)
    assert told["recent"][0]["why"] == "node2: rackserve-replica-0-ray ended (signal 9)"


def test_an_agent_that_died_half_way_through_a_start_goes_on_with_it(gang):
    port = free_port()
    own = gang(up=False, awaits=["127.0.0.1", port])
    epoch = own.awaits("starting")["epoch"]
    until(lambda: "waits for" in json.dumps(own.state()["members"]), own.journals)
    own.nodes[1].kill()
    own.nodes[1].start()
    with socket.create_server(("127.0.0.1", port)):
        assert own.awaits("up")["epoch"] == epoch


def test_a_node_that_is_silent_takes_it_down_and_ends_its_own_part_and_rejoins(gang):
    own = gang()
    own.nodes[1].signal("SIGSTOP")
    told = own.awaits("waiting", falls=1)
    assert told["recent"][0]["why"] == "node2 was silent for 2 s"
    assert told["why"] == "nothing is heard of node2" and own.head.runs() == {}
    assert own.says() == "down #waiting nothing is heard of node2"
    assert told["members"]["node2"]["seen"] < told["recent"][0]["when"] - 1.5
    own.nodes[1].signal("SIGCONT")
    own.awaits("up", falls=1)


def test_a_node_that_hears_nothing_ends_its_part_and_waits(gang):
    own = gang()
    own.head.kill()
    until(lambda: own.nodes[1].runs() == {}, own.journals, 5)
    own.head.start()  # takes the run for one that goes on, and is told better
    told = own.awaits("up", falls=1)
    assert told["recent"][0]["why"] == "node2: no word from the head for 2 s"


def test_a_node_that_loses_power_and_comes_back_rejoins(gang):
    own = gang()
    own.nodes[1].kill()
    for file in (own.nodes[1].folder / "run/member.json", own.nodes[1].folder / "units" / RAY):
        file.unlink()
    own.nodes[1].start()
    told = own.awaits("up", falls=1)
    assert told["recent"][0]["why"] == "node2: its part is gone"


def test_a_head_that_loses_power_and_comes_back_starts_all_anew(gang):
    own = gang()
    before = own.nodes[1].runs()
    own.head.kill()
    for file in ("run/member.json", "run/state.json", f"units/{RAY}", f"units/{VLLM}"):
        (own.head.folder / file).unlink()
    own.head.start()
    own.awaits("up", falls=0)
    assert own.nodes[1].runs()[RAY] != before[RAY]


def test_falls_and_backoff_outlive_an_agent_that_dies(gang):
    own = gang(backoff=30.0, longest=30.0)
    own.head.die(VLLM)
    own.awaits("up", falls=1)
    own.head.die(VLLM)
    told = own.awaits("waiting", falls=2)
    own.head.kill()
    own.head.start()
    again = own.awaits("waiting", falls=2)
    assert abs(again["next"] - told["next"]) < 1 and again["next"] > time.time() + 20
    assert again["why"] == "for the next try: node1: rackserve-replica-0-vllm ended (signal 9)"


def test_one_with_the_wrong_token_is_refused_and_changes_nothing(gang):
    own = gang()
    sock = socket.create_connection(("127.0.0.1", own.port))
    wire = lines.Wire(sock, 5)
    with pytest.raises(ConnectionError):
        lines.greet(wire, "of another gang", "node2")
    wire.close()
    until(lambda: "refused: node2 does not know the token" in own.head.journal, own.journals)
    assert own.awaits("up")["falls"] == 0


def test_a_head_that_does_not_know_the_token_is_not_followed(tmp_path):
    own = Gang(tmp_path)
    with socket.create_server(("127.0.0.1", own.port)) as server:
        own.nodes[1].start()
        try:
            wire = lines.Wire(server.accept()[0], 5)
            wire.say({"nonce": "00"})
            wire.hear()
            wire.say({"proof": "00"})
            wire.say({"do": "start", "epoch": "ours"})
            until(lambda: "it does not know the token" in own.nodes[1].journal, own.journals)
            assert own.nodes[1].runs() == {}
        finally:
            own.close()


def test_whoever_scans_ports_harms_nobody(gang):
    own = gang()
    callers = [socket.create_connection(("127.0.0.1", own.port)) for _ in range(40)]
    for said in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01" * 9,
        b"[" * 70000,
        b'{"nonce": 1}\n',
        b"[]\n",
        b"{\n",
    ):
        callers.append(socket.create_connection(("127.0.0.1", own.port)))
        callers[-1].sendall(said)
    own.nodes[1].kill()  # its agent must find a way in beside them
    own.nodes[1].start()
    time.sleep(2.5)
    assert own.awaits("up")["falls"] == 0
    for caller in callers:
        caller.close()


def test_stopping_it_on_its_head_tells_the_gateway_first_then_vllm_then_ray_then_the_others(gang):
    own = gang()
    own.head.said("slow").touch()
    own.head.process.terminate()
    until(lambda: own.says() == "down #leaving it is stopped on its head", own.journals)
    assert own.head.runs().keys() == {RAY, VLLM}
    until(lambda: VLLM not in own.head.runs(), "vLLM goes on")
    assert (own.head.runs().keys(), own.nodes[1].runs().keys()) == ({RAY}, {RAY})
    assert own.head.process.wait(10) == 0
    assert [node.runs() for node in own.nodes] == [{}, {}]
    assert own.head.commands[-5:-3] == [f"stop {VLLM}", f"stop {RAY}"]
    assert json.loads((own.head.folder / "run/member.json").read_text())["epoch"] is None


def test_stopping_one_node_takes_the_replica_down_until_it_is_back(gang):
    own = gang()
    assert own.nodes[1].end() == 0
    told = own.awaits("waiting", falls=1)
    assert told["recent"][0]["why"] == "node2: it was stopped on this node"
    assert own.nodes[1].commands[-4] == f"stop {RAY}" and own.head.runs() == {}
    own.nodes[1].start()
    own.awaits("up")


def test_a_replica_of_one_node_needs_no_network(gang):
    own = gang(1)
    own.head.die(RAY)
    own.awaits("up", falls=1)


def test_an_engine_that_hangs_takes_its_replica_down(gang):
    own = gang()
    own.vllm.awake.clear()
    until(lambda: own.says().startswith("down #no step"), own.journals)
    assert own.state()["falls"] == 0  # the gateway knows first
    told = own.awaits("starting", falls=1)
    assert told["recent"][0]["why"] == "no step and no token for 1 s"
    own.vllm.awake.set()
    own.awaits("up")


def test_an_engine_that_is_busy_is_left_alone(gang):
    own = gang()
    own.vllm.awake.clear()  # a request for a token would wait behind the long ones
    for _ in range(40):
        own.vllm.tokens += 3
        time.sleep(0.05)
    assert own.awaits("up")["falls"] == 0 and own.says() == "up"


def test_while_it_loads_nothing_is_a_hang(gang):
    own = gang(up=False)
    own.vllm.generates = False
    own.awaits("starting")
    time.sleep(2.5)
    assert own.state()["falls"] == 0
    own.vllm.generates = True
    own.awaits("up")


@pytest.mark.parametrize(
    ("how", "why"),
    [("dead", "its /health answers 503"), ("gone", "its API port refuses connections")],
)
def test_an_engine_that_is_dead_takes_its_replica_down_though_its_unit_runs(gang, how, why):
    own = gang()
    port = own.vllm.port
    if how == "dead":
        own.vllm.dead = True
    else:
        own.vllm.close()
    told = own.awaits("starting", falls=1)
    assert told["recent"][0]["why"] == why
    if how == "dead":
        own.vllm.dead = False
    else:
        own.vllm = Vllm(port)
    own.awaits("up")


def test_without_a_gateway_nobody_is_told(gang, tmp_path):
    own = Gang(tmp_path, 1)
    file = own.head.folder / "gang.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "health": None}))
    own.start()
    try:
        own.awaits("up")
        assert own.says() is None
    finally:
        own.close()


def test_systemd_hears_that_the_agent_lives(gang, tmp_path):
    own = Gang(tmp_path, 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        own.head.start(NOTIFY_SOCKET=str(tmp_path / "notify"))
        try:
            assert [sock.recv(100) for _ in range(2)] == [b"WATCHDOG=1"] * 2
            own.head.signal("SIGSTOP")
            sock.settimeout(1.5)
            with pytest.raises(TimeoutError):
                [sock.recv(100) for _ in range(3)]
        finally:
            own.close()


def test_an_agent_whose_configuration_is_not_there_says_which(tmp_path):
    command = [sys.executable, PROGRAM, tmp_path / "gang.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and str(tmp_path / "gang.json") in done.stderr
    assert os.listdir(tmp_path) == []
