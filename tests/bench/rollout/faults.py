"""Faults under load: what the other replica loses, how soon the hurt one's requests fail, when it is back."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.bench.rollout.cases import Case, Row, rows_of
from tests.bench.rollout.layouts import Served
from tests.bench.rollout.processes import ENGINE, kinds, pid_of, processes
from tests.bench.rollout.under import SHOWN, Under, counts, judged
from tests.lab.node import Node
from tests.lab.shell import LabError, wait_until

USERS, TOKENS = 8, (500, 700)  # long answers of about a minute
BEFORE = 10  # seconds of load before the harm
AWAY = 45  # seconds that a node has no power, or no link
STILL = 40.0  # seconds that a replica must stay up to be back: what is broken shows by then
FAST = 30.0  # seconds in which a request on a hurt replica must have failed
UNHEARD = 30.0  # seconds in which an engine that hangs must be out of the gateway
MORE = 15.0  # seconds that a recovery may take besides a cold start
LONGEST = 600  # seconds that are waited for a recovery

HURT = "replica-1"

#: Does harm when it is entered; leaving it ends the harm, where that does not end by itself.
Harm = Callable[[], Any]


def cold_start(served: Served) -> dict[str, Case]:
    """Twice: all of a replica's agents are restarted, its head's last, until it is up again."""

    def case(folder: Path) -> Row:
        row = measured(served, folder, HURT, lambda: _restarting(served))
        row["cold start, s"] = row.pop("recovery, s")
        problems = row.pop("problems")
        if not row["cold start, s"]:
            problems.append(f"{HURT} did not come back, or was never away")
        return judged(problems, **row)

    return {"first": case, "second": case}


@contextmanager
def _restarting(served: Served) -> Iterator[None]:
    for node in reversed(served.members(HURT)):
        node.sudo(f"systemctl restart rackserve-{HURT}-gang")
    yield


def kill(served: Served) -> dict[str, Case]:
    """Each process of a replica, of each kind one on each node, by SIGKILL."""
    found = {node: kinds(processes(node, HURT)) for node in served.members(HURT)}
    return {
        f"{kind} on {node.name}": _harmed(served, lambda node=node, kind=kind: _killing(node, kind))
        for node, own in found.items()
        for kind in own
    }


@contextmanager
def _killing(node: Node, kind: str) -> Iterator[None]:
    pid = pid_of(node, HURT, kind)
    if pid is None:
        raise LabError(f"{node.name} has no {kind} now")
    node.sudo(f"kill -KILL {pid}")
    yield


def power(served: Served) -> dict[str, Case]:
    """Each node, seen through the gateway that is left; back after a while."""

    @contextmanager
    def off(node: Node) -> Iterator[None]:
        node.poweroff()
        try:
            yield
        finally:
            node.poweron()

    return {
        f"power off {node.name}": _harmed(served, lambda node=node: off(node), name, away=AWAY)
        for name in served.names
        for node in served.members(name)
    }


def cut(served: Served) -> dict[str, Case]:
    """The links of one of a replica's nodes, and of all of them."""
    members = served.members(HURT)
    cases = {"cut all of it": members, **{f"cut {node.name} off": [node] for node in members}}
    return {
        name: _harmed(served, lambda nodes=nodes: _cutting(nodes), away=AWAY) for name, nodes in cases.items()
    }


@contextmanager
def _cutting(nodes: Sequence[Node]) -> Iterator[None]:
    for node in nodes:
        node.cut()
    try:
        yield
    finally:
        for node in nodes:
            node.heal()


def hung(served: Served) -> dict[str, Case]:
    """An engine that is stopped leaves the gateway, and another takes its place."""

    def case(folder: Path) -> Row:
        node = served.members(HURT)[0]
        before = pid_of(node, HURT, ENGINE)
        if before is None:
            raise LabError(f"{node.name} has no {ENGINE}; it has {kinds(processes(node, HURT))}")
        row = measured(served, folder, HURT, lambda: _stopping(node, before))
        problems = row.pop("problems")
        if row["out, s"] is None or row["out, s"] > UNHEARD:
            problems.append(f"out of the gateway after {row['out, s']} s, not {UNHEARD:.0f}")
        if row["recovery, s"] is None or pid_of(node, HURT, ENGINE) in (before, None):
            problems.append("the engine was not restarted")
        return judged(problems, **row)

    return {"the engine stops": case}


@contextmanager
def _stopping(node: Node, pid: int) -> Iterator[None]:
    node.sudo(f"kill -STOP {pid}")
    yield


def _harmed(served: Served, harm: Harm, hurt: str = HURT, away: float = 0) -> Case:
    def case(folder: Path) -> Row:
        cold = cold_start_seconds()
        row = measured(served, folder, hurt, harm, away)
        problems = row.pop("problems")
        if row["recovery, s"] is None:
            problems.append(f"{hurt} did not come back")
        elif row["recovery, s"] > cold + MORE:
            problems.append(f"back after {row['recovery, s']:.0f} s, not {cold + MORE:.0f}")
        if row["slowest failure, s"] > FAST:
            problems.append(f"a request failed only after {row['slowest failure, s']:.0f} s")
        return judged(problems, **row, **{"cold start, s": cold})

    return case


def cold_start_seconds() -> float:
    """As measured under the same load."""
    measured = [row["cold start, s"] for row in rows_of("cold-start") if row["passed"]]
    if not measured:
        raise LabError("no cold start was measured yet: run SCENARIO=cold-start first")
    return statistics.median(measured)


def measured(served: Served, folder: Path, hurt: str, harm: Harm, away: float = 0) -> Row:
    """One harm under load through a gateway that is not hurt; `problems` are what the others lost."""
    _forget(served, hurt)
    served.settle()
    gateway = next(node for node in served.gateways if node not in served.members(hurt))
    with Under(served, folder, gateway=gateway, users=USERS, keep=False, long=TOKENS) as under:
        time.sleep(BEFORE)
        began = time.time()
        with harm():
            time.sleep(away)
            over = time.time() if away else began
        with suppress(LabError):  # it is judged by what was seen
            wait_until(lambda: returned(served, under, hurt, over), LONGEST, f"{hurt} to be back")
        back = under.watch.back(hurt, began) if returned_now(served, hurt) else None
        out = under.watch.left(hurt, began)
    return {
        **counts(under.lines), **_failures(under, hurt, began), "out, s": out and out - began,
        "recovery, s": None if back is None else max(back - over, 0.0),
    }  # fmt: skip


def _forget(served: Served, hurt: str) -> None:
    """Falls of earlier cases, so that this one is the first and no backoff is added to its recovery."""
    unit, file = f"rackserve-{hurt}-gang", f"/run/rackserve/{hurt}/state.json"
    served.members(hurt)[0].sudo(
        f"systemctl kill --signal=STOP {unit}; sed -i /row.:/s/[0-9][0-9]*/0/ {file};"
        f" systemctl kill --signal=KILL {unit}"
    )
    wait_until(lambda: returned_now(served, hurt), LONGEST, f"{hurt} to be adopted")


def _failures(under: Under, hurt: str, began: float) -> Row:
    """What was lost on whom, and how long requests on the hurt one took to fail after the harm."""
    bad = under.located()
    own = [line for line in bad if line["server"] == hurt]
    others = [line for line in bad if line["server"] != hurt]
    return {
        "slowest failure, s": max((line["end"] - max(line["start"], began) for line in own), default=0.0),
        "problems": [f"{len(others)} lost that were not on {hurt}"] if others else [],
        "details": {"others": others[:SHOWN], "own": own[:SHOWN]},
    }


def returned(served: Served, under: Under, hurt: str, since: float) -> bool:
    """Up in the gateway for a while, and by its own word; an agent that was killed may be mute a moment."""
    return under.watch.still(hurt, since, STILL) and returned_now(served, hurt)


def returned_now(served: Served, hurt: str) -> bool:
    with suppress(LabError, OSError, ValueError):
        said = served.members(hurt)[0].sudo(f"cat /run/rackserve/{hurt}/state.json")
        return json.loads(said)["state"] == "up" and not served.trouble(hurt)
    return False
