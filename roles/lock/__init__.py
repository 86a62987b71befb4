"""One run at a time: a lock on the control host, held while a run changes things.

It lives under /run, names who holds it and since when, and is worth nothing without
renewal: a controller that is gone stops renewing, and the lock lapses after TTL seconds.
Taking it is no change and is not done by `--dry`.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import gevent
from paramiko import SSHException
from pyinfra import host, state
from pyinfra.api import FactBase, Host, StringCommand, operation
from pyinfra.api.exceptions import PyinfraError

from roles import recall, remote

TTL = 120  # seconds
RENEWAL = 20  # seconds
SCRIPT = Path(__file__).with_name("lock.py").read_text()


def _machine() -> str:
    """What no two controllers share, however alike their names: this boot and its process ids."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return f"{uuid.getnode():x}"


#: Who we are, for as long as this process lives.
ID = uuid.uuid4().hex
RUN = {
    "who": f"{getpass.getuser()}@{socket.gethostname()}",
    "pid": os.getpid(),
    "machine": _machine(),
}

_held: set[str] = set()
_free_since = math.inf  # time.monotonic() at which nobody else held the lock any more


class LockLost(PyinfraError):
    """Somebody broke the lock: what this run would do next, another may be doing."""


@operation()
def hold() -> Iterator[StringCommand]:
    """Take the lock on this host until the run ends; fails, naming who, when it is held."""
    if state.is_executing and host.name not in _held:
        itself = state.inventory.get_host(host.name)  # not the proxy for whoever is next
        if problem := _take(itself):
            yield remote.failure(itself, problem)
            return
    host.noop("lock")


def is_ours(name: str) -> bool:
    """Whether this run has the lock on that host."""
    return name in _held


@operation()
def held() -> Iterator[str]:
    """A barrier for every host: what it answered while another may have held the lock is asked again."""
    if state.is_executing:
        recall.afresh(host, since=_free_since)
    host.noop("barrier")
    return
    yield


@operation()
def kept() -> Iterator[StringCommand]:
    """The lock is still ours on this host, also after it was rebooted."""
    if state.is_executing:
        itself = state.inventory.get_host(host.name)
        done, out, err = _script(itself, remote.arguments(itself), "renew", json.dumps(RUN))
        if not done:
            yield remote.failure(itself, f"the lock was taken from this run: {err or out}")
            return
    host.noop("lock")


@operation()
def broken() -> Iterator[str]:
    """Take the lock away from whoever holds it."""
    holder = host.get_fact(Holder)
    if holder is None:
        host.noop("nobody holds the lock")
        return
    host.log(f"taking the lock from {describe(holder)}")
    yield "rm -f /run/rackserve/lock /run/rackserve/released"


class Holder(FactBase):
    """Who holds the lock, or None."""

    def command(self) -> str:
        return "cat /run/rackserve/lock 2>/dev/null || true"

    def process(self, output: list[str]) -> dict[str, str | int] | None:
        return holder_of("\n".join(output))


def holder_of(lock: str) -> dict[str, str | int] | None:
    """Who holds a lock of these lines (lock.py); None for one torn by a crash."""
    try:
        run, _, since, who = lock.split("\n")
        return {"id": run, "since": since, **json.loads(who)}
    except ValueError:
        return None


def describe(holder: dict[str, str | int]) -> str:
    return f"{holder['who']} (pid {holder['pid']}) since {holder['since']}"


def _take(on: Host) -> str | None:
    """Why the lock could not be taken; None when it is ours."""
    connection = remote.arguments(on)
    took, out, err = _script(on, connection, "take", json.dumps(RUN))
    holder = holder_of(out)
    if holder is not None and _is_gone(holder):
        took, out, err = _script(on, connection, "take", json.dumps(RUN), str(holder["id"]))
        holder = holder_of(out)
    if not took:
        if holder is None:
            return f"no lock could be taken: {err or out}"
        way = "wait for that run, or take the lock away with `rackserve unlock -i INVENTORY`"
        return f"locked by {describe(holder)}; {way}"
    global _free_since
    _free_since = time.monotonic() - float(out)
    _held.add(on.name)
    renewal = gevent.spawn(_renew, on, connection)
    _release_on_disconnect(on, connection, renewal)
    return None


def _is_gone(holder: dict[str, str | int]) -> bool:
    """True for an earlier run from this machine that is no longer alive."""
    return holder.get("machine") == RUN["machine"] and not _is_alive(int(holder["pid"]))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # someone else's
    return True


def _renew(on: Host, connection: dict) -> None:
    while True:
        gevent.sleep(RENEWAL)
        try:
            kept, taken_by, _ = _script(on, connection, "renew", json.dumps(RUN))
        except (OSError, EOFError, SSHException):
            continue  # the next renewal may get through; TTL leaves room for some
        if not kept and taken_by:
            # Into the main greenlet, which waits for the hosts: the run ends here.
            gevent.kill(gevent.get_hub().parent, LockLost(f"{on.name}: the lock was taken from this run"))
            return


def _release_on_disconnect(on: Host, connection: dict, renewal: gevent.Greenlet) -> None:
    """pyinfra disconnects however a run ends, also on Ctrl-C; that is when we let go."""
    disconnect = on.connector.disconnect

    def release() -> None:
        renewal.kill()
        _held.discard(on.name)
        _script(on, connection, "release")
        disconnect()

    on.connector.disconnect = release  # type: ignore[method-assign]


def _script(on: Host, connection: dict, action: str, *words: str) -> tuple[bool, str, str]:
    words = (action, ID, str(TTL), *words)
    return remote.run(on, "python3", "-I", "-S", "-", *words, stdin=SCRIPT, **connection)
