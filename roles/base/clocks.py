"""The clocks of a host's CPUs: as high as they go, now and after each boot.

Between two steps of the GPUs one thread of vLLM's is what they wait for, and it sleeps often enough for
a governor that saves power to slow it down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO

from pyinfra import host, state
from pyinfra.api import FactBase, StringCommand, deploy, operation
from pyinfra.api.operation import OperationMeta
from pyinfra.operations import files

from roles import service
from roles.units.facts import Unit

#: Not one of `rackserve-*`: those are what is served, and go with it.
UNIT = "governor-rackserve.service"

# Energy-performance hints are not set: with the governor `performance` intel_pstate and amd_pstate set them
# themselves, and refuse others (the kernel's Documentation/admin-guide/pm/intel_pstate.rst, amd-pstate.rst).
# acpi-cpufreq is a module on Debian, and may come after us: hence the restart.
_UNIT = """\
[Unit]
Description=Rackserve: the governor of the CPUs' clocks
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo {governor} | tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor'
StandardOutput=null
Restart=on-failure
RestartSec=10

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Clocks:
    """The governors that are on, and those that all its CPUs could have; none where nothing of it is ours."""

    on: frozenset[str] = frozenset()
    offered: frozenset[str] = frozenset()


class Governors(FactBase[Clocks]):
    """What sets the clocks; nothing on virtual machines, and where the firmware does."""

    def command(self) -> str:
        return (
            "for d in /sys/devices/system/cpu/cpufreq/policy*; do"
            ' test -e "$d/scaling_governor" || continue;'
            ' echo "$(cat "$d/scaling_governor"): $(cat "$d/scaling_available_governors")"; done'
        )

    def process(self, output: list[str]) -> Clocks:
        rows = [line.partition(":") for line in output]
        offers = [frozenset(offered.split()) for _, _, offered in rows]
        on = frozenset(now.strip() for now, _, _ in rows)
        return Clocks(on, frozenset.intersection(*offers) if offers else frozenset())

    @staticmethod
    def default() -> Clocks:
        return Clocks()


@deploy("Base")
def clocks(governor: str) -> None:
    """The CPUs have that governor, where they can have it."""
    now = host.get_fact(Governors)
    if now.on and governor not in now.offered:
        there = ", ".join(sorted(now.offered)) or "none for all of its CPUs"
        host.log(f"its CPUs have no governor {governor}; there are: {there}")
    for _ in host.loop([governor] if governor in now.offered else []):
        put = files.put(
            name="Keep the governor over a boot", src=StringIO(unit(governor)), dest=service.unit_path(UNIT),
            mode="644",
        )  # fmt: skip
        governed(name="Set the governor", governor=governor, changed=[put])


@operation()
def governed(governor: str, changed: Sequence[OperationMeta] = ()) -> Iterator[StringCommand]:
    """Its unit is enabled, and has done what it does.

    + changed: the operation that writes it, so that a plan foretells this
    """
    foretold = [op for op in changed if op.will_change] if not state.is_executing else []
    now = host.get_fact(Unit, unit=UNIT)
    if now.needs_reload or foretold:
        yield StringCommand("systemctl", "daemon-reload")
    if not now.enabled:
        yield StringCommand("systemctl", "enable", "--quiet", UNIT)
    if {*host.get_fact(Governors).on} != {governor}:
        yield StringCommand("systemctl", "restart", UNIT)
    elif now.enabled and not now.needs_reload:
        host.noop(f"the governor is {governor}")


def unit(governor: str) -> str:
    """The unit that sets it."""
    return _UNIT.format(governor=governor)
