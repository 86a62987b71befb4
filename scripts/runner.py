"""Running pyinfra's own command line, with an exit code that tells the truth.

pyinfra exits 0 when an inventory has no hosts, when `--limit` matches none and when a
run is interrupted; a wrapper that trusts it reports success for nothing at all.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from scripts.refusal import Failed, Interrupted, Refused

#: Where inventories/ and deploys/ are; pyinfra's paths are relative to it.
REPOSITORY = Path(__file__).parent.parent


def inventory_path(name: str) -> str:
    """An inventory by its file, or by its name in inventories/."""
    for path in (Path(name), REPOSITORY / f"inventories/{name}.py"):
        if path.is_file():
            return str(path.resolve())
    there = sorted(path.stem for path in (REPOSITORY / "inventories").glob("*.py"))
    raise Refused(f"no inventory {name}; there are: {', '.join(there)}, or give a file")


def deploy_path(name: str) -> str:
    """A playbook by its name in deploys/."""
    files = [path for path in (REPOSITORY / "deploys").glob("[a-z]*.py") if path.stem not in COMMANDS]
    there = sorted(path.stem for path in files if "\ndef " not in path.read_text())  # else playbooks share it
    if name.removesuffix(".py") in there:
        return f"deploys/{name.removesuffix('.py')}.py"
    raise Refused(f"no deploy {name}; there are: {', '.join(there)}")


#: Of deploys/, what commands other than `rackserve deploy` run.
COMMANDS = ("doctor", "history", "journals", "snapshots", "units", "unlock")


#: When it is only in pyinfra's own words.
VAGUE = "failed; see above"


def run(arguments: Sequence[str]) -> None:
    """Run `pyinfra ARGUMENTS` from the repository; returns when all of it was done.

    Raises Refused for bad input, Failed when a host failed.
    """
    os.chdir(REPOSITORY)
    # Imported late: it patches sockets and threads for gevent, and takes half a second.
    import pyinfra
    from pyinfra_cli.cli import cli
    from pyinfra_cli.exceptions import (
        CliError,
        UnexpectedExternalError,
        UnexpectedInternalError,
        WrappedError,
    )

    pyinfra.is_cli = True  # as its own main() does; else it orders operations by position
    try:
        _end_at_once_when_interrupted()
        cli.main(list(arguments), prog_name="pyinfra", standalone_mode=False)
    except SystemExit as done:
        if done.code:
            raise Failed(_what_failed() or VAGUE) from None
    except WrappedError as error:
        raise _refusal(error.exception) from None
    except (CliError, click.UsageError) as error:
        raise Refused(error.format_message()) from None
    except UnexpectedExternalError as error:
        raise _unexpected(error) from None
    except UnexpectedInternalError as error:
        if isinstance(error.exception, SyntaxError):
            raise _mistyped(error.exception) from None
        raise
    except (KeyboardInterrupt, click.Abort):
        sys.unraisablehook = lambda _: None  # paramiko's, of what is cut off as Python ends
        raise Interrupted("interrupted; run it again to finish what was begun") from None
    _require_hosts()
    if not {"--dry", "--debug-facts", "--debug-operations"} & {*arguments} and not _executed():
        raise Failed("nothing was done: that was no Enter at the question above")


def _end_at_once_when_interrupted() -> None:
    """By Ctrl-C. pyinfra would wait for all that runs on the hosts, however long it takes."""
    import gevent
    from pyinfra.context import ctx_state

    main = gevent.getcurrent()

    def interrupt(*_) -> None:
        if gevent.getcurrent() is main:
            raise KeyboardInterrupt
        gevent.kill(main, KeyboardInterrupt)  # first: pyinfra takes an operation that is killed for done
        if ctx_state.isset() and (pool := getattr(ctx_state.get(), "pool", None)):
            pool.kill(block=False)

    signal.signal(signal.SIGINT, interrupt)


@contextmanager
def quietly() -> Iterator[None]:
    """Keep pyinfra's own progress off the screen; its errors come as exceptions.

    What it says of one that is vague is shown.
    """
    noise = io.StringIO()
    os.environ["PYINFRA_PROGRESS"] = "off"
    try:
        with contextlib.redirect_stderr(noise):
            yield
    except Failed as error:
        if VAGUE in error.message:
            click.echo(noise.getvalue(), err=True)
        raise


def hosts() -> list[str]:
    """The names of the inventory's hosts, in its order; none when it was not read."""
    from pyinfra.context import ctx_state

    inventory = ctx_state.get().inventory if ctx_state.isset() else None
    if not inventory:
        return []
    members = (host.name for group in ("head", "workers") for host in inventory.groups.get(group, ()))
    return list(dict.fromkeys(members))


def seen() -> dict[str, Any]:
    """{host: what a read-only deploy left in its data}, in the inventory's order; those it reached."""
    from pyinfra.context import ctx_state

    inventory = ctx_state.get().inventory
    data = {name: inventory.get_host(name).data for name in hosts()}
    return {name: its.get("seen") for name, its in data.items() if its.get("seen") is not None}


def printed(beginning: str) -> dict[str, str]:
    """{host: the last line that one of its operations printed which begins so}."""
    from pyinfra.context import ctx_state

    found = {}
    for host, operations in ctx_state.get().ops.items():
        for operation in operations.values():
            meta = operation.operation_meta
            for line in meta.stdout_lines if meta.is_complete() else ():
                if line.startswith(beginning):
                    found[host.name] = line
    return found


def why_unseen(host: str) -> str:
    """What kept it from being looked at."""
    from pyinfra.context import ctx_state

    state = ctx_state.get()
    reached = state.inventory.get_host(host) in state.activated_hosts
    return "could not be asked; see above" if reached else "cannot be reached over SSH"


def address(host: str) -> str:
    """Where a host of the inventory is reached from here."""
    from pyinfra.context import ctx_state

    data = ctx_state.get().inventory.get_host(host).data
    return str(data.get("ssh_hostname") or data.get("address") or host)


def _mistyped(wrong: SyntaxError) -> Refused:
    """An inventory that is no Python."""
    return Refused(f"{wrong.filename} line {wrong.lineno}: {wrong.msg}")


def _refusal(error: Exception) -> Refused:
    from deploys.cluster import Refused as BadInput

    if isinstance(error, BadInput):
        return Refused(str(error))
    return Failed(_what_failed() or str(error))


def _unexpected(error: click.ClickException) -> Refused:
    """An inventory that the lab or the user's own code could not make is bad input."""
    from models.errors import BadInput
    from tests.lab import LabError

    cause = error.exception  # type: ignore[attr-defined]
    if isinstance(cause, (BadInput, LabError)):
        return Refused(str(cause))
    file = Path(error.filename).resolve()  # type: ignore[attr-defined]
    if not file.is_relative_to(REPOSITORY / "deploys"):
        frames = traceback.extract_tb(cause._traceback)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file]
        said = " ".join(str(cause).split())
        return Refused(f"{file} line {(lines or ['?'])[-1]}: {type(cause).__name__}: {said}")
    error.show()
    return Failed(f"{type(cause).__name__} in {error.filename}")  # type: ignore[attr-defined]


def _what_failed() -> str:
    """What went wrong, host by host: in our operations' words, else in the command's own."""
    from pyinfra.context import ctx_state

    from roles.remote import failures

    if failures or not ctx_state.isset():
        return "; ".join(failures)
    state = ctx_state.get()
    hosts = sorted(getattr(state, "failed_hosts", ()), key=lambda host: host.name)
    return "; ".join(f"{host.name}: {_last_words(state, host)}" for host in hosts)


def _last_words(state: Any, host: Any) -> str:
    """The last line that a failed operation on this host got from it."""
    for operation in state.ops[host].values():
        meta = operation.operation_meta
        if meta.is_complete() and meta.did_error():
            return (meta.stderr_lines or meta.stdout_lines or [VAGUE])[-1]
    return VAGUE if host in state.activated_hosts else "cannot be reached over SSH"


def _executed() -> bool:
    """False where pyinfra's question was answered with no."""
    from pyinfra.api.state import StateStage
    from pyinfra.context import ctx_state

    return ctx_state.get().current_stage >= StateStage.Execute


def _require_hosts() -> None:
    from pyinfra.context import ctx_state

    if not ctx_state.isset() or not ctx_state.get().inventory:
        raise Refused("the inventory has no hosts: fill the groups head and workers")
    if not ctx_state.get().activated_hosts:
        raise Refused("no host of the inventory was chosen: check --limit")


def read_inventory(path: str, model: str | None = None) -> tuple[Any, Any, Any]:
    """The nodes that serve a model, the settings that they share, and the request for a plan in them.

    Of several models the first, unless `model` is another of theirs. Connects to no host.
    """
    os.chdir(REPOSITORY)
    from pyinfra.api import State
    from pyinfra.api.exceptions import PyinfraError
    from pyinfra.context import ctx_state
    from pyinfra_cli.exceptions import CliError, UnexpectedExternalError
    from pyinfra_cli.inventory import make_inventory

    from deploys.cluster import read
    from deploys.planning import request_of
    from deploys.settings import pools

    try:
        with ctx_state.use(State()):
            inventory = make_inventory(path, cwd=str(REPOSITORY))
    except UnexpectedExternalError as error:
        raise _unexpected(error) from None
    except SyntaxError as error:
        raise _mistyped(error) from None
    except (PyinfraError, CliError) as error:
        raise Refused(f"{path}: {error}") from None
    except (IndexError, TypeError, ValueError):  # of pyinfra's own, which takes a host apart unlooked
        raise Refused(
            f"{path}: a host is a name, or a name and its settings: (NAME, {{KEY: VALUE}})"
        ) from None
    cluster = read(inventory)
    found = pools(cluster.hosts)
    names = found.get(model or "") or next(iter(found.values()))
    own = cluster.hosts[names[0]]
    return [node for node in cluster.nodes if node.name in names], own, request_of(own)
