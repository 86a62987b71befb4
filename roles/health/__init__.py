"""A replica is healthy when it generates a token, not when a socket answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra import state as running
from pyinfra.api import StringCommand, deploy, operation
from pyinfra.operations import files

from roles import remote

from .answer import QUESTION
from .answer import answered as answered

INSTALLED = "/opt/rackserve/libexec/probe.py"
SCRIPTS = {INSTALLED: Path(__file__).with_name("probe.py"), QUESTION: Path(__file__).with_name("question.py")}

INTERVAL = 1.0  # seconds between two questions
PATIENCE = 10  # seconds that one of them waits on the node for a server that listens
TRIES = 3  # falls of the replica while we wait, after which it will not come

#: What probe.py prints.
Seen = dict[str, Any]


@deploy("Health")
def tool() -> None:
    """The scripts that run on the node."""
    for dest, script in host.loop(SCRIPTS.items()):
        files.put(name=f"Install {script.name}", src=str(script), dest=dest, mode="644")


@deploy("Health")
def no_tool() -> None:
    """The node without them."""
    for path in host.loop(SCRIPTS):
        files.file(name=f"Remove {path}", path=path, present=False)


@operation()
def generating(
    python: str, url: str, secrets: str, units: Sequence[str], state: str, timeout: float,
    otherwise: Callable[[str], None] | None = None,
) -> Iterator[StringCommand]:  # fmt: skip
    """Wait until the server behind `url` generates a token; changes nothing.

    + secrets: the environment file with its VLLM_API_KEY
    + units: the systemd units behind it on this host; + state: where its gang says how it is
    + timeout: seconds; after them, or when it falls again and again, the host fails with what
      the units' journals say
    + otherwise: gets that, instead of the host failing, as soon as it falls once
    """
    probe, tries = partial(_probe, python, url, secrets, state, units), 1 if otherwise else TRIES
    problem = _wait(probe, timeout, tries) if running.is_executing else None
    yield from remote.judged(host, problem, otherwise, f"{url} generates")


@operation()
def judged(problem: Callable[[], str]) -> Iterator[StringCommand]:
    """Fail when there was a problem that `generating` gave away; changes nothing."""
    yield from remote.judged(host, problem() if running.is_executing else None, None, "no problem")


def _wait(probe: Callable[[], Seen], timeout: float, tries: int = TRIES) -> str | None:
    """Ask until there is a token; says what is going on whenever that changes."""
    started, said, worst = time.monotonic(), "", ""
    seen = first = probe()
    while not seen["generates"]:
        waited = time.monotonic() - started
        if waited > timeout or seen["falls"] - first["falls"] >= tries:
            return (
                f"no token after {waited:.0f} s: {worst or seen['reason']}; see `rackserve logs --part vllm`"
            )
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
