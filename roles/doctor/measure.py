"""Measuring on hosts: a program is begun on all of them, and what it found is fetched when all have begun.

Each is a transient unit of systemd: it outlives no limit, its folder goes with it, and it has the user and
the limits that serving has. So nothing is left where a run is interrupted or a connection is cut.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from paramiko import SSHException
from pyinfra import host, state
from pyinfra.api import operation

from roles import remote

from . import tasks
from .check import Host, Ranks, Unclear
from .facts import program
from .tasks import LIMITS, Task

#: {host: what was seen there} in this run, and {host: {what: what was measured}}.
SEEN: dict[str, Host] = {}
MEASURED: dict[str, dict[str, Any]] = {}

_watchers: list[Callable[[str], None]] = []
_steps: set[str] = set()
_ending: set[str] = set()  # hosts on which what is left is stopped


def watch(say: Callable[[str], None]) -> None:
    """Each step is said, once for all hosts, when it begins."""
    _watchers.append(say)


def measured(hosts: Sequence[Host]) -> list[Host]:
    """The hosts, with what was measured on them in this run."""
    return [replace(one, measured=MEASURED.get(one.name)) for one in hosts]


@operation()
def begun(
    what: str, step: str, of: str = "", slot: int = 0, unless: Callable[[], str] = str
) -> Iterator[str]:  # fmt: skip
    """A program of node/ runs on this host, unless it has no part in it; not done by --dry.

    + of: only where this replica is; + slot: of the replicas of this slot
    + unless: says why nothing is to be measured now
    """
    if state.is_executing and _is_meant(host.name, of):
        _say(step)
        found = MEASURED.setdefault(host.name, {})
        try:
            if why := unless():
                raise Unclear(why)
            if task := _task(what, SEEN[host.name], of, slot):
                _end_with_the_run()
                found[what] = None  # from here on it is stopped with the run
                _run(_start(task), LIMITS["connecting"])
        except (Unclear, LookupError, TypeError, OSError, EOFError, SSHException) as error:
            found.pop(what, None)
            found[_key(what, host.name, of, slot)] = {"error": str(error)}
    host.noop("begun")
    return
    yield


@operation()
def ended(what: str, of: str = "", slot: int = 0) -> Iterator[str]:
    """What it found is known here, and nothing of it is left on the host."""
    found = MEASURED.get(host.name, {})
    if state.is_executing and found.get(what, ()) is None:
        try:
            said = answered(_run(_fetch(what), LIMITS[what] + LIMITS["connecting"]))
        except (Unclear, OSError, EOFError, SSHException) as why:
            said = {"error": str(why)}
        del found[what]
        found[_key(what, host.name, of, slot)] = said
    host.noop("ended")
    return
    yield


def _end_with_the_run() -> None:
    """pyinfra disconnects however a run ends, also on Ctrl-C; what still runs is stopped then."""
    itself = state.inventory.get_host(host.name)
    if itself.name in _ending:
        return
    _ending.add(itself.name)
    disconnect, connection = itself.connector.disconnect, remote.arguments(itself)

    def end() -> None:
        left = [unit(what) for what, found in MEASURED[itself.name].items() if found is None]
        with suppress(OSError, EOFError, SSHException):
            if left:
                remote.run(itself, "systemctl", "stop", *left, **connection)
        disconnect()

    itself.connector.disconnect = end  # type: ignore[method-assign]


def answered(said: str) -> dict[str, Any]:
    """What a program found; of one that left no answer, its last words."""
    last = (said.strip().splitlines() or ["it ended without a word"])[-1]
    with suppress(ValueError):
        found = json.loads(last)
        if isinstance(found, dict):
            return found
    return {"error": last}


def _is_meant(name: str, of: str) -> bool:
    return name in SEEN and (not of or of in SEEN[name].expected.replicas)


def _say(step: str) -> None:
    if step not in _steps:
        _steps.add(step)
        for say in _watchers:
            say(step)


def _task(what: str, on: Host, of: str, slot: int) -> Task | None:
    if what == "connecting":
        return tasks.connecting(on, SEEN)
    if what == "allreduce":
        its = _ranks(on, of, slot)
        return tasks.allreduce(on, its, SEEN) if its else None
    return tasks.disk(on) if what == "disk" else tasks.listening(on)


def _ranks(on: Host, of: str, slot: int) -> Ranks | None:
    """A host is in one replica of a slot at most."""
    return next((its for its in on.expected.ranks if its.slot == slot and of in ("", its.replica)), None)


def _key(what: str, name: str, of: str, slot: int) -> str:
    """Of an all-reduce there may be several on a host."""
    its = _ranks(SEEN[name], of, slot) if what == "allreduce" else None
    return f"{what} {its.replica}" if its else what


def unit(what: str) -> str:
    """The unit that a program runs as."""
    return f"rackserve-doctor-{what}"


def _start(task: Task) -> str:
    """One that an interrupted run has left makes room."""
    name = unit(task.program)
    source = base64.b64encode(program(task.program, ("answering",)).encode()).decode()
    # systemd would put variables in for $.
    asked = json.dumps(task.asked).replace("$", "\\u0024")
    properties: Mapping[str, Any] = {
        "RuntimeMaxSec": LIMITS[task.program], "RuntimeDirectory": name, "User": task.user,
        "LimitMEMLOCK": "infinity", "LimitNOFILE": 1048576, "KillMode": "control-group",
        "TimeoutStopSec": 5, "StandardInput": "data", "StandardInputData": source,
    }  # fmt: skip
    words = ["systemd-run", "--quiet", "--collect", f"--unit={name}",
             *(f"--property={key}={value}" for key, value in properties.items()),
             task.python, "-I", "-", asked]  # fmt: skip
    begin = f"systemctl stop {name} 2>/dev/null; {shlex.join(words)}"
    return f"{begin} && {{ {_wait(name)}; }}" if task.is_ready_when_answered else begin


def _wait(name: str) -> str:
    """Until there is an answer, or nobody who would give one."""
    return f"until test -e /run/{name}/answer || ! systemctl is-active --quiet {name}; do sleep 0.3; done"


def _fetch(what: str) -> str:
    """Its answer as soon as there is one; else what its journal ends with."""
    name = unit(what)
    last_words = f"journalctl _SYSTEMD_UNIT={name}.service --since=-{LIMITS[what]}s -n 3 -o cat -q --no-pager"
    return (
        f"{_wait(name)}; cat /run/{name}/answer 2>/dev/null || {last_words}; "
        f"systemctl stop {name} 2>/dev/null; true"
    )


def _run(script: str, limit: int) -> str:
    """What a shell prints on this host; Unclear where it fails."""
    itself = state.inventory.get_host(host.name)
    succeeded, out, err = remote.run(
        itself, "sh", "-c", script, **{**remote.arguments(itself), "_timeout": limit}
    )
    if not succeeded:
        raise Unclear(f"{host.name}: {(err or out or 'failed').strip().splitlines()[-1]}")
    return out
