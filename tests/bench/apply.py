"""What a run that changes nothing costs, beside one plain ssh to each host.

Provisions a lab of 8 nodes, then runs `provision` again over 1, 3 and 8 of them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

import click

from tests.bench.report import median, report
from tests.lab import Lab
from tests.lab.node import Node
from tests.lab.testing import BIN, REPOSITORY, executions

TIMES = 15


@click.command()
@click.option("--nodes", default="1,3,8", show_default=True, help="How many hosts, each a row.")
def main(nodes: str) -> None:
    counts = [int(count) for count in nodes.split(",")]
    lab = Lab()
    lab.up(len(lab.nodes()) or max(counts))
    apply(lab.nodes())
    report("apply", [_row(lab.nodes()[:count]) for count in counts])


def _row(hosts: Sequence[Node]) -> dict[str, object]:
    apply(hosts)  # the questions to ask ahead are those of a run over the same hosts
    ours, plain = median(lambda: apply(hosts), TIMES), median(lambda: plain_ssh(hosts), TIMES)
    return {
        "hosts": len(hosts),
        "executions per host": executions(apply(hosts, "--debug")) / len(hosts),
        "provision again, s": ours,
        "plain ssh, s": plain,
        "ratio": ours / plain,
    }


def apply(hosts: Sequence[Node], *options: str, deploy: str = "provision") -> str:
    limits = [word for host in hosts for word in ("--limit", host.name)]
    command = [BIN / "pyinfra", "inventories/lab.py", f"deploys/{deploy}.py", "-y", *limits, *options]
    # As at a user's desk: what Python compiles is kept, also where a container's image says not to.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stderr


def plain_ssh(hosts: Sequence[Node]) -> None:
    """One cold connection to each host at once, and one command in it."""
    started = [subprocess.Popen(host.ssh("true"), stdin=subprocess.DEVNULL) for host in hosts]
    if any(ssh.wait() for ssh in started):
        raise SystemExit("plain ssh failed")


if __name__ == "__main__":
    main()
