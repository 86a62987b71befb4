"""Rollouts under load whose controller is killed, and two at once."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.rollout.cases import Case, Row, rows_of
from tests.bench.rollout.layouts import VERSIONS, Served
from tests.bench.rollout.processes import ENGINE, pid_of
from tests.bench.rollout.rolling import unsettled
from tests.bench.rollout.under import SHOWN, USERS, Under, at_drains, counts, judged, lost
from tests.lab.node import Node
from tests.lab.shell import LabError
from tests.lab.testing import REPOSITORY

POINTS = 10
FEW = 8  # users for each replica: where a rollout is run eleven times, it should be a short one
WATCH = ["--watch", "10"]
UNDISTURBED = "undisturbed"
CANARY = "replica-0"

#: Every file of the replicas, the gateways and their units, and how these are; what two versions differ in
#: is one letter, and a release's id says no more.
_STATE = (
    "find -L /etc/rackserve/replica-* /etc/rackserve/gateway /etc/systemd/system/rackserve-* -type f"
    " -not -name release 2>/dev/null | sort | while read -r file; do echo $file;"
    ' sed -E "s/\\b({versions})\\b/N/g" $file | sha256sum; done;'
    " systemctl list-units --all --plain --no-legend rackserve-\\*"
)


def killed(served: Served) -> dict[str, Case]:
    """One rollout that nobody disturbs; then ten, each killed at a random point of its time and run again.

    The points are the same each time.
    """
    chance = random.Random(1)
    points = {f"point {number}": _killed(served, chance.random()) for number in range(POINTS)}
    return {UNDISTURBED: partial(_undisturbed, served), **points}


def _undisturbed(served: Served, folder: Path) -> Row:
    to = served.other()
    served.settle()
    with _under(served, folder) as under:
        began = time.time()
        done = served.run("rollout", *WATCH, **served.version(to))
        seconds = time.time() - began
    problems = lost(under.lines) + unsettled(served)
    if done.code:
        problems.append(f"exit code {done.code}: {done.said[-200:]}")
    return judged(problems, **counts(under.lines), seconds=seconds)


def _under(served: Served, folder: Path) -> Under:
    return Under(served, folder, gateway=served.gateways[0], users=FEW * len(served.names))


def _killed(served: Served, share: float) -> Case:
    def case(folder: Path) -> Row:
        to = served.other()
        before = state(served)
        served.settle()
        after = share * undisturbed_seconds()
        with _under(served, folder) as under:
            with started(served, folder, to, *WATCH) as first:
                time.sleep(after)
                problems = [] if first.poll() is None else ["it had ended before it was to be killed"]
            began = time.time()
            again = served.run("rollout", *WATCH, **served.version(to))
            seconds = time.time() - began
        problems += lost(under.lines) + unsettled(served)
        if again.code:
            problems.append(f"run again: exit code {again.code}: {again.said[-200:]}")
        if set(served.versions.values()) != {(to, None)}:
            problems.append(f"versions are {served.versions}")
        if different := [node for node, now in state(served).items() if now != before[node]]:
            problems.append(f"another end state on {', '.join(different)}")
        details = {
            "drains": at_drains(under),
            "troubled": under.located()[:SHOWN],
            "said": again.said[-2000:],
        }
        return judged(problems, **counts(under.lines), seconds=seconds, after=after, details=details)

    return case


def two(served: Served) -> dict[str, Case]:
    """The second is refused while the first is at work, and told whose that is."""

    def case(folder: Path) -> Row:
        to, began = served.other(), time.time()
        served.settle()
        users = USERS * len(served.names)
        with (
            Under(served, folder, gateway=served.gateways[0], users=users) as under,
            started(served, folder, to) as first,
        ):
            under.load.wait(lambda: any(under.watch.drains()), 300, "the first to be at work")
            second = served.run("rollout", **served.version(to))
            first.wait(1200)
        holder = re.search(r"\S+@\S+ \(pid \d+\)", second.said)
        problems = lost(under.lines) + unsettled(served)
        if first.returncode:
            problems.append(f"the first: exit code {first.returncode}")
        if not second.code or not holder:
            problems.append(f"the second: exit code {second.code}: {second.said[-200:]}")
        if set(served.versions.values()) != {(to, None)}:
            problems.append(f"versions are {served.versions}")
        details = {"second": second.said[-2000:], "troubled": under.located()[:SHOWN]}
        return judged(problems, **counts(under.lines), seconds=time.time() - began, details=details)

    return {"the second is refused by name": case}


def slow(served: Served) -> dict[str, Case]:
    """A canary whose engine works a twentieth of the time is put back."""

    def case(folder: Path) -> Row:
        to = served.other()
        before = served.versions
        served.settle()
        with Under(served, folder, gateway=served.gateways[0], users=USERS * len(served.names)) as under:
            began = time.time()
            with started(served, folder, to) as first:
                under.load.wait(lambda: _came_back(under, CANARY), 600, f"{CANARY} to be let in")
                with slowed(served.members(CANARY)[0], CANARY):
                    first.wait(1200)
            seconds = time.time() - began
        problems = lost(under.lines) + unsettled(served)
        said = [
            line for line in (folder / "first.log").read_text().splitlines() if line.startswith("rackserve:")
        ]
        if first.returncode != 1 or not any("of the others" in line for line in said):
            problems.append(f"exit code {first.returncode}: {said}")
        if served.versions != before:
            problems.append(f"versions are {served.versions}")
        details = {"said": said, "troubled": under.located()[:SHOWN]}
        return judged(problems, **counts(under.lines), seconds=seconds, details=details)

    return {"a twentieth of its speed": case}


def _came_back(under: Under, replica: str) -> bool:
    drained = next((at for at, name, _ in under.watch.drains() if name == replica), None)
    back = under.watch.back(replica, drained) if drained else None
    return back is not None and back != drained


@contextmanager
def slowed(node: Node, replica: str) -> Iterator[None]:
    """Its engine is stopped for all but a twentieth of every second, until it ends or a minute has passed."""
    pid = pid_of(node, replica, ENGINE)
    if pid is None:
        raise LabError(f"{node.name} has no {ENGINE} of {replica}")
    pulse = f"kill -STOP {pid} || exit 0; sleep 0.95; kill -CONT {pid}; sleep 0.05"
    words = node.ssh("sudo", "sh", "-c", f"'for n in $(seq 60); do {pulse}; done'")
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as ssh:
        try:
            yield
        finally:
            ssh.wait()


@contextmanager
def started(served: Served, folder: Path, to: int, *words: str) -> Iterator[subprocess.Popen]:
    """A rollout; if it still runs at the end it is killed, with every process of its own."""
    command = served.command("rollout", *words, **served.version(to))
    with (folder / "first.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def undisturbed_seconds() -> float:
    """Of a rollout under the same load."""
    seconds = [
        row["seconds"] for row in rows_of("controller-killed") if row["case"] == UNDISTURBED and row["passed"]
    ]
    if not seconds:
        raise LabError("no rollout went undisturbed yet: it is the scenario's first case")
    return seconds[0]


def state(served: Served) -> dict[str, Any]:
    """{node: a digest of what it has and how that is}, but for the version."""
    asked = _STATE.format(versions="|".join(map(str, VERSIONS)))
    nodes = {node.name: node for name in served.names for node in served.members(name)}
    return {name: hashlib.sha256(node.sudo(asked).encode()).hexdigest() for name, node in nodes.items()}
