"""`rackserve`: the same playbooks and the lab, for people. Owns no logic.

Exit codes: 0 done, 1 failed, 2 bad input, 3 a plan that does not fit.
"""

from __future__ import annotations

import click

from scripts.chat import chat
from scripts.demo import demo
from scripts.deploy import deploy, unlock
from scripts.lab import lab
from scripts.plan import models, plan
from scripts.status import logs, status


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rackserve")
def main() -> None:
    """Serve large language models on your own racks: vLLM and Ray over SSH.

    \b
    Edit inventories/cluster.py, then
        rackserve plan llama-3.1-70b-instruct   whether it fits, split how, how fast
        rackserve deploy serve_llama            everything, from bare OS to an endpoint
        rackserve chat "Hello"                  ask it something
    """


for command in (plan, models, deploy, unlock, status, logs, chat, lab, demo):
    main.add_command(command)
