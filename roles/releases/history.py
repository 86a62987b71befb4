"""What ran when, by whom, from which commit: a line of JSON as it begins, and one as it ends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from pyinfra import host, state
from pyinfra.api import QuoteString, StringCommand, operation

from roles import remote

from .facts import HISTORY

REPOSITORY = Path(__file__).parents[2]

#: $1 the file; the line comes by stdin. A line that a loss of power tore is ended first.
_APPEND = (
    'mkdir -p "$(dirname "$1")" && { test -z "$(tail -c 1 "$1" 2>/dev/null)" || echo >> "$1"; }'
    ' && cat >> "$1" && sync "$1"'
)


@dataclass(frozen=True)
class Entry:
    """A run that changes what is served. `replicas` is {name: [release before, release after]}."""

    run: str
    who: str
    deploy: str
    model: str
    replicas: dict[str, tuple[str, str]]


@operation()
def begun(entry: Entry) -> Iterator[StringCommand]:
    """The history says that this run begins."""
    yield _line({**asdict(entry), "commit": commit(), "at": _now(), "outcome": "begun"})


@operation()
def ended(entry: Entry) -> Iterator[StringCommand]:
    """The history says that this run did what it was to do."""
    yield _line({"run": entry.run, "outcome": "done", "ended": _now()})


@operation()
def judged(entry: Entry, problem: Callable[[], str]) -> Iterator[StringCommand]:
    """The host fails when there is a problem, and the history says so."""
    said = problem() if state.is_executing else ""
    if not said:
        host.noop("no problem")
        return
    yield _line({"run": entry.run, "outcome": f"failed: {said}", "ended": _now()})
    yield remote.failure(host, said)


def _line(said: dict[str, object]) -> StringCommand:
    words = ("sh", "-c", QuoteString(_APPEND), "sh", HISTORY)
    return StringCommand(*words, _stdin=json.dumps(said) + "\n")


def commit() -> str:
    """Of Rackserve itself, with a + when files differ from it; empty outside of git."""
    done = subprocess.run(
        ["git", "-C", REPOSITORY, "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
