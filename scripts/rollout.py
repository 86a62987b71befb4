"""`rackserve rollout`, `rackserve rollback` and `rackserve history`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from scripts.deploy import data_option, inventory_option
from scripts.deploy import deploy as run_deploy
from scripts.status import look

dry_option = click.option("--dry", is_flag=True, help="Show the whole order, and change nothing.")
drain_option = click.option(
    "--drain-timeout", type=click.IntRange(0), metavar="SECONDS",
    help="For the running answers of a replica (600 unless the inventory says otherwise).",
)  # fmt: skip
cut_option = click.option(
    "--cut",
    is_flag=True,
    help="Cut what still runs then; else that replica is let in again, and the run ends.",
)
degraded_option = click.option("--degraded", is_flag=True, help="Go on although another replica is down.")
watch_option = click.option(
    "--watch", type=click.IntRange(0), metavar="SECONDS",
    help="That the first one is looked at beside the others, under load (30).",
)  # fmt: skip


@click.command()
@inventory_option
@data_option
@click.option("--replica", metavar="NAME", help="Only this one.")
@dry_option
@click.option("--diff", is_flag=True, help="Show how files would change.")
@drain_option
@cut_option
@degraded_option
@watch_option
@click.option(
    "--reboot",
    type=click.Choice(["due", "all"]),
    help="Also reboot nodes while nothing serves on them: those on which a reboot is due, or all.",
)
@click.pass_context
def rollout(
    context: click.Context, inventory: str, data: tuple[str, ...], replica: str | None, dry: bool,
    diff: bool, **settings: Any,
) -> None:  # fmt: skip
    """Bring every replica to what the inventory says, without losing a request.

    Environments and weights are prepared on every node first. Then one replica at a time leaves the
    gateway, finishes its answers, is replaced, answers as it did before, is let in and watched. One that
    fails goes back to what it ran, and the others are not touched: exit code 1. Run again, a rollout that
    broke off is finished.
    """
    more = [*data, *_data(settings), *([f"_replica={replica}"] if replica else [])]
    _run(context, "rolling_redeploy", inventory, more, dry, diff)


@click.command()
@inventory_option
@data_option
@dry_option
@drain_option
@cut_option
@degraded_option
@watch_option
@click.pass_context
def rollback(
    context: click.Context, inventory: str, data: tuple[str, ...], dry: bool, **settings: Any
) -> None:
    """Bring the replicas that the last run changed back to what they ran before it.

    The same way, one after another. The inventory is not changed: correct it, for the next deploy goes
    forward again.
    """
    _run(context, "rollback", inventory, [*data, *_data(settings)], dry, diff=False)


@click.command()
@inventory_option
@click.option("-n", "--last", default=10, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="As a JSON array.")
def history(inventory: str, last: int, as_json: bool) -> None:
    """Print what changed what is served: when, by whom, from which commit of Rackserve, and how it ended."""
    seen, trouble = look(inventory, "history", _last=last * 2)
    runs = [run for its in seen.values() for run in its][-last:]
    if trouble and not runs:
        raise trouble
    for line in [json.dumps(runs)] if as_json else map(_line, runs):
        click.echo(line)
    if not runs and not as_json:
        click.echo("nothing has run yet")


def _run(
    context: click.Context, deploy: str, inventory: str, data: Sequence[str], dry: bool, diff: bool
) -> None:
    context.invoke(
        run_deploy, name=deploy, inventory=inventory, dry=dry, diff=diff, limit=(), data=tuple(data), more=()
    )
    from deploys import releasing  # late: it is pyinfra's, whose command line comes first

    change = releasing.undone() if deploy == "rollback" else releasing.change()
    if not change:
        click.echo("nothing to change: every replica runs what it should")
        return
    for batch in change.batches:
        for step in batch.steps:
            releases = _to(step.was.id if step.was else None, step.new.id)
            boots = f", {', '.join(step.reboot)} rebooted" if step.reboot else ""
            click.echo(f"{step.name}: {releases}{boots}{' (not done: --dry)' if dry else ''}")
    for name in change.leaving:
        click.echo(f"{name}: {'would be removed' if dry else 'removed'}")


def _data(settings: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items() if value is not None and value is not False]


def _to(was: str | None, now: str | None) -> str:
    """What is brought where it should be already was not whole, or did not run."""
    return f"{now} again" if was == now else f"{was or 'nothing'} -> {now or 'nothing'}"


def _line(run: dict[str, Any]) -> str:
    changed = ", ".join(f"{name} {_to(was, now)}" for name, (was, now) in run["replicas"].items())
    outcome = "did not end" if run["outcome"] == "begun" else run["outcome"]
    return (
        f"{run['at']}  {run['deploy']:8} {run['who']}  rackserve {run['commit'] or '-'}  {run['model']}  "
        f"{changed}  {outcome}"
    )
