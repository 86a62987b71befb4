"""Rackserve's systemd units: running with the configuration they have on disk, or gone."""

from collections.abc import Iterator, Sequence

from pyinfra import host, state
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.api.operation import OperationMeta

from roles import service

from .facts import OURS, InstalledUnits, Unit

__all__ = ["OURS", "InstalledUnits", "only", "path", "running"]

path = service.unit_path


@operation()
def running(
    unit: str, reads: Sequence[str], changed: Sequence[OperationMeta] = ()
) -> Iterator[StringCommand]:
    """A unit enabled, running, and started after everything it reads was last written.

    + unit: name, with its suffix
    + reads: files whose change needs a restart, besides the unit file itself
    + changed: the operations that write those files, so that a plan foretells the restart

    The start time is compared with the files' times, not with a stamp or with what this
    run changed: a run that was cut off between write and restart is finished by the next.
    """
    now = host.get_fact(Unit, unit=unit, files=(path(unit), *reads))
    foretold = [op for op in changed if op.will_change] if not state.is_executing else []
    if now.needs_reload or foretold:
        yield StringCommand("systemctl", "daemon-reload")
    if not now.enabled or path(unit) in now.stale:
        # Not `enable`: a link for an earlier file's WantedBy counts as enabled, and stays.
        yield StringCommand("systemctl", "reenable", "--quiet", QuoteString(unit))
    if not now.active or now.stale or foretold:
        for file in now.stale if now.active else ():
            host.log(f"{unit} restarts: {file} is newer than its start")
        yield StringCommand("systemctl", "restart", QuoteString(unit))
    elif now.enabled and not now.needs_reload:
        host.noop(f"{unit} is running with the configuration on disk")


@operation()
def only(pattern: str, keep: Sequence[str] = ()) -> Iterator[StringCommand]:
    """Stop and remove every unit of ours that matches `pattern`, but for those of the replicas in `keep`."""
    stays = tuple(f"{service.PREFIX}{replica}-" for replica in keep)
    gone = [name for name in host.get_fact(InstalledUnits, pattern=pattern) if not name.startswith(stays)]
    if not gone:
        host.noop(f"no unit {pattern} to remove")
        return
    names = [QuoteString(name) for name in gone]
    yield StringCommand("systemctl", "disable", "--quiet", "--now", *names)
    yield StringCommand("rm", "-f", *(QuoteString(path(name)) for name in gone))
    yield StringCommand("systemctl", "daemon-reload")
    yield StringCommand("systemctl", "reset-failed", *names, "2>/dev/null", "||", "true")
