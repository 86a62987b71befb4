"""`rackserve doctor`."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from scripts import runner
from scripts.deploy import inventory_option
from scripts.refusal import Failed, Interrupted, Refused
from scripts.status import look

COLORS = {"fail": "red", "warn": "yellow", "unknown": "cyan", "pass": "green"}
LINES = 3000  # of each host's journals


@click.command()
@inventory_option
@click.option("--replica", metavar="R", help="Only the hosts of this replica: replica-0, or 0.")
@click.option("--deep", is_flag=True, help="Measure as well: disks, every port of every pair, GPUs.")
@click.option("--list", "listing", is_flag=True, help="Show every check there is; ask no host.")
@click.option("--logs", is_flag=True, help="Look for known causes in the units' journals instead.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor(inventory: str, replica: str | None, deep: bool, listing: bool, logs: bool, as_json: bool) -> None:
    """Look at every host, and say what is wrong, how one sees it and what mends it.

    Reads only, also on a host that was never provisioned. With --deep it writes and sends, for a minute
    or two, and leaves nothing. Exits 1 when a check fails, or with --logs when a cause was found.
    """
    if deep and logs:
        raise Refused("--deep and --logs: one at a time")
    if listing:
        _list(as_json)
    elif logs:
        _logs(inventory, _replica(replica), as_json)
    else:
        _examine(inventory, _replica(replica), deep, as_json)


def _replica(given: str | None) -> str | None:
    return f"replica-{given}" if given and given.isdigit() else given


def _list(as_json: bool) -> None:
    from roles.doctor import registry

    rows = registry()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        title = f"{row['title']} (--deep)" if row["deep"] else row["title"]
        click.echo(f"{row['id']:18} {title}  ({row['reference']})\n{'':18} fix: {row['fix']}")


def _examine(inventory: str, replica: str | None, deep: bool, as_json: bool) -> None:
    hosts = _hosts(inventory, ["_deep=True", f"_replica={replica or ''}"] if deep else [])
    if replica:
        known = sorted({name for host in hosts for name in host.expected.replicas})
        hosts = [host for host in hosts if replica in host.expected.replicas]
        if not hosts:
            raise _unknown(replica, known)
    from roles.doctor import examine, measured

    rows = [finding.as_row() for finding in examine(measured(hosts))]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        _print(rows, len(hosts))
    if any(row["status"] == "fail" for row in rows):
        raise click.exceptions.Exit(1)


def _unknown(replica: str, known: Sequence[str]) -> Refused:
    return Refused(f"no {replica} in the plan; there are: {', '.join(known) or 'none'}")


def _said(lines: Sequence[str]) -> bool:
    """Whether there is more in a journal than that there is nothing."""
    return any(not line.startswith("-- ") for line in lines)


def _hosts(inventory: str, data: Sequence[str]) -> list[Any]:
    """What was seen on each host of the inventory; one out of reach is among them."""
    words = [runner.inventory_path(inventory), "deploys/doctor.py", "-y"]
    words += [word for one in data for word in ("--data", one)]
    if data:
        _show_steps()
    try:
        with runner.quietly():
            runner.run(words)
    except Failed as error:
        if isinstance(error, Interrupted) or not runner.hosts():
            raise
    from roles.doctor import Expected, Host

    seen = runner.seen()
    return [
        seen.get(name)
        or Host(name=name, expected=Expected(address=runner.address(name)), lacks=runner.why_unseen(name))
        for name in runner.hosts()
    ]


def _show_steps() -> None:
    """Of what takes a while; stdout is for the findings."""
    import pyinfra_cli  # noqa: F401  (first: it patches sockets and threads)

    from roles.doctor import watch

    screen, started = sys.stderr, time.monotonic()
    watch(lambda step: click.echo(f"{time.monotonic() - started:4.0f} s  {step}", file=screen))


def _print(rows: list[dict[str, Any]], hosts: int) -> None:
    """What does not pass, the same of several hosts once."""
    said: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] != "pass":
            said.setdefault((row["status"], row["id"], row["evidence"]), []).append(row)
    for (status, check, evidence), same in said.items():
        word = click.style(f"{status:8}", fg=COLORS[status])
        click.echo(f"{word}{', '.join(row['host'] for row in same)}  {check}: {evidence}")
        if status != "unknown":
            click.echo(f"{'':8}  fix: {same[0]['fix']}  ({same[0]['reference']})")
    counts = Counter(row["status"] for row in rows)
    summary = ", ".join(f"{counts[status]} {status}" for status in COLORS)
    click.echo(f"{summary} on {hosts} host{'s' if hosts != 1 else ''}")


def _logs(inventory: str, replica: str | None, as_json: bool) -> None:
    seen, trouble = look(inventory, "doctor", _logs=LINES, _replica=replica or "")
    journals = {host: its["lines"] for host, its in seen.items()}
    known = sorted({name for its in seen.values() for name in its["heads"]})
    # What is not in the plan any more may still have said something.
    if replica and replica not in known and not any(map(_said, journals.values())):
        raise _unknown(replica, known)
    from roles.doctor import diagnose

    heads = {
        host: {name: head for name, head in its["heads"].items() if replica in (None, name)}
        for host, its in seen.items()
    }
    causes = diagnose(journals, heads)
    if as_json:
        click.echo(json.dumps([vars(cause) for cause in causes], indent=1))
    for cause in () if as_json else causes:
        times = f" ({cause.times} times)" if cause.times > 1 else ""
        click.echo(f"{click.style(cause.host, bold=True)}  {cause.cause}{times}")
        click.echo(f"{'':8}  {cause.evidence}\n{'':8}  fix: {cause.fix}  ({cause.reference})")
    if not causes and not as_json:
        click.echo(f"no known cause in the journals of {', '.join(journals)}; `rackserve logs` prints them")
    if trouble:
        raise trouble
    if causes:
        raise click.exceptions.Exit(1)
