"""Rollouts under load: of two and three replicas, and to versions that should not stay."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.bench.rollout.cases import Case, Row
from tests.bench.rollout.layouts import Served
from tests.bench.rollout.under import SHOWN, USERS, Under, at_drains, counts, judged, lost
from tests.lab.shell import LabError

REQUESTS = 2000  # at least, in each rollout that succeeds
IN_FLIGHT = 20  # at least, as each drain begins


def rollout(served: Served) -> dict[str, Case]:
    """To another version of the same replicas, and back: two rollouts, each its own case."""

    def case(folder: Path) -> Row:
        to = served.other()
        row, under, problems = rolled(served, folder, REQUESTS, **served.version(to))
        drains = row["details"]["drains"]
        if row["code"]:
            problems.append(f"exit code {row['code']}")
        if set(served.versions.values()) != {(to, None)}:
            problems.append(f"versions are {served.versions}")
        if {drain["replica"] for drain in drains} != set(served.names):
            problems.append(f"drained were {[drain['replica'] for drain in drains]}")
        if len(under.lines) < REQUESTS:
            problems.append(f"{len(under.lines)} requests, not {REQUESTS}")
        if row["in flight"] < IN_FLIGHT:
            problems.append(f"{row['in flight']} in flight at a drain, not {IN_FLIGHT}")
        return judged(problems, **row)

    return {"there": case, "back": case}


def unfit(served: Served, **arguments: Any) -> dict[str, Case]:
    """To a version that must be put back where it was tried first."""

    def case(folder: Path) -> Row:
        now = served.uniform()
        before = served.versions
        row, _, problems = rolled(served, folder, 0, **served.version(now, **arguments))
        if row["code"] != 1:
            problems.append(f"exit code {row['code']}, not 1")
        if served.versions != before:
            problems.append(f"versions are {served.versions}")
        return judged(problems, **row)

    return {", ".join(f"{name} {value}" for name, value in arguments.items()): case}


def rolled(served: Served, folder: Path, requests: int, **changes: Any) -> tuple[Row, Under, list[str]]:
    """One rollout under load, which goes on for so many requests; what was lost, and is not well after it."""
    served.settle()
    users = USERS * len(served.names)
    with Under(served, folder, gateway=served.gateways[0], users=users) as under:
        began = time.time()
        outcome = served.run("rollout", **changes)
        seconds = time.time() - began
        (folder / "rollout.log").write_text(outcome.said)
        under.load.wait(lambda: under.load.ended >= requests, 1200, f"{requests} answers")
    drains = at_drains(under)
    row = {
        **counts(under.lines), "seconds": seconds, "code": outcome.code,
        "in flight": min((drain["in flight"] for drain in drains), default=0),
        "details": {"drains": drains, "troubled": under.located()[:SHOWN], "said": outcome.said[-2000:]},
    }  # fmt: skip
    return row, under, lost(under.lines) + unsettled(served)


def unsettled(served: Served) -> list[str]:
    """What is wrong with the replicas afterwards."""
    try:
        served.settle()
    except (LabError, OSError) as error:
        return [str(error)]
    return []
