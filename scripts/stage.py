"""`rackserve stage`: a model's files on every node, and what is there."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import click

from scripts import runner
from scripts.deploy import absolute, data_option, inventory_option
from scripts.refusal import Refused
from scripts.status import look


@click.command()
@click.argument("model", required=False)
@inventory_option
@click.option("--list", "listing", is_flag=True, help="Show what is where, and when it was verified.")
@click.option("--verify", is_flag=True, help="Read everything again, and compare it with the checksums.")
@click.option("--prune", type=click.IntRange(0), metavar="N", help="Keep the last N snapshots of each model.")
@click.option("--revision", help="A branch, tag or commit of the hub's.")
@data_option
@click.option("--dry", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --list: for machines.")
def stage(
    model: str | None,
    inventory: str,
    listing: bool,
    verify: bool,
    prune: int | None,
    revision: str | None,
    data: tuple[str, ...],
    dry: bool,
    as_json: bool,
) -> None:
    """Stage MODEL (the inventory's unless given) on every node of its plan, verified.

    A second run changes nothing and reads nothing again; what broke off goes on where it was. What a
    revision means, and what runs, is never pruned.

    --data replicas=2 and the like: the settings of the plan, as you give them to `deploy`.
    """
    if sum((listing, verify, prune is not None)) > 1:
        raise Refused("--list, --verify and --prune: one at a time")
    about = [model, revision and f"--revision {revision}", *(f"--data {one}" for one in data)]
    if any(about) and (listing or verify or prune is not None):
        raise Refused(f"{next(filter(None, about))}: --list, --verify and --prune are for all that is staged")
    if listing:
        _list(inventory, as_json)
        return
    deploy, given = "stage_weights", [*data]
    given += [f"model={model}"] if model else []
    given += [f"revision={revision}"] if revision is not None else []
    if verify:
        deploy = "verify_weights"
    elif prune is not None:
        deploy, given = "prune_weights", [f"_keep={prune}"]
    words = [runner.inventory_path(inventory), f"deploys/{deploy}.py", "--dry" if dry else "-y"]
    for one in given:
        words += ["--data", absolute(one)]
    runner.run([*words, "--fail-percent", "0"])
    if not dry:
        for host, row in runner.printed("whole ").items():
            click.echo(f"{host:10} {row}", err=as_json)
        _list(inventory, as_json)


def _list(inventory: str, as_json: bool) -> None:
    seen, trouble = look(inventory, "snapshots")
    rows = [{"host": host, **one} for host, found in seen.items() for one in found]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif not rows:
        click.echo(f"nothing is staged on {', '.join(seen)}")
    else:
        for row in rows:
            when = datetime.fromtimestamp(row["verified"], timezone.utc)
            click.echo(
                f"{row['host']:10} {row['repository']:40} {','.join(row['revisions']) or '-':10} "
                f"{row['commit'][:12]}  {row['bytes'] / 1e9:9.2f} GB  "
                f"verified {when:%Y-%m-%d %H:%M} UTC  {row['problem'] or ''}".rstrip()
            )
    if trouble:
        raise trouble
