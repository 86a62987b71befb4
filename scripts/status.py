"""`rackserve status` and `logs`."""

from __future__ import annotations

import json
from typing import Any

import click

from scripts import runner
from scripts.deploy import inventory_option


@click.command()
@inventory_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(inventory: str, as_json: bool) -> None:
    """Show what every host serves, and how its units are."""
    seen = look(inventory, "units")
    rows = [{"host": host, **_without_key(unit)} for host, units in seen.items() for unit in units]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        click.echo(f"nothing is served on {', '.join(seen)}")
    for row in rows:
        serves = f"{row['model']}  {row['split']}  port {row['port']}" if row.get("model") else ""
        state = f"{row['active']} ({row['sub']})"
        click.echo(
            f"{row['host']:10} {row['replica']:10} {row['part']:5} {state:22} "
            f"{row['restarts']:2} restarts  since {row['since'] or '-':31} {serves}".rstrip()
        )


@click.command()
@inventory_option
@click.option("--part", type=click.Choice(["vllm", "ray"]), help="Only these units.")
@click.option("-n", "--lines", default=100, show_default=True, help="Of each host.")
def logs(inventory: str, part: str | None, lines: int) -> None:
    """Print the journals of the replicas' units on every host."""
    units = f"*{part}*" if part else "*"
    for host, journal in look(inventory, "journals", _part=units, _lines=lines).items():
        for line in journal:
            click.echo(f"{host}  {line}")


def look(inventory: str, deploy: str, **data: Any) -> dict[str, Any]:
    """{host: what that read-only deploy saw there}, in the inventory's order."""
    settings = [word for key, value in data.items() for word in ("--data", f"{key}={value}")]
    path = runner.inventory_path(inventory)
    with runner.quietly():
        runner.run([path, f"deploys/{deploy}.py", "-y", "--fail-percent", "0", *settings])
    return runner.seen()


def _without_key(unit: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in unit.items() if name != "key"}
