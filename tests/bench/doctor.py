"""What the doctor costs beside one plain ssh to each host, and a provision that changes nothing beside it.

Provisions a lab of 8 nodes; `rackserve doctor` runs over all of them.
"""

from __future__ import annotations

import subprocess

import click

from tests.bench.apply import apply, plain_ssh
from tests.bench.report import median, report
from tests.lab import Lab
from tests.lab.node import Node
from tests.lab.testing import BIN, REPOSITORY

NODES, TIMES = 8, 9


@click.command()
@click.option("--times", default=TIMES, show_default=True)
def main(times: int) -> None:
    lab = Lab()
    lab.up(len(lab.nodes()) or NODES)
    hosts = lab.nodes()
    apply(hosts)
    if changed := [line for line in apply(hosts).splitlines() if "] Success" in line]:
        raise SystemExit(f"a second provision changed something: {changed}")
    report("doctor", [_row(hosts, times)])


def _row(hosts: list[Node], times: int) -> dict[str, object]:
    doctor(hosts)
    ours, plain = median(lambda: doctor(hosts), times), median(lambda: plain_ssh(hosts), times)
    again = median(lambda: apply(hosts), times)
    return {
        "hosts": len(hosts), "doctor, s": ours, "plain ssh, s": plain, "ratio": ours / plain,
        "provision again, s": again, "to the doctor": again / ours,
    }  # fmt: skip


def doctor(hosts: list[Node]) -> None:
    """Exit code 1 is what it found."""
    done = subprocess.run(
        [BIN / "rackserve", "doctor", "-i", "lab", "--json"], cwd=REPOSITORY, capture_output=True
    )
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(done.stderr.decode())


if __name__ == "__main__":
    main()
