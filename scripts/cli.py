"""`rackserve`: the same playbooks and the lab, for people. Owns no logic.

Exit codes: 0 done, 1 failed, 2 bad input, 3 a plan that does not fit.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from scripts.refusal import Interrupted, Refused

#: Each command and its module, which is imported when the command is used: the lab's takes
#: pyinfra's second.
COMMANDS = {
    "plan": "plan", "models": "plan", "deploy": "deploy", "stage": "stage", "spread": "spread",
    "wheelhouse": "wheelhouse",
    "rollout": "rollout", "rollback": "rollout", "history": "rollout",
    "unlock": "deploy", "status": "status", "logs": "status", "doctor": "doctor", "chat": "chat",
    "lab": "lab", "demo": "demo",
}  # fmt: skip


class Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """A mistyped option is one line too, like all other bad input; and so is Ctrl-C, at any time."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "rackserve"
            raise Refused(f"{error.format_message()} (see `{command} --help`)") from None
        except (KeyboardInterrupt, click.Abort):
            raise Interrupted("interrupted") from None

    def list_commands(self, ctx: click.Context | None) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context | None, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return getattr(import_module(f"scripts.{COMMANDS[cmd_name]}"), cmd_name)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rackserve")
def main() -> None:
    """Serve large language models on your own racks: vLLM and Ray over SSH.

    \b
    Edit inventories/cluster.py, then
        rackserve plan llama-3.1-70b-instruct   whether it fits, split how, how fast
        rackserve deploy serve_llama            everything, from bare OS to an endpoint
        rackserve chat "Hello"                  ask it something
    """
