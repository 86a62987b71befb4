"""What systemd says of a unit."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from pyinfra.api import FactBase

#: A unit that loads its configuration anew (Type=notify) answers all the while.
RUNS = ("active", "reloading")

#: The unit files of everything that serves.
OURS = "rackserve-*.service"

PROPERTIES = "ActiveState,UnitFileState,NeedDaemonReload,ExecMainStartTimestamp"


@dataclass(frozen=True)
class UnitState:
    """A unit as it is; `stale` are the files written after its main process started."""

    active: bool = False
    enabled: bool = False
    needs_reload: bool = False
    stale: tuple[str, ...] = ()


class Unit(FactBase[UnitState]):
    """The state of one unit beside the times of the files it reads."""

    def command(self, unit: str, files: Sequence[str] = ()) -> str:
        show = f"systemctl show {shlex.quote(unit)} --timestamp=us+utc --property={PROPERTIES}"
        if not files:
            return show
        # Unquoted %.Y: modification time of the file, or of the link itself, with fractions.
        return f"{show}; stat --format='%.Y %n' {shlex.join(files)} 2>/dev/null || true"

    def process(self, output: list[str]) -> UnitState:
        shown = dict(line.split("=", 1) for line in output if _is_property(line))
        started = timestamp(shown.get("ExecMainStartTimestamp", ""))
        times = (line.split(" ", 1) for line in output if line and not _is_property(line))
        return UnitState(
            active=shown.get("ActiveState") in RUNS,
            enabled=shown.get("UnitFileState") == "enabled",
            needs_reload=shown.get("NeedDaemonReload") == "yes",
            stale=tuple(name for time, name in times if float(time) > started),
        )

    @staticmethod
    def default() -> UnitState:
        return UnitState()


class InstalledUnits(FactBase[list[str]]):
    """Names of the unit files in /etc/systemd/system that match a pattern."""

    def command(self, pattern: str) -> str:
        return f"find /etc/systemd/system -maxdepth 1 -type f -name {shlex.quote(pattern)}"

    def process(self, output: list[str]) -> list[str]:
        return sorted(line.rsplit("/", 1)[-1] for line in output)

    @staticmethod
    def default() -> list[str]:
        return []


def _is_property(line: str) -> bool:
    return line.split("=", 1)[0] in PROPERTIES.split(",")


def timestamp(text: str) -> float:
    """Seconds since the epoch of `Mon 2026-11-23 01:02:03.456789 UTC`; 0 when never started."""
    if text in ("", "n/a"):  # systemd 248 and later write either
        return 0.0
    moment = datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S.%f UTC")
    return moment.replace(tzinfo=timezone.utc).timestamp()
