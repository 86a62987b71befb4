"""What is done to a gateway: load a configuration, take a replica out, let it in again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyinfra import host, state
from pyinfra.api import FactBase, OperationError, QuoteString, StringCommand, operation

from roles import remote, service
from roles.units.facts import OURS, RUNS, InstalledUnits, timestamp

from .config import IDLE, Server
from .judge import judge, told

UNIT = service.unit("gateway", "haproxy")
CONFIG = f"{service.folder('gateway')}/haproxy.cfg"
RUN = "/run/rackserve-gateway"
ADMIN = "/opt/rackserve/libexec/gateway.py"

WATCH = "/opt/rackserve/libexec/watch.py"

INTERVAL = 0.5  # seconds between two looks at what a replica still answers
GRACE = 20.0  # seconds for a replica that has just come back to be seen by the gateway

#: The content comes by stdin, and replaces a configuration only if HAProxy takes it. $1 path.
_WRITE = (
    'mkdir -p "$(dirname "$1")" && cat > "$1.new" && { command -v haproxy >/dev/null'
    ' || { echo "haproxy is not installed: run provision" >&2; false; }; }'
    ' && haproxy -c -q -f "$1.new" && chmod 644 "$1.new" && mv "$1.new" "$1"'
)

#: SIGUSR1 has HAProxy stop to listen, and end when its last answer has. $1 folder, $2 unit.
_DROP_IN = f"/run/systemd/system/{UNIT}.d"
_END = (
    'mkdir -p "$1" && printf "[Service]\\nRestart=no\\nKillSignal=SIGUSR1\\nTimeoutStopSec=infinity\\n"'
    ' > "$1/end.conf" && systemctl daemon-reload && systemctl stop --no-block "$2"'
)


@dataclass(frozen=True)
class Loaded:
    """The configuration on disk; whether a gateway runs, has not loaded it, or was told to end (`ended`)."""

    sha256: str = ""
    active: bool = False
    outdated: bool = False
    ending: bool = False


class Configuration(FactBase[Loaded]):
    """`Loaded` of this host. What was loaded last is as old as the unit's last change of state."""

    def command(self) -> str:
        show = "systemctl show --timestamp=us+utc --property=ActiveState,StateChangeTimestamp"
        return (
            f"sha256sum {CONFIG} 2>/dev/null; stat --format=changed=%.Y {CONFIG} 2>/dev/null; {show} {UNIT};"
            f" test ! -e {_DROP_IN} || echo ending=yes"
        )

    def process(self, output: list[str]) -> Loaded:
        shown = dict(line.split("=", 1) for line in output if "=" in line)
        sums = [line.split()[0] for line in output if line.endswith(CONFIG)]
        loaded = timestamp(shown.get("StateChangeTimestamp", ""))
        return Loaded(
            sha256=sums[0] if sums else "",
            active=shown.get("ActiveState") in RUNS,
            outdated=float(shown.get("changed", 0)) > loaded,
            ending="ending" in shown,
        )

    @staticmethod
    def default() -> Loaded:
        return Loaded()


class Servers(FactBase[dict[str, dict[str, Any]]]):
    """{replica: how the gateway on this host sees it}; see admin.py."""

    def command(self) -> str:
        return f"test ! -e {RUN}/master.sock || python3 {ADMIN} servers"

    def process(self, output: list[str]) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in json.loads("".join(output) or "[]")}

    @staticmethod
    def default() -> dict[str, dict[str, Any]]:
        return {}


@operation()
def configured(content: str) -> Iterator[StringCommand]:
    """HAProxy's configuration is this one, and one that runs has loaded it.

    A run that was cut off between the two is finished by the next.
    """
    now = host.get_fact(Configuration)
    differs = now.sha256 != hashlib.sha256(content.encode()).hexdigest()
    if differs:
        yield StringCommand("sh", "-c", QuoteString(_WRITE), "sh", CONFIG, _stdin=content)
    if now.active and (differs or now.outdated):
        yield StringCommand("systemctl", "reload", UNIT)
    if not differs and not (now.active and now.outdated):
        host.noop(f"{CONFIG} is as wanted")


@operation()
def drain(replica: str) -> Iterator[StringCommand]:
    """No new request goes to a replica; those that it answers go on."""
    if not _in(replica):
        host.noop(f"{replica} is out of the gateway")
        return
    yield StringCommand("python3", ADMIN, "drain", QuoteString(replica))


@operation()
def drained(
    replica: str, timeout: float, otherwise: Callable[[str], None] | None = None
) -> Iterator[StringCommand]:
    """Wait until a replica answers no request any more; changes nothing.

    + otherwise: gets what is wrong after `timeout` seconds, instead of the host failing
    """
    problem = _await(replica, timeout) if state.is_executing else None
    yield from remote.judged(host, problem, otherwise, f"{replica} answers no request")


@operation()
def ended(timeout: float, cut: bool = False) -> Iterator[StringCommand]:
    """The gateway here takes no more requests, and has ended with the last of its answers.

    The host fails when that takes longer than `timeout` seconds, and what is left goes on; or is `cut`.
    """
    if UNIT not in host.get_fact(InstalledUnits, pattern=OURS):
        host.noop(f"no {UNIT} here")
        return
    yield StringCommand("sh", "-c", QuoteString(_END), "sh", _DROP_IN, UNIT)
    if state.is_executing and not _gone(timeout):
        if not cut:
            yield remote.failure(
                host,
                f"the gateway here still answers after {timeout:.0f} s: it takes no more requests and ends"
                f" with the last of these (who asks nothing keeps it for {IDLE} s at most); then run again."
                " --data drain_timeout=SECONDS waits longer, --data cut=True cuts them",
            )
            return
        yield StringCommand("systemctl", "kill", "--signal=KILL", UNIT)
    yield StringCommand("rm", "-r", _DROP_IN)
    yield StringCommand("systemctl", "daemon-reload")


@operation()
def enough(besides: Sequence[str], others: Sequence[str], anyway: bool = False) -> Iterator[StringCommand]:
    """All `others` answer, so that those `besides` them may be taken out; changes nothing.

    The host fails when one does not, unless that is to be done `anyway`.
    """
    down = _down(others) if state.is_executing and not anyway else {}
    if down:
        said = ", ".join(f"{name} is {status}" for name, status in down.items())
        yield remote.failure(
            host,
            f"{said}: {', '.join(besides)} cannot be spared; mend it (rackserve status),"
            " or --data degraded=True",
        )
        return
    host.noop("the others answer")


@operation()
def seen(replica: str, otherwise: Callable[[str], None] | None = None) -> Iterator[StringCommand]:
    """Wait until the gateway sees that a replica answers; changes nothing.

    + otherwise: gets what is wrong after GRACE seconds, instead of the host failing
    """
    status = _down([replica]).get(replica) if state.is_executing else None
    problem = f"the gateway takes {replica} for {status}" if status else None
    yield from remote.judged(host, problem, otherwise, f"{replica} is seen to answer")


@operation()
def watched(
    replicas: Sequence[str], servers: Sequence[Server], seconds: float,
    otherwise: Callable[[str, str], None],
) -> Iterator[StringCommand]:  # fmt: skip
    """Look for so many seconds how replicas fare beside all others of their model; changes nothing.

    + otherwise: gets the name of one that does worse, and what is wrong with it
    """
    models = {server.name: server.model for server in servers}
    if state.is_executing and seconds:
        words = (str(seconds), *(f"{server.name}={server.place}" for server in servers))
        succeeded, out, err = remote.run(host, "python3", WATCH, *words, **remote.arguments(host))
        if not succeeded:
            yield remote.failure(host, f"the gateway could not be watched: {err or out}")
            return
        windows = json.loads(out)
        for name in replicas:
            one, alike = windows[name], [other for other in windows if models[other] == models[name]]
            if problem := judge(name, {other: windows[other] for other in alike}):
                otherwise(name, problem)
            host.log(
                f"{name}: {one['requests']} requests, {one['errors']} failed{told(one)}: {problem or 'well'}"
            )
    host.noop("watched")


@operation()
def ready(replica: str) -> Iterator[StringCommand]:
    """Requests go to a replica again, once it generates."""
    if _in(replica):
        host.noop(f"{replica} is in the gateway")
        return
    yield StringCommand("python3", ADMIN, "ready", QuoteString(replica))


def _in(replica: str) -> bool:
    seen = host.get_fact(Servers).get(replica)
    return seen is not None and bool(seen["in"])


def _down(names: Sequence[str]) -> dict[str, str]:
    """Those of the replicas that do not answer, also not after a while, and how they are."""
    until = time.monotonic() + GRACE
    while True:
        there = {one["name"]: _status(one) for one in _servers()}
        down = {name: there[name] for name in names if name in there and not there[name].startswith("UP")}
        if not down or time.monotonic() > until:
            return down
        time.sleep(INTERVAL)


def _status(one: Mapping[str, Any]) -> str:
    return one["status"] if one["checked"] else "not looked at yet"


def _await(replica: str, timeout: float) -> str | None:
    until = time.monotonic() + timeout
    while True:
        left = sum(one["sessions"] for one in _servers() if one["name"] == replica)
        if not left:
            return None
        if time.monotonic() > until:
            return f"{replica} still answers {left} requests after {timeout:.0f} s"
        time.sleep(INTERVAL)


def _gone(timeout: float) -> bool:
    """Whether the gateway's unit ends in so many seconds."""
    until = time.monotonic() + timeout
    while True:
        words = ("systemctl", "show", "--property=ActiveState", "--value", UNIT)
        _, out, _ = remote.run(host, *words, **remote.arguments(host))
        if out.strip() in ("inactive", "failed"):
            return True
        if time.monotonic() > until:
            return False
        time.sleep(INTERVAL)


def _servers() -> list[dict[str, Any]]:
    """As they are now; none where no gateway runs yet. One that is just starting anew is waited for."""
    words = ("sh", "-c", f"test ! -e {RUN}/master.sock || python3 {ADMIN} servers")
    until = time.monotonic() + GRACE
    while True:
        succeeded, out, err = remote.run(host, *words, **remote.arguments(host))
        if succeeded:
            servers: list[dict[str, Any]] = json.loads(out or "[]")
            return servers
        if time.monotonic() > until:
            said = (err or out).strip().splitlines()[-1:]
            raise OperationError(f"{host.name}: the gateway does not say how its replicas are: {said}")
        time.sleep(INTERVAL)
