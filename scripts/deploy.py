"""`rackserve deploy` and `rackserve unlock`."""

from __future__ import annotations

import os
import time

import click

from scripts import runner
from scripts.refusal import Refused

inventory_option = click.option(
    "-i", "--inventory", default="cluster", show_default=True, envvar="RACKSERVE_INVENTORY",
    help="An inventory's name in inventories/, or a file.",
)  # fmt: skip


def _key_value(_context: click.Context, _option: click.Parameter, data: tuple[str, ...]) -> tuple[str, ...]:
    for one in data:
        if "=" not in one:
            raise Refused(f"--data {one}: write KEY=VALUE")
    return data


data_option = click.option(
    "--data", multiple=True, metavar="KEY=VALUE", callback=_key_value, help="A setting for this run."
)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", metavar="NAME")
@inventory_option
@click.option("--dry", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--diff", is_flag=True, help="Show how files would change.")
@click.option("--limit", multiple=True, metavar="HOST", help="Only this host or group.")
@data_option
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[PYINFRA OPTIONS]")
def deploy(
    name: str,
    inventory: str,
    dry: bool,
    diff: bool,
    limit: tuple[str, ...],
    data: tuple[str, ...],
    more: tuple[str, ...],
) -> None:
    """Run a playbook of deploys/ on an inventory.

    \b
    provision       bare OS to ready: packages, user, Python environments
    trial           each replica started without weights, and stopped: kernels compiled
    stage_weights   the model's files on every node, verified
    serve           Ray and vLLM up, and seen to generate
    serve_llama     all three, for Llama 3.1 70B Instruct unless the inventory says otherwise
    teardown        stop serving

    A second run changes nothing. Settings: deploys/settings.py lists them.
    """
    started = time.monotonic()
    words = [runner.inventory_path(inventory), runner.deploy_path(name), *more]
    words += ["--dry"] if dry else [] if diff else ["-y"]
    words += ["--diff"] if diff else []
    words += ["--fail-percent", "0"]
    for option, values in (("--limit", limit), ("--data", map(absolute, data))):
        for value in values:
            words += [option, value]
    runner.run(words)
    click.secho(f"{name}: done in {time.monotonic() - started:.0f} s", fg="green", err=True)


def absolute(one: str) -> str:
    """A folder to serve, from the repository's point of view: pyinfra runs there."""
    from models import source

    key, _, value = one.partition("=")
    return f"model={os.path.abspath(value)}" if key == "model" and source.is_folder(value) else one


@click.command()
@inventory_option
def unlock(inventory: str) -> None:
    """Take the lock away from a run that holds it (see who in the error you got)."""
    path = runner.inventory_path(inventory)
    with runner.quietly():
        runner.run([path, "deploys/unlock.py", "-y", "--limit", "head"])
    from roles.lock import describe  # late: it is pyinfra's, whose command line comes first

    for name, holder in runner.seen().items():
        click.echo(f"{name}: the lock was taken from {describe(holder)}")
    if not runner.seen():
        click.echo("nobody held the lock")
