"""What the gateway adds to a stream, beside the same stream direct, of a server that is always as quick.

All of it in one network namespace, on loopback: HAProxy with the configuration that is deployed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roles.gateway import Server, render
from tests.bench.netns import PREFIX, Network, network
from tests.bench.rollout.cases import Row
from tests.bench.rollout.fixed import TOKEN
from tests.bench.rollout.under import counts, judged, lost
from tests.lab.shell import wait_until
from tests.load.driver import REPOSITORY, Load

PORT, SERVER = 8080, 8000
TOKENS = 20  # of each answer
USERS = 4
EACH = 2000  # requests of each way
#: Before whatever else runs on the machine, which would be most of what is above the median.
FIRST = ("chrt", "--fifo", "1")
MOST, MORE = 1.05, 0.002  # p99 through the gateway: that times direct, and so many seconds


def case(folder: Path) -> Row:
    """The time to the first token and that of the whole answer, of both ways."""
    with network(1) as net, tempfile.TemporaryDirectory() as run:
        _serve(net, Path(run))
        expected = folder / "expected.json"
        expected.write_text(json.dumps({"Once": [TOKEN] * TOKENS}))
        load = Load(
            folder, f"http://127.0.0.1:{PORT}", "key", model="fixed", expected=expected, users=USERS,
            limit=600, locustfile=Path(__file__).with_name("paired.py"), keep=True,
            inside=("ip", "netns", "exec", f"{PREFIX}0", *FIRST), direct=f"http://127.0.0.1:{SERVER}",
        )  # fmt: skip
        with load:
            load.wait(lambda: load.ended >= 2 * EACH, 590, f"{2 * EACH} answers")
    lines = load.lines()
    row, problems = counts(lines), lost(lines)
    for what, until in (("first", "first"), ("whole", "end")):
        own, passed = _compared(lines, until)
        row |= {f"{what} {name}, ms": 1000 * value for name, value in own.items()}
        problems += [] if passed else [f"{what}: p99 above the goal"]
    return judged(problems, **row)


def _serve(net: Network, run: Path) -> None:
    net.start(0, *FIRST, sys.executable, "-m", "tests.bench.rollout.fixed", SERVER, cwd=REPOSITORY)
    wait_until(lambda: net.listens(0, SERVER), 20, "the server")
    config = run / "haproxy.cfg"
    # Nobody answers at the agent's port, and HAProxy leaves the server as it is.
    config.write_text(render([Server("replica-0", "127.0.0.1", SERVER, 9, 256)], PORT, str(run)))
    net.start(0, *FIRST, "haproxy", "-W", "-f", config, stderr=subprocess.DEVNULL)
    wait_until(lambda: net.listens(0, PORT), 20, "HAProxy")


def _compared(lines: Sequence[dict[str, Any]], until: str) -> tuple[dict[str, float], bool]:
    """Medians and 99th percentiles in seconds, and whether the gateway's is as it should be."""
    direct, through = (
        [line[until] - line["sent"] for line in lines if line["kind"] == kind]
        for kind in ("direct", "through")
    )
    goal = MOST * p99(direct) + MORE
    row = {
        "median direct": statistics.median(direct), "median through": statistics.median(through),
        "p99 direct": p99(direct), "p99 through": p99(through), "p99 goal": goal,
    }  # fmt: skip
    return row, p99(through) <= goal


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]
