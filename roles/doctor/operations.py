"""Looking at a host, and ending a run on what was seen."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from pyinfra import host, state
from pyinfra.api import Host as PyinfraHost
from pyinfra.api import StringCommand, operation

from roles import remote

from .check import Expected, Host
from .examine import Finding, examine
from .facts import Look
from .measure import SEEN, measured

#: What `looked` was asked in this run, and what follows from it.
_looked: dict[str, Host] = {}
_found: list[Finding] = []


def look(on: PyinfraHost, expected: Expected) -> Host:
    """The host as it is; one that could not be looked at says why it lacks what is seen."""
    asked = json.dumps(
        {
            "address": expected.address, "environment": expected.environment, "weights": expected.weights,
            "ports": list(expected.ports), "peers": list(expected.peers.values()),
        }
    )  # fmt: skip
    before = time.time()
    with remote.unseen(on):
        seen = on.get_fact(Look, asked=asked, _ignore_errors=True)
    if seen is None:
        return Host(name=on.name, expected=expected, lacks="root's python3 could not be asked there")
    theirs = seen["time"]
    offset = min(theirs - before, 0.0) + max(theirs - time.time(), 0.0)
    SEEN[on.name] = Host(name=on.name, expected=expected, seen=seen, offset=offset)
    return SEEN[on.name]


@operation()
def looked(expected: Expected) -> Iterator[str]:
    """Look at this host; changes nothing, and is not done by --dry."""
    if state.is_executing:
        _looked[host.name] = look(state.inventory.get_host(host.name), expected)
    host.noop("looked")
    return
    yield


@operation()
def sound() -> Iterator[StringCommand]:
    """Nothing, when no check fails on this host; else it fails, saying which and what to do."""
    if state.is_executing:
        if not _found:
            _found.extend(examine(measured(list(_looked.values()))))
        wrong = [one for one in _found if one.host == host.name and one.status == "fail"]
        if wrong:
            said = "; ".join(f"{one.id}: {one.evidence} (fix: {one.fix})" for one in wrong)
            yield remote.failure(state.inventory.get_host(host.name), said)
            return
    host.noop("sound")
