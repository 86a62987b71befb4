"""A replica is healthy when it generates a token, not when a socket answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pyinfra import host, state
from pyinfra.api import StringCommand, deploy, operation
from pyinfra.operations import files

from models.plan import Replica
from roles import remote, service
from roles import units as systemd

SCRIPT = Path(__file__).with_name("probe.py")
INSTALLED = "/opt/rackserve/libexec/probe.py"
AGENT = "/opt/rackserve/libexec/agent.py"

INTERVAL = 1.0  # seconds between two questions
PATIENCE = 10  # seconds that one of them waits on the node for a server that listens
TRIES = 3  # restarts of the unit while we wait, after which it will not come

#: What probe.py prints.
Seen = dict[str, Any]


@deploy("Health")
def tool() -> None:
    """The script that runs on the node."""
    files.put(name="Install probe.py", src=str(SCRIPT), dest=INSTALLED, mode="644")


@deploy("Health")
def no_tool() -> None:
    """The node without that script."""
    for path in host.loop((INSTALLED, AGENT)):
        files.file(name=f"Remove {path}", path=path, present=False)


def unit(replica: Replica) -> str:
    return service.unit(replica.name, "health")


@deploy("Health")
def watched(replica: Replica, secrets: str) -> None:
    """Who tells gateways whether a replica generates, on its first node.

    + secrets: the environment file with its VLLM_API_KEY
    """
    folder = Path(__file__).parent
    files.put(name="Install agent.py", src=str(folder / "agent.py"), dest=AGENT, mode="644")
    written = files.template(
        name=f"Write {unit(replica)}",
        src=str(folder / "health.service.j2"), dest=systemd.path(unit(replica)), mode="644",
        replica=replica.name, service=service, secrets=secrets,
        command=f"{AGENT} {replica.ports.api} {replica.head.address} {replica.ports.health}",
    )  # fmt: skip
    systemd.running(
        name=f"Run {unit(replica)}", unit=unit(replica), reads=[AGENT, secrets], changed=[written]
    )


@operation()
def generating(
    python: str, url: str, secrets: str, units: Sequence[str], timeout: float
) -> Iterator[StringCommand]:
    """Wait until the server behind `url` generates a token; changes nothing.

    + secrets: the environment file with its VLLM_API_KEY
    + units: the systemd units behind it on this host
    + timeout: seconds; after them, or when the units keep dying, the host fails with what
      their journals say
    """
    problem = _wait(lambda: _probe(python, url, secrets, units), timeout) if state.is_executing else None
    if problem:
        yield remote.failure(host, problem)
        return
    host.noop(f"{url} generates")


def _wait(probe: Callable[[], Seen], timeout: float) -> str | None:
    """Ask until there is a token; says what is going on whenever that changes."""
    started, said, worst = time.monotonic(), "", ""
    seen = first = probe()
    while not seen["generates"]:
        waited = time.monotonic() - started
        if waited > timeout or seen["restarts"] - first["restarts"] >= TRIES:
            return f"no token after {waited:.0f} s: {worst or seen['reason']}; see `rackserve logs`"
        if seen["reason"] != said:
            said = seen["reason"]
            worst = said if "Error" in said else worst  # a restart hides what ended the last try
            host.log(f"{waited:4.0f} s  {said}")
        time.sleep(INTERVAL)
        seen = probe()
    if said:
        host.log(f"{time.monotonic() - started:4.0f} s  generates")
    return None


def _probe(python: str, url: str, secrets: str, units: Sequence[str]) -> Seen:
    words = (python, INSTALLED, url, secrets, str(PATIENCE), *units)
    succeeded, out, err = remote.run(host, *words, **remote.arguments(host))
    if not succeeded:
        return {"generates": False, "restarts": 0, "reason": f"the probe failed: {err or out}"}
    return json.loads(out)
