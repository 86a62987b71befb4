"""The lab itself: its refusals, its faults, and that nothing of it is left. Runs last."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab import Lab, LabError, cluster
from tests.lab.node import Node
from tests.lab.paths import BRIDGE, GATEWAY, MARK, MODELS, STATE
from tests.lab.shell import processes, run, succeeds
from tests.lab.testing import rackserve


def test_a_lab_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="run it as root"):
        Lab().up(1)


@pytest.mark.parametrize("count", [0, 9, -1])
def test_a_lab_has_one_to_eight_nodes(count: int) -> None:
    with pytest.raises(LabError, match="1 to 8 nodes"):
        Lab().up(count)


def test_a_missing_program_is_named_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cluster.PROGRAMS, "no-such-program", "no-such-package")
    with pytest.raises(LabError, match="apt-get install no-such-package"):
        Lab().up(1)


def test_too_little_disk_is_said_in_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**30))
    with pytest.raises(LabError, match="has 1 GiB free; this lab needs"):
        cluster._check_disk(new_nodes=8)


@pytest.mark.lab
def test_up_again_changes_nothing_and_another_size_is_refused(lab: list[Node]) -> None:
    pids = {node.name: sorted(node._processes()) for node in lab}
    assert rackserve("lab", "up", "3").code == 0
    assert {node.name: sorted(node._processes()) for node in lab} == pids
    other = rackserve("lab", "up", "2")
    assert other.code == 2 and "a lab of 3 nodes is already there" in other.said


@pytest.mark.lab
def test_an_unknown_node_is_refused_with_those_there_are(lab: list[Node]) -> None:
    outcome = rackserve("lab", "cut", "node9")
    assert outcome.code == 2 and "no lab node node9; there are: node1, node2, node3" in outcome.said


@pytest.mark.lab
def test_cut_and_heal(lab: list[Node]) -> None:
    assert rackserve("lab", "cut", "node2").code == 0
    assert not lab[1].answers() and lab[0].answers()
    assert rackserve("lab", "heal", "node2").code == 0
    assert lab[1].answers()


@pytest.mark.lab
def test_slow_shapes_what_a_node_receives(lab: list[Node]) -> None:
    assert rackserve("lab", "slow", "node1", "16").code == 0
    try:
        slow = _seconds_to_receive(lab[0], megabytes=5)
    finally:
        lab[0].heal()
    # 40 Mbit at 16 Mbit/s; the handshake and a busy machine only add to it.
    assert slow > 2.2
    assert _seconds_to_receive(lab[0], megabytes=5) < slow / 2


@pytest.mark.lab
def test_fill_disk_leaves_what_it_says(lab: list[Node]) -> None:
    assert rackserve("lab", "fill-disk", "node3", "--leave", "50").code == 0
    free = int(lab[2].sudo("df --output=avail -B1M / | tail -1"))
    lab[2].heal()
    assert 40 <= free <= 60
    assert int(lab[2].sudo("df --output=avail -B1M / | tail -1")) > 1000


@pytest.mark.lab
def test_poweroff_and_poweron_keep_the_disk(lab: list[Node]) -> None:
    lab[2].sudo("touch /srv/kept && sync")
    assert rackserve("lab", "poweroff", "node3").code == 0
    assert not lab[2].is_on()
    assert rackserve("lab", "poweron", "node3").code == 0
    assert lab[2].sudo("ls /srv").strip() == "kept"


@pytest.mark.lab
def test_an_environment_that_nothing_uses_goes_and_others_stay(lab: list[Node]) -> None:
    folder, old = "/opt/rackserve/runtime", "cpu-000000000000"
    lab[0].sudo(f"mkdir -p {folder} && rm -rf {folder}/{old}*")
    others = lab[0].sudo(f"ls {folder}")
    lab[0].sudo(f"mkdir -p {folder}/{old}/lib && cp /bin/bash {folder}/{old}/lib/x")
    dry = rackserve("deploy", "prune_environments", "--dry", "-i", "lab")
    assert dry.code == 0 and f"{old}: frees" in dry.said
    assert old in lab[0].sudo(f"ls {folder}")
    assert rackserve("deploy", "prune_environments", "-i", "lab").code == 0
    assert lab[0].sudo(f"ls {folder}") == others


@pytest.mark.lab
def test_down_leaves_nothing_behind_even_after_a_crash(lab: list[Node]) -> None:
    for pid in [*processes("systemd-nspawn", lab[0].root), *processes("tests.lab.hub", MODELS)]:
        os.kill(pid, signal.SIGKILL)
    assert rackserve("lab", "down").code == 0
    assert not STATE.exists()
    assert str(STATE) not in run("mount") + run("losetup", "-a")
    assert not succeeds("ip", "link", "show", BRIDGE) and "vb-rs-" not in run("ip", "link")
    assert MARK not in run("iptables-save")
    assert not list(Path("/run/systemd/nspawn").glob("*/rs-node*"))
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{MARK}"))
    assert not any(processes("tests.lab.hub", MODELS))
    assert str(GATEWAY) not in run("ip", "address")
    assert rackserve("lab", "down").code == 0


def _seconds_to_receive(node: Node, megabytes: int) -> float:
    started = time.monotonic()
    data = bytes(megabytes * 10**6)
    subprocess.run(node.ssh("cat > /dev/null"), input=data, check=True)
    return time.monotonic() - started
