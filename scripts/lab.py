"""`rackserve lab`: the lab and its faults, as verbs."""

from __future__ import annotations

import os
from functools import wraps

import click

from scripts.runner import Refused
from tests.lab import Lab, LabError
from tests.lab.paths import STATE


@click.group()
def lab() -> None:
    """A real cluster of systemd nodes on this machine, to try things on.

    \b
    rackserve lab up 3                  three nodes, a few seconds once cached
    rackserve lab cut node2             and see what serving makes of it
    """


def verb(function):
    """A command of the lab; its LabError is bad input."""

    @wraps(function)
    def called(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except LabError as error:
            raise Refused(str(error)) from None

    return lab.command(name=function.__name__.replace("_", "-"))(called)


@verb
@click.argument("nodes", type=int, default=3)
def up(nodes: int) -> None:
    """Bring up a lab of NODES nodes, 1 to 8."""
    Lab().up(nodes, click.echo)
    _show()


@verb
def prepare() -> None:
    """Make what every lab is made of, once: minutes, mostly of downloads. `up` does it, too."""
    Lab().prepare(click.echo)


@verb
def down() -> None:
    """Remove the lab, all but its cache; also after a crash."""
    Lab().down()


@verb
def status() -> None:
    """Show the nodes, and where the hub is."""
    Lab().require_up()
    _show()


@verb
@click.argument("node")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(node: str, command: tuple[str, ...]) -> None:
    """Open a shell on NODE, or run COMMAND there (after --)."""
    argv = Lab().node(node).ssh(*command)
    os.execvp(argv[0], argv)


@verb
@click.argument("node")
@click.argument("unit", required=False)
def logs(node: str, unit: str | None) -> None:
    """Print the journal of NODE, or of one UNIT there."""
    of_unit = f"-u {unit}" if unit else ""
    click.echo(Lab().node(node).sudo(f"journalctl --no-pager -n 500 {of_unit}"))


@verb
@click.argument("node")
def cut(node: str) -> None:
    """Take out the network cable of NODE."""
    Lab().node(node).cut()


@verb
@click.argument("node")
def heal(node: str) -> None:
    """Undo cut, slow and fill-disk on NODE."""
    Lab().node(node).heal()


@verb
@click.argument("node")
def poweroff(node: str) -> None:
    """Pull the plug of NODE: nothing on it gets to say goodbye."""
    Lab().node(node).poweroff()


@verb
@click.argument("node")
def poweron(node: str) -> None:
    """Boot NODE."""
    Lab().node(node).poweron()


@verb
@click.argument("node")
@click.argument("mbit", type=click.IntRange(min=1))
def slow(node: str, mbit: int) -> None:
    """Shape what NODE receives to MBIT Mbit/s."""
    Lab().node(node).slow(mbit)


@verb
@click.argument("node")
@click.option("--leave", type=int, default=64, show_default=True, help="MiB to leave free.")
def fill_disk(node: str, leave: int) -> None:
    """Fill the disk of NODE."""
    Lab().node(node).fill_disk(leave)


def _show() -> None:
    there = Lab()
    for node in there.nodes():
        state = "up" if node.answers() else "on, no sshd" if node.is_on() else "off"
        click.echo(f"{node.name}  {node.address}  {state}")
    click.echo(f"hub    {there.hub_url}   state {STATE}")
