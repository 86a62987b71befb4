"""From the start of `serve` to the first token, where nothing was compiled yet and after a trial.

With torch.compile, which the lab's model does without elsewhere: PP=2 over two nodes, on nodes whose caches
are emptied first. vLLM's loader of what it compiles ahead of time (VLLM_USE_AOT_COMPILE) fails in its CPU
build, which compiles by inductor alone; inductor's own cache is what a trial fills here.
"""

from __future__ import annotations

import re

import click

from tests.bench.report import report, seconds
from tests.lab import Lab
from tests.lab.node import Node
from tests.lab.testing import pyinfra

COMPILED = {
    "vllm_args": {"compilation-config": {"mode": 3, "backend": "inductor"}},
    "vllm_env": {"VLLM_USE_AOT_COMPILE": "0"},
}


@click.command()
@click.option("--times", default=1, show_default=True)
def main(times: int) -> None:
    lab = Lab()
    lab.up(len(lab.nodes()) or 2)
    nodes = lab.nodes()
    for deploy in ("provision", "stage_weights", "teardown"):
        _must(deploy)
    rows = []
    for _ in range(times):
        row = {}
        for after in ("nothing", "a trial"):
            for node in nodes:
                node.sudo("find /var/cache/rackserve -mindepth 1 -delete")
            if after == "a trial":
                row["trial, s"] = seconds(lambda: _must("trial"))
            row[f"serve after {after}, s"] = seconds(lambda: _must("serve"))
            row[f"of it vLLM's engine, s, after {after}"] = _engine(nodes[0])
            _must("teardown")
        rows.append(row)
    report("trial", rows)


def _must(deploy: str) -> None:
    outcome = pyinfra(deploy, **COMPILED)
    if outcome.code:
        raise SystemExit(outcome.said)


def _engine(node: Node) -> float:
    """Seconds that vLLM says it took from loaded weights to ready, when it last started."""
    log = node.sudo("journalctl -u rackserve-replica-0-vllm -o cat --no-pager")
    return float(re.findall(r"init engine .* took ([\d.]+) s", log)[-1])


if __name__ == "__main__":
    main()
