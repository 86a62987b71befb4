"""Running something on the host in the middle of an operation, outside the plan.

For what is not desired state: the lock, waiting for health. It changes nothing that a
plan should show, so it is not yielded as a command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyinfra import logger
from pyinfra.api import Host, QuoteString, StringCommand
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS

from roles import recall


def arguments(host: Host) -> dict[str, Any]:
    """The connection arguments (`_sudo` and the like) of the operation that is running."""
    given = host.current_op_global_arguments or {}
    return {key: given[key] for key in CONNECTOR_ARGUMENT_KEYS if key in given}


def run(host: Host, *words: str, stdin: str = "", **connection: Any) -> tuple[bool, str, str]:
    """Run a command as it is on the host: (succeeded, stdout, stderr)."""
    return execute(
        host, StringCommand(*map(QuoteString, words), **({"_stdin": stdin} if stdin else {})), **connection
    )


def execute(host: Host, command: StringCommand, **connection: Any) -> tuple[bool, str, str]:
    """`run` for a command that is one already."""
    with recall.aside():
        succeeded, output = host.run_shell_command(command, **{**connection, **command.connector_arguments})
    return succeeded, output.stdout, output.stderr


_shown, _shown_before = 0, False


@contextmanager
def shown(host: Host) -> Iterator[None]:
    """What commands print in here is seen as it comes, by whoever watches the run."""
    global _shown, _shown_before
    if not _shown:
        _shown_before = host.state.print_output
    _shown += 1
    host.state.print_output = True
    try:
        yield
    finally:
        _shown -= 1
        if not _shown:  # other hosts may still be at it
            host.state.print_output = _shown_before


@contextmanager
def unseen(host: Host) -> Iterator[None]:
    """Facts asked in here are not printed, whatever -v says: they hold secrets."""
    shown, host.state.print_fact_output = host.state.print_fact_output, False
    try:
        yield
    finally:
        host.state.print_fact_output = shown


#: What `failure` said in this run, for whoever reports on it.
failures: list[str] = []


def judged(
    host: Host, problem: str | None, otherwise: Callable[[str], None] | None, well: str
) -> Iterator[StringCommand]:
    """For operations that only look: the host fails for a problem, unless `otherwise` gets it.

    + well: what is true without one
    """
    if problem and otherwise is None:
        yield failure(host, problem)
        return
    if problem and otherwise:
        otherwise(problem)
    host.noop(well)


def failure(host: Host, message: str) -> StringCommand:
    """The command to yield when an operation cannot go on: it says why, and fails the host.

    Raising would end the run in the middle of what other hosts are doing.
    """
    failures.append(f"{host.name}: {message}")
    host.log_styled(message, fg="red", log_func=logger.error)
    return StringCommand("false")
