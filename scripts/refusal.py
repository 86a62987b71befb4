"""How a command ends that was not done: one line on stderr, an exit code that tells why."""

from __future__ import annotations

import click


class Refused(click.ClickException):
    """Bad input: one line on stderr, exit code 2."""

    exit_code = 2

    def show(self, file=None) -> None:
        click.secho(f"rackserve: {self.message}", fg="red", err=True)


class Failed(Refused):
    """It was tried and did not work: one line on stderr, exit code 1."""

    exit_code = 1


class Interrupted(Failed):
    """By Ctrl-C: what is known by then is not all."""
