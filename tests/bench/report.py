"""Repeat, take the median, print a table, write JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

FOLDER = Path(__file__).parents[2] / "bench"


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def median(run: Callable[[], object], times: int) -> float:
    """The median wall time of `run` in seconds."""
    return statistics.median(seconds(run) for _ in range(times))


def report(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table, and write them with the machine to bench/NAME.json."""
    table(rows)
    write(name, rows)


def table(rows: Sequence[dict[str, Any]]) -> None:
    """Print them; a column that a row lacks is empty there."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        click.echo("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def write(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write them with the machine to bench/NAME.json."""
    file = FOLDER / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "kernel": platform.release()}
    file.write_text(
        json.dumps({"name": name, "at": time.time(), "machine": machine, "rows": rows}, indent=1) + "\n"
    )


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
