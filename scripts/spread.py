"""`rackserve spread`: folders of the head on every host."""

from __future__ import annotations

import os

import click

from models.errors import BadInput
from scripts import runner
from scripts.deploy import inventory_option
from scripts.refusal import Refused


@click.command()
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True)
@inventory_option
@click.option("--dry", is_flag=True, help="Show what would change, and change nothing.")
def spread(folders: tuple[str, ...], inventory: str, dry: bool) -> None:
    """Put each FOLDER of the head on every host, whole and proven, in place of what is there.

    For a wheelhouse, an environment made once, or vLLM's compile cache. They travel as weights do: the
    head sends once, and the hosts give it to each other. A second run changes nothing.
    """
    from roles.weights import Payload

    named = [os.path.normpath(folder) for folder in folders]
    for folder in named:
        if "," in folder:
            raise Refused(f"{folder}: a folder to spread has no comma in its name")
        try:
            Payload(folder)
        except BadInput as error:
            raise Refused(str(error)) from None
    words = [runner.inventory_path(inventory), "deploys/spread.py", "--dry" if dry else "-y"]
    runner.run([*words, "--data", f"_folders={','.join(named)}", "--fail-percent", "0"])
