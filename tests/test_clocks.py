"""The governor of the CPUs' clocks: what is read, what is done about it, and the unit at work."""

import json
import shlex
import subprocess
from types import SimpleNamespace

import pytest

from roles.base.clocks import UNIT, Clocks, Governors, governed, unit
from roles.units.facts import Unit, UnitState
from tests.test_arguments import sections
from tests.test_nvidia import LOOKED, provision

__all__ = ["provision"]  # a fixture

INTEL = "performance powersave"
ACPI = "conservative ondemand userspace powersave performance schedutil"


@pytest.fixture
def cpus(tmp_path):
    """cpus(governors, offered): a /sys with one CPU for each of them."""

    def make(governors, offered=ACPI):
        for n, governor in enumerate(governors):
            policy = tmp_path / f"sys/devices/system/cpu/cpufreq/policy{n}"
            policy.mkdir(parents=True, exist_ok=True)
            (policy / "scaling_governor").write_text(f"{governor}\n")
            (policy / "scaling_available_governors").write_text(f"{offered} \n")
        return tmp_path

    return make


def read(root):
    command = Governors().command().replace("/sys/", f"{root}/sys/")
    said = subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True)
    return Governors().process(said.stdout.splitlines())


def test_governors_are_read_from_sysfs(cpus):
    assert read(cpus(["powersave", "performance"], INTEL)) == Clocks(
        frozenset({"powersave", "performance"}), frozenset({"performance", "powersave"})
    )


def test_what_one_cpu_lacks_is_not_offered():
    its = Governors().process([f"schedutil: {ACPI}", f"powersave: {INTEL}"])
    assert its.offered == {"performance", "powersave"}


def test_a_virtual_machine_has_none(tmp_path):
    assert read(tmp_path) == Clocks()


def run(root):
    """The unit's command, as systemd would split it, on a /sys of its own."""
    (command,) = sections(unit("performance"))["Service"]["ExecStart"]
    return subprocess.run(
        shlex.split(command.replace("/sys/", f"{root}/sys/")), capture_output=True
    ).returncode


def test_the_unit_sets_every_cpu(cpus):
    root = cpus(["powersave", "schedutil", "performance"])
    assert run(root) == 0
    assert read(root).on == {"performance"}


def test_the_unit_is_tried_again_where_the_driver_comes_late(tmp_path):
    assert run(tmp_path) != 0
    its = sections(unit("performance"))
    assert its["Service"]["Restart"] == ["on-failure"]
    tries = int(its["Unit"]["StartLimitBurst"][0]) * int(its["Service"]["RestartSec"][0])
    assert tries < int(its["Unit"]["StartLimitIntervalSec"][0]), "and not for ever"


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    path = tmp_path / UNIT
    path.write_text(unit("performance"))
    checked = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    assert (checked.returncode, [line for line in checked.stderr.splitlines() if UNIT in line]) == (0, [])


def test_teardown_leaves_it_for_it_is_not_what_is_served():
    assert not UNIT.startswith("rackserve-")


OURS = Clocks(frozenset({"performance"}), frozenset(INTEL.split()))
SLOW = Clocks(frozenset({"powersave"}), frozenset(INTEL.split()))


@pytest.mark.parametrize(
    ("clocks", "now", "ran"),
    [
        (OURS, UnitState(enabled=True), []),
        (SLOW, UnitState(enabled=True), [f"systemctl restart {UNIT}"]),
        (OURS, UnitState(), [f"systemctl enable --quiet {UNIT}"]),
        (SLOW, UnitState(), [f"systemctl enable --quiet {UNIT}", f"systemctl restart {UNIT}"]),
        (OURS, UnitState(enabled=True, needs_reload=True), ["systemctl daemon-reload"]),
    ],
)
def test_a_governor_is_set_once_and_what_is_as_wanted_left_alone(on_host, clocks, now, ran):
    host = on_host({Governors: clocks, Unit: now}, executing=True)
    assert host.commands(governed, governor="performance") == ran


def test_a_plan_foretells_that_systemd_reads_the_new_unit(on_host):
    host = on_host({Governors: SLOW, Unit: UnitState()})
    ran = host.commands(governed, governor="performance", changed=[SimpleNamespace(will_change=True)])
    assert ran[0] == "systemctl daemon-reload"


def answers(row, **data):
    said = {"echo asked": ["os ubuntu 24.04", *LOOKED], "scaling_governor": [row] if row else []}
    return [], {"fake_responses": said, **data}


def test_provision_sets_it_on_hosts_that_serve_with_gpus_and_can_have_it(provision):
    slow = f"powersave: {INTEL}"
    hosts = {
        "gpu1": answers(slow), "gpu2": answers(""), "gpu3": answers(slow, governor=False),
        "gpu4": answers(slow, runtime="cuda", gpus=0), "gpu5": answers(f"schedutil: {ACPI}"),
        "gpu6": answers(slow, governor="schedutil"),
    }  # fmt: skip
    done = provision(hosts)
    assert done.returncode == 0, done.stderr
    plan = {op["name"]: op["hosts_with_change"] for op in json.loads(done.stdout)["plan"]}
    for name in ("Keep the governor over a boot", "Set the governor"):
        assert plan[f"Base | {name}"] == ["@fake/gpu1", "@fake/gpu5"]
    assert "gpu6" in done.stderr and "no governor schedutil; there are: performance, powersave" in done.stderr
