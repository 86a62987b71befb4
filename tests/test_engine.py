"""How the engine of a replica is told apart: busy, idle, hung, dead."""

import os
import shutil
import subprocess
from types import SimpleNamespace

import engine
import pytest
import systemctl
from gang import TIMES

from tests.gangs import Vllm
from tests.lab.shell import wait_until


@pytest.fixture
def vllm():
    server = Vllm()
    yield server
    server.close()


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def known(vllm):
    made = engine.Engine(vllm.port, "key", TIMES)
    made.look()
    return made


def test_a_replica_is_up_once_it_has_answered_with_a_token(vllm, clock):
    own = known(vllm)
    assert (own.says(), own.generates) == ("down #no token yet", False)
    own.generate()
    assert (own.says(), own.generates, vllm.asked) == ("up", True, ["Bearer key"])


def test_a_token_for_somebody_else_will_do(vllm, clock):
    own = known(vllm)
    vllm.generates = False
    vllm.running += 1
    own.look()
    assert not own.generates
    vllm.tokens += 1
    own.look()
    assert own.generates


@pytest.mark.parametrize(("what", "by"), [("tokens", 1), ("cache", 0.01)])
def test_a_busy_engine_is_up_and_is_asked_for_nothing_also_while_it_only_reads_a_prompt(
    vllm, clock, what, by
):
    own = known(vllm)
    vllm.generates = False
    for _ in range(40):
        clock[0] += 3
        setattr(vllm, what, getattr(vllm, what) + by)
        own.look()
        own.generate()
        assert own.says() == "up" and own.hangs() is None and own.dead() is None
    assert vllm.asked == []


def test_an_engine_that_takes_no_step_and_answers_nothing_hangs(vllm, clock):
    own = known(vllm)
    own.generate()
    vllm.generates = False
    clock[0] += TIMES["patience"] + 1
    own.look()
    own.generate()
    assert own.says() == "down #no step and no token for 20 s" and own.hangs() is None
    clock[0] += TIMES["hang"] - TIMES["patience"]
    assert own.hangs() == "no step and no token for 60 s"
    vllm.tokens += 1
    own.look()
    assert own.says() == "up" and own.hangs() is None


def test_requests_that_are_given_up_are_no_steps(vllm, clock):
    own = known(vllm)
    own.generate()
    vllm.generates = False
    for _ in range(30):
        clock[0] += 3
        vllm.iterations += 1
        own.look()
        own.generate()
    assert own.hangs()


def test_requests_that_seem_to_run_are_no_hang_while_there_are_tokens(vllm, clock):
    own = known(vllm)
    vllm.running = 7
    for _ in range(30):
        clock[0] += 6
        own.look()
        own.generate()
        assert own.says() == "up" and own.hangs() is None


def test_while_kernels_are_compiled_it_is_down_and_does_not_hang_but_not_for_ever(vllm, clock):
    own = known(vllm)
    own.generate()
    vllm.generates = False
    for _ in range(int(engine.LONGEST_COMPILE / 10)):
        own.compiles()
        assert own.hangs() is None
        clock[0] += 10
    assert own.says() == "down #no step and no token for 20 s"
    clock[0] += TIMES["hang"]
    own.compiles()
    assert own.hangs()


def test_a_replica_that_does_not_listen_is_down_at_once_and_dead_soon(vllm, clock):
    own = known(vllm)
    own.generate()
    vllm.close()
    own.look()
    assert own.says() == "down #not listening" and own.dead() is None
    clock[0] += TIMES["dead"]
    own.look()
    assert own.dead() == "its API port refuses connections" and own.hangs() is None


def test_a_replica_that_does_not_listen_yet_is_not_dead(clock):
    own = engine.Engine(1, "key", TIMES)
    own.look()
    clock[0] += 3600
    own.look()
    assert own.says() == "down #not listening" and own.dead() is None


def test_an_engine_that_is_dead_while_its_server_answers_is_told_by_it(vllm, clock):
    own = known(vllm)
    own.generate()
    vllm.dead = True
    own.look()
    assert own.says() == "down #its /health answers 503" and own.dead() is None
    clock[0] += TIMES["dead"]
    assert own.dead() == "its /health answers 503"
    vllm.dead = False
    own.look()
    assert own.says() == "up" and own.dead() is None


def test_why_it_is_down_is_one_line_that_haproxy_reads(vllm, clock):
    vllm.generates = False
    own = known(vllm)
    own.generate()
    assert own.says() == "down #ValueError /v1/completions answered 500"
    assert engine.plain("a # b\nc\u2026" + "x" * 100) == "a   b c " + "x" * 72


def test_a_compiler_in_a_unit_is_seen(tmp_path, monkeypatch):
    shutil.copy("/bin/sleep", tmp_path / "ptxas")
    group = tmp_path / "systemd/group"
    group.mkdir(parents=True)
    row = {"ControlGroup": "/group"}
    monkeypatch.setattr(systemctl, "GROUPS", (str(tmp_path), str(tmp_path / "systemd")))
    (group / "cgroup.procs").write_text(f"{os.getpid()}\n")
    seen = systemctl.processes(row)
    assert len(seen) == 1 and not systemctl.compiles(seen)
    with subprocess.Popen([tmp_path / "ptxas", "30"]) as process:
        (group / "cgroup.procs").write_text(f"{os.getpid()}\n{process.pid}\n")
        wait_until(lambda: systemctl.compiles(systemctl.processes(row)), 10, "it to be what it runs")
        process.kill()
    assert systemctl.processes(row) == seen and systemctl.processes({}) == {}
