"""The doctor on real nodes: well ones, and each with one thing wrong, which is undone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.node import Node
from tests.lab.shell import inside, run
from tests.lab.testing import BIN, belongings, pyinfra, rackserve
from tests.lab.testing import run as command

pytestmark = pytest.mark.lab

UNIT = "/etc/systemd/system/rackserve-replica-9-vllm.service"


@pytest.fixture(scope="module", autouse=True)
def provisioned(lab: list[Node]) -> None:
    """As a user would leave them: without what vLLM leaves behind when other tests kill it."""
    assert pyinfra("provision").code == 0
    rows = json.loads(rackserve("doctor", "-i", "lab", "--json").said)
    by_name = {node.name: node for node in lab}
    for row in rows:
        if row["id"] == "shm.stale" and row["fix"]:
            shell(by_name[row["host"]], row["fix"])


def examined(*words: str, code: int = 0) -> list[dict[str, str]]:
    """What `rackserve doctor` finds, which must end with that code."""
    done = rackserve("doctor", "-i", "lab", "--json", *words)
    assert done.code == code, done.said
    return json.loads(done.said)


def found(host: str, id: str, rows: list[dict[str, str]]) -> dict[str, str]:
    (row,) = [row for row in rows if (row["host"], row["id"]) == (host, id)]
    return row


@contextmanager
def done_to(node: Node, do: str, undo: str) -> Iterator[None]:
    """What a shell does as root on a node, and what takes it back."""
    shell(node, do)
    try:
        yield
    finally:
        shell(node, undo)


def shell(node: Node, script: str) -> None:
    done = subprocess.run(node.ssh("sudo sh -es"), input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_healthy_nodes_have_nothing_wrong_and_nothing_is_changed(lab: list[Node]) -> None:
    before = belongings(lab[1])
    rows = examined()
    assert [row for row in rows if row["status"] == "fail"] == []  # warnings may be the machine's below
    assert {row["host"] for row in rows} == {node.name for node in lab}
    assert not {row["id"] for row in rows} & {"gpu.count", "gpu.driver", "same.driver", "pci.acs"}
    assert belongings(lab[1]) == before


def test_the_table_ends_with_how_many_passed(lab: list[Node]) -> None:
    done = rackserve("doctor", "-i", "lab")
    assert done.code == 0 and "0 fail" in done.said and "on 3 hosts" in done.said


PACKAGES = "cd /opt/rackserve/runtime/*/lib/python3*/site-packages"

#: Shell commands as root, those that undo them, and words of what must be seen.
FAULTS = {
    "host.name": (
        "sed -i.away 's/^10[.].*/127.0.1.1 node2/' /etc/hosts",
        "mv /etc/hosts.away /etc/hosts",
        "node2 resolves to 127.0.1.1",
    ),
    "ports.taken": (
        "systemd-run --quiet --unit=taker python3 -m http.server 20000; sleep 1",
        "systemctl stop taker",
        "20000 by python3",
    ),
    "shm.stale": (
        "truncate -s 99G /dev/shm/nccl-gone; touch -d @1600000000 /dev/shm/nccl-gone",
        "rm /dev/shm/nccl-gone",
        "nccl-gone",
    ),
    "units.strays": (
        "cp /bin/sleep /usr/local/raylet; systemd-run --quiet --unit=stray /usr/local/raylet 100",
        "systemctl stop stray; rm /usr/local/raylet",
        "raylet (pid ",
    ),
    "units.memlock": (
        f"printf '[Service]\nExecStart=/bin/true\nLimitMEMLOCK=8M\n' > {UNIT}; systemctl daemon-reload",
        f"rm {UNIT}; systemctl daemon-reload",
        "LimitMEMLOCK=8388608",
    ),
    "same.ray": (
        f"{PACKAGES}; mv ray-2.60.0.dist-info ray-2.59.0.dist-info",
        f"{PACKAGES}; mv ray-2.59.0.dist-info ray-2.60.0.dist-info",
        "2.59.0; 2.60.0 on",
    ),
    "same.mtu": ("ip link set host0 mtu 1400", "ip link set host0 mtu 1500", "MTU 1400; MTU 1500 on"),
}


@pytest.mark.parametrize("id", FAULTS)
def test_what_is_wrong_on_a_node_is_found(lab: list[Node], id: str) -> None:
    do, undo, words = FAULTS[id]
    with done_to(lab[1], do, undo):
        row = found("node2", id, examined(code=1))
    assert row["status"] == "fail" and words in row["evidence"] and row["fix"]
    assert not [row for row in examined() if row["id"] == id and row["status"] != "pass"]


def test_packets_that_the_way_does_not_let_through(lab: list[Node]) -> None:
    run("ip", "link", "set", lab[1].link, "mtu", "1400")  # the bridge's end: the node knows nothing of it
    try:
        rows = examined(code=1)
    finally:
        run("ip", "link", "set", lab[1].link, "mtu", "1500")
    assert "1500 bytes do not reach" in found("node2", "net.path", rows)["evidence"]


def test_a_full_disk(lab: list[Node]) -> None:
    lab[1].fill_disk(leave_mib=64)
    try:
        rows = examined(code=1)
    finally:
        lab[1].heal()
    assert "MiB free" in found("node2", "disk.space", rows)["evidence"]
    assert "full" in found("node2", "disk.full", rows)["evidence"]


def test_a_host_out_of_reach_is_a_result_and_the_others_are_looked_at(lab: list[Node]) -> None:
    lab[2].cut()
    try:
        rows = examined(code=1)
    finally:
        lab[2].heal()
    assert found("node3", "host.reach", rows)["status"] == "fail"
    assert found("node1", "host.reach", rows)["status"] == "pass"
    assert "node3" in found("node1", "net.path", rows)["evidence"]


def test_a_host_without_python_says_so(lab: list[Node]) -> None:
    with done_to(lab[1], "mv /usr/bin/python3 /usr/bin/python3.away",
                 "mv /usr/bin/python3.away /usr/bin/python3"):  # fmt: skip
        row = found("node2", "host.reach", examined(code=1))
    assert row["status"] == "fail" and "no python3" in row["evidence"]


def test_gpus_that_the_inventory_promises_and_the_node_lacks(lab: list[Node], tmp_path) -> None:
    inventory = tmp_path / "promised.py"
    inventory.write_text(
        "from inventories.lab import head as _head, workers as _workers\n"
        "head = [(name, {**data, 'gpu': 'H100', 'gpus': 8}) for name, data in _head]\n"
        "workers = _workers\n"
    )
    done = rackserve("doctor", "-i", str(inventory), "--json")
    rows = json.loads(done.said)
    assert done.code == 1
    assert "8 promised; there is no nvidia-smi" in found("node1", "gpu.count", rows)["evidence"]
    assert not [row for row in rows if row["host"] == "node2" and row["id"] == "gpu.count"]


def test_preflight_ends_the_run_before_anything_is_changed(lab: list[Node]) -> None:
    assert pyinfra("preflight").code == 0
    do, undo, _ = FAULTS["host.name"]
    with done_to(lab[1], do, undo):
        before = belongings(lab[2])
        done = rackserve("deploy", "preflight", "-i", "lab")
    (line,) = [line for line in done.said.splitlines() if line.startswith("rackserve: ")]
    assert done.code == 1 and line.startswith("rackserve: node2: host.name: node2 resolves to 127.0.1.1")
    assert belongings(lab[2]) == before


def firewall(node: Node, verb: str, *rule: str) -> None:
    """iptables of this machine in the network of a node, which has none of its own."""
    init = min(inside(node.folder / "disk/upper"))
    run("nsenter", "--target", str(init), "--net", "iptables", verb, "INPUT", *rule)


def test_deep_measures_and_names_a_port_that_a_firewall_drops(lab: list[Node]) -> None:
    before, rule = belongings(lab[1]), ("-p", "tcp", "--dport", "20000", "-j", "DROP")
    firewall(lab[1], "-I", *rule)
    try:
        done = command(BIN / "rackserve", "doctor", "-i", "lab", "--deep", "--json")
    finally:
        firewall(lab[1], "-D", *rule)
    rows = json.loads(done.stdout)
    for node in lab:
        disk = found(node.name, "disk.speed", rows)
        assert (
            disk["status"] in ("pass", "warn") and "GB/s in /" in disk["evidence"]
        )  # its speed is this machine's
    assert found("node1", "net.reach", rows)["status"] == "pass"
    shut = found("node2", "net.reach", rows)
    assert (
        shut["evidence"] == "silent from node1 to 20000 (a firewall drops them)" and shut["status"] == "fail"
    )
    gate = found("node1", "gpu.allreduce", rows)
    assert gate["status"] in ("pass", "warn") and "2 ranks on node1, node2, busbw" in gate["evidence"]
    assert "over TCP by Gloo" in gate["evidence"] and "gpu.allreduce" in done.stderr
    assert done.returncode == 1 and belongings(lab[1]) == before
    assert not any(node.sudo("ls -d /run/rackserve-doctor-* 2>/dev/null || true").strip() for node in lab)


def saying(line: str) -> str:
    """A script that lets a unit of replica 9 say a line, and takes the unit away again."""
    return f"""printf '[Service]\nType=oneshot\nExecStart=/bin/echo "{line}"\n' > {UNIT}
               systemctl daemon-reload; systemctl start {UNIT.rsplit("/", 1)[1]}
               rm {UNIT}; systemctl daemon-reload; journalctl --sync"""


def test_logs_name_the_cause_until_it_serves_again(lab: list[Node]) -> None:
    failing = "ValueError: No available memory for the cache blocks. Try increasing"
    # Its end makes history of the lines, which stay in the journal.
    with done_to(lab[1], saying(failing), saying("INFO:     Application startup complete.")):
        done = rackserve("doctor", "-i", "lab", "--logs", "--replica", "9")
        assert done.code == 1 and "node2" in done.said and "no memory for a KV cache" in done.said
    done = rackserve("doctor", "-i", "lab", "--logs", "--replica", "9")
    assert done.code == 0 and "no known cause" in done.said
