"""Scenarios are cases, each measured by itself: a row in bench/rollout/SCENARIO.json, kept once it passed."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import requests

from tests.bench.report import FOLDER, table, write
from tests.lab.shell import LabError

#: What a case gives: `passed`, and what is to be seen of it. `details` are only in the JSON.
Row = dict[str, Any]
Case = Callable[[Path], Row]

#: The columns of the table; what a row has besides stays in the JSON.
COLUMNS = ("case", "requests", "failed", "truncated", "wrong", "retried", "in flight", "seconds",
           "recovery, s", "cold start, s", "why")  # fmt: skip


def run(scenario: str, cases: Mapping[str, Case], again: bool = False) -> bool:
    """Measure the cases that have not passed yet; True when all have. Printed as they come."""
    rows = {} if again else {row["case"]: row for row in rows_of(scenario)}
    for name, case in cases.items():
        if not rows.get(name, {}).get("passed"):
            click.echo(f"{scenario}: {name}", err=True)
            rows[name] = {"case": name, **_measured(case, FOLDER / "rollout" / scenario / _file(name))}
            _write(scenario, cases, rows)
    show(scenario)
    return complete(scenario)


def _write(scenario: str, cases: Mapping[str, Case], rows: Mapping[str, Row]) -> None:
    """Also those that are left to be measured: a run that is broken off is not complete."""
    left = {"passed": False, "why": "not measured yet"}
    write(f"rollout/{scenario}", [rows.get(name, {"case": name, **left}) for name in cases])


def complete(scenario: str) -> bool:
    """Whether every case was measured and passed."""
    rows = rows_of(scenario)
    return bool(rows) and all(row["passed"] for row in rows)


def _measured(case: Case, folder: Path) -> Row:
    """A case that cannot be measured has not passed; the next one may."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    try:
        return {"at": began, **case(folder)}
    except (LabError, subprocess.SubprocessError, requests.RequestException, OSError) as error:
        return {"at": began, "passed": False, "why": f"not measured: {error}"}


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def rows_of(scenario: str) -> list[Row]:
    """What was measured before."""
    file = FOLDER / f"rollout/{scenario}.json"
    return json.loads(file.read_text())["rows"] if file.exists() else []


def show(scenario: str) -> None:
    click.echo(f"\n{scenario}")
    table([_shown(row) for row in rows_of(scenario)])


def _shown(row: Row) -> Row:
    own = [name for name in row if name.endswith("ms")]
    shown = {name: row[name] for name in (*COLUMNS[:1], *own, *COLUMNS[1:]) if name in row}
    return {**shown, "passed": "yes" if row["passed"] else "NO"}
