"""`rackserve status` and `logs`."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from scripts import runner
from scripts.deploy import inventory_option


@click.command()
@inventory_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(inventory: str, as_json: bool) -> None:
    """Show what every host serves, and how its units are."""
    seen, trouble = look(inventory, "units")
    rows = [{"host": host, **_without_key(unit)} for host, units in seen.items() for unit in units]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif not rows:
        click.echo(f"nothing is served on {', '.join(seen)}")
    else:
        for row in rows:
            click.echo(_line(row))
    if trouble:
        raise trouble


@click.command()
@inventory_option
@click.option("--part", type=click.Choice(["vllm", "ray", "gang", "haproxy"]), help="Only these units.")
@click.option("-n", "--lines", default=100, show_default=True, help="Of each host.")
def logs(inventory: str, part: str | None, lines: int) -> None:
    """Print the journals of the replicas' units on every host."""
    units = f"*{part}*" if part else "*"
    journals, trouble = look(inventory, "journals", _part=units, _lines=lines)
    for host, journal in journals.items():
        for line in journal:
            click.echo(f"{host}  {line}")
    if trouble:
        raise trouble


def look(inventory: str, deploy: str, **data: Any) -> tuple[dict[str, Any], runner.Failed | None]:
    """{host: what that read-only deploy saw there}, in the inventory's order, and what failed on others.

    Raises Failed when no host could be looked at.
    """
    settings = [word for key, value in data.items() for word in ("--data", f"{key}={value}")]
    path, trouble = runner.inventory_path(inventory), None
    try:
        with runner.quietly():
            runner.run([path, f"deploys/{deploy}.py", "-y", *settings])
    except runner.Failed as error:
        if not runner.seen():
            raise
        trouble = error
    return runner.seen(), trouble


def _line(row: dict[str, Any]) -> str:
    state = f"{row['active']} ({row['sub']})"
    times = {0: "", 1: "1 restart"}.get(row["restarts"], f"{row['restarts']} restarts")
    serves = f"{row['model']}  {row['split']}  port {row['port']}" if row.get("model") else ""
    if row.get("gateway"):
        serves = f"port {row['gateway']}  " + ", ".join(map(_server, row["servers"]))
    if row.get("gang"):
        serves = _gang(row["gang"])
    return (
        f"{row['host']:10} {row['replica']:10} {row['part']:7} {state:22} "
        f"since {row['since'] or '-':23}  {times:11}  {serves}"
    ).rstrip()


def _gang(told: dict[str, Any]) -> str:
    """How a replica is, since when, and what took it down last."""
    said = f"{told['state']} since {_time(told['since'])}"
    if told["why"]:
        said += f" ({told['why']})"
    if told["next"]:
        said += f", next try {_time(told['next'])}"
    if told["recent"]:
        count, last = told["falls"], told["recent"][-1]
        said += f"; {count} fall{'s' if count > 1 else ''}: {last['why']} at {_time(last['when'])}"
    return said


def _time(seconds: float) -> str:
    """In UTC, like systemd's; the day too where it is not one of the last 24 hours."""
    old = abs(time.time() - seconds) > 86400
    return time.strftime("%Y-%m-%d %H:%M:%S" if old else "%H:%M:%S", time.gmtime(seconds))


def _server(one: dict[str, Any]) -> str:
    return f"{one['name']} {one['status']} ({one['sessions']} requests)"


def _without_key(unit: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in unit.items() if name != "key"}
