"""What a node has of a gang, and what is done to it."""

import json
import shutil
import subprocess

import pytest

import models
from models.errors import InventoryError
from models.plan import Node
from models.planner import plan
from roles import gang, ray, service, vllm
from roles.gang import NODE, PROGRAMS
from roles.gang.operations import Agent
from roles.programs import Programs, installed, removed
from roles.units.facts import Unit, UnitState

NODES = [Node("gpu1", "10.0.0.1", 8, "H100"), Node("gpu2", "10.0.0.2", 8, "H100")]
(REPLICA,) = plan(models.get("llama-3.1-405b-instruct"), NODES).replicas
RAY, VLLM = "rackserve-replica-0-ray.service", "rackserve-replica-0-vllm.service"
PARTS = {
    "gpu1": [gang.Part(RAY, needs=ray.NEEDS), gang.Part(VLLM, ("10.0.0.1", 20000))],
    "gpu2": [gang.Part(RAY, ("10.0.0.1", 20000), ray.NEEDS)],
}
TOKEN = "secret of the gang"


def files(host, **other):
    given = {
        "parts": PARTS,
        "token": TOKEN,
        "secrets": vllm.secrets_path(REPLICA),
        "gateway": True,
        "hang": 60,
    }
    return gang.files(REPLICA, host, **{**given, **other})


def test_the_head_is_told_whom_it_has_and_what_to_watch():
    config, unit = files("gpu1")
    assert (config.path, config.owner, config.mode, config.secret) == (
        "/etc/rackserve/replica-0/gang.json", "root:root", "600", True,
    )  # fmt: skip
    assert json.loads(config.content) == {
        "host": "gpu1", "members": ["gpu1", "gpu2"], "head": ["10.0.0.1", 30100], "token": TOKEN,
        "units": [
            {"unit": RAY, "awaits": None, "needs": ["raylet"]},
            {"unit": VLLM, "awaits": ["10.0.0.1", 20000], "needs": []},
        ],
        "user": "rackserve", "folder": "/run/rackserve/replica-0", "times": {"hang": 60},
        "secrets": "/etc/rackserve/replica-0/vllm.env", "api": 8000, "health": ["10.0.0.1", 30000],
    }  # fmt: skip
    assert unit.path == "/etc/systemd/system/rackserve-replica-0-gang.service" and not unit.secret
    assert TOKEN not in unit.content and TOKEN not in repr(config)


def test_another_node_is_told_its_part_alone():
    said = json.loads(files("gpu2")[0].content)
    assert said["units"] == [{"unit": RAY, "awaits": ["10.0.0.1", 20000], "needs": ["raylet"]}]
    assert not {"secrets", "api", "health"} & said.keys()


def test_without_a_gateway_nobody_is_told():
    assert json.loads(files("gpu1", gateway=False)[0].content)["health"] is None


def test_a_hang_that_a_gateway_could_not_have_seen_is_refused():
    with pytest.raises(InventoryError, match="hang is 24: must be at least 25 seconds"):
        files("gpu1", hang=24)


def test_its_unit_is_one_that_systemd_takes(tmp_path):
    unit = tmp_path / "rackserve-replica-0-gang.service"
    unit.write_text(files("gpu1")[1].content)
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert [line for line in done.stderr.splitlines() if unit.name in line] == []
    assert "RuntimeDirectory=rackserve/replica-0\n" in unit.read_text()
    assert f"ExecStart=/usr/bin/env python3 -u {PROGRAMS}/gang.py /etc/rackserve/replica-0/gang.json\n" in (
        unit.read_text()
    )


def test_the_names_that_others_ask_for():
    assert gang.unit(REPLICA) == service.unit("replica-0", "gang")
    assert gang.state("replica-0") == "/run/rackserve/replica-0/state.json"


@pytest.mark.parametrize(
    ("state", "commands"),
    [
        ("active", ["systemctl stop rackserve-replica-0-gang.service"]),
        ("activating", ["systemctl stop rackserve-replica-0-gang.service"]),  # killed, and about to come back
        ("inactive", []),
        ("failed", []),
    ],
)
def test_one_that_runs_is_stopped(on_host, state, commands):
    assert on_host({Agent: state}).commands(gang.stopped, replica="replica-0") == commands


def test_one_that_does_not_run_is_started_and_one_that_does_is_left_alone(on_host):
    asked = {}

    def unit(**arguments):
        asked.update(arguments)
        return UnitState()

    assert on_host({Unit: unit}).commands(gang.started, replica="replica-0", reads=["/x"]) == [
        "systemctl reenable --quiet rackserve-replica-0-gang.service",
        "systemctl restart rackserve-replica-0-gang.service",
    ]
    assert asked["unit"] == "rackserve-replica-0-gang.service"
    assert {"/etc/rackserve/replica-0/gang.json", "/x"} < set(asked["files"])
    well = UnitState(active=True, enabled=True)
    assert on_host({Unit: well}).commands(gang.started, replica="replica-0") == []


def test_programs_are_brought_up_to_date_and_strays_go(on_host, tmp_path):
    for path in NODE.glob("*.py"):
        shutil.copy(path, tmp_path)
    sums = subprocess.run(f"sha256sum {tmp_path}/*.py", shell=True, capture_output=True, text=True).stdout
    there = Programs().process(sums.splitlines())
    gang = {"source": NODE, "folder": PROGRAMS}
    assert on_host({Programs: there}).commands(installed, **gang) == []
    (changed,) = on_host({Programs: {**there, "head.py": "old"}}).yielded(installed, **gang)[1:-1]
    assert (changed.src, changed.dest) == (str(NODE / "head.py"), f"{PROGRAMS}/head.py")
    assert f"rm {PROGRAMS}/agent.py" in on_host({Programs: {**there, "agent.py": "x"}}).commands(
        installed, **gang
    )
    assert on_host({Programs: there}).commands(removed, folder=PROGRAMS) == [f"rm -rf {PROGRAMS}"]
    assert on_host({Programs: {}}).commands(removed, folder=PROGRAMS) == []


def test_an_agent_that_nobody_knows_is_inactive():
    assert Agent().process(["inactive"]) == "inactive" == Agent.default()
