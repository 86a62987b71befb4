"""A replica is healthy when it generates a token, not when a socket answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra import state as running
from pyinfra.api import StringCommand, deploy, operation
from pyinfra.operations import files

from roles import remote

SCRIPT = Path(__file__).with_name("probe.py")
INSTALLED = "/opt/rackserve/libexec/probe.py"

INTERVAL = 1.0  # seconds between two questions
PATIENCE = 10  # seconds that one of them waits on the node for a server that listens
TRIES = 3  # falls of the replica while we wait, after which it will not come

#: What probe.py prints.
Seen = dict[str, Any]


@deploy("Health")
def tool() -> None:
    """The script that runs on the node."""
    files.put(name="Install probe.py", src=str(SCRIPT), dest=INSTALLED, mode="644")


@deploy("Health")
def no_tool() -> None:
    """The node without that script."""
    files.file(name=f"Remove {INSTALLED}", path=INSTALLED, present=False)


@operation()
def generating(
    python: str, url: str, secrets: str, units: Sequence[str], state: str, timeout: float
) -> Iterator[StringCommand]:
    """Wait until the server behind `url` generates a token; changes nothing.

    + secrets: the environment file with its VLLM_API_KEY
    + units: the systemd units behind it on this host; + state: where its gang says how it is
    + timeout: seconds; after them, or when it falls again and again, the host fails with what
      the units' journals say
    """
    problem = (
        _wait(lambda: _probe(python, url, secrets, state, units), timeout) if running.is_executing else None
    )
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
        if waited > timeout or seen["falls"] - first["falls"] >= TRIES:
            return f"no token after {waited:.0f} s: {worst or seen['reason']}; see `rackserve logs`"
        if seen["reason"] != said:
            said = seen["reason"]
            worst = said if "Error" in said else worst  # the next try hides what ended the last try
            host.log(f"{waited:4.0f} s  {said}")
        time.sleep(INTERVAL)
        seen = probe()
    if said:
        host.log(f"{time.monotonic() - started:4.0f} s  generates")
    return None


def _probe(python: str, url: str, secrets: str, state: str, units: Sequence[str]) -> Seen:
    words = (python, INSTALLED, url, secrets, str(PATIENCE), state, *units)
    succeeded, out, err = remote.run(host, *words, **remote.arguments(host))
    if not succeeded:
        return {"generates": False, "falls": 0, "reason": f"the probe failed: {err or out}"}
    return json.loads(out)
