"""From the start of `serve` to the first token, beside the same cluster started by hand.

By hand is what the recipes do: plain ssh, `ray start` on each node, `vllm serve` on the
first, and asking until it answers. Both start from nodes that serve nothing, with the
weights in place and the same warm compile caches: one replica, TP=3 over three nodes.
"""

from __future__ import annotations

import shlex
import subprocess
import time

import click
import requests

from tests.bench.report import report, seconds
from tests.lab import Lab
from tests.lab.node import Node
from tests.lab.shell import wait_until
from tests.lab.testing import pyinfra

SPLIT = {"tensor_parallel": 3, "pipeline_parallel": 1}
HEAD_PORT = 6379


@click.command()
@click.option("--times", default=3, show_default=True)
def main(times: int) -> None:
    lab = Lab()
    lab.up(len(lab.nodes()) or 3)
    nodes = lab.nodes()[:3]
    for deploy in ("provision", "stage_weights", "serve"):
        _must(deploy)
    by_hand = ByHand(nodes)
    _must("teardown")
    rows = []
    for _ in range(times):
        ours = seconds(lambda: _must("serve"))
        _must("teardown")
        hand = seconds(by_hand.start)
        by_hand.stop()
        rows.append({"serve, s": ours, "by hand, s": hand, "ratio": ours / hand})
    by_hand.clean()
    report("serve", rows)


def _must(deploy: str) -> None:
    outcome = pyinfra(deploy, **SPLIT)
    if outcome.code:
        raise SystemExit(outcome.said)


class ByHand:
    """The same processes with the same arguments and environment, without Rackserve."""

    def __init__(self, nodes: list[Node]) -> None:
        """Read them off the units while they run."""
        self.nodes = nodes
        self.ray = {node: self._exec(node, "ray") for node in nodes}
        self.vllm = self._exec(nodes[0], "vllm")
        self.key = nodes[0].sudo("cat /etc/rackserve/replica-0/vllm.env").strip().split("=", 1)[1]
        for node in nodes:
            node.sudo("rm -rf /etc/rackserve/by-hand; cp -a /etc/rackserve/replica-0 /etc/rackserve/by-hand")

    def _exec(self, node: Node, part: str) -> str:
        """A unit's environment and command, as one shell line for its user."""
        unit = node.sudo(f"cat /etc/systemd/system/rackserve-replica-0-{part}.service")
        lines = dict.fromkeys(unit.replace("/etc/rackserve/replica-0", "/etc/rackserve/by-hand").splitlines())
        settings = [
            line.removeprefix("Environment=").strip('"') for line in lines if line[:12] == "Environment="
        ]
        command = next(line for line in lines if line[:10] == "ExecStart=").removeprefix("ExecStart=")
        return f"cd /var/lib/rackserve; env {shlex.join(settings)} {command}"

    def start(self) -> None:
        """Ray everywhere, vLLM on the first node, then ask until there is a token."""
        for node in self.nodes:
            self._background(node, self.ray[node])
        self._background(self.nodes[0], f"env VLLM_API_KEY={self.key} sh -c {shlex.quote(self.vllm)}")
        wait_until(self._token, 300, "a token from the cluster started by hand")

    def _background(self, node: Node, line: str) -> None:
        script = (
            f"ulimit -n 20000; nohup sudo -u rackserve sh -c {shlex.quote(line)} >/tmp/by-hand.log 2>&1 &"
        )
        command = f"sudo sh -c {shlex.quote(script)}"
        subprocess.run(node.ssh(command), check=True, stdin=subprocess.DEVNULL, capture_output=True)

    def _token(self) -> bool:
        body = {"model": "smollm2-135m-instruct", "prompt": "1 2 3", "max_tokens": 1}
        url = f"http://{self.nodes[0].address}:8000/v1/completions"
        headers = {"Authorization": f"Bearer {self.key}"}
        try:
            return requests.post(url, json=body, headers=headers, timeout=60).ok
        except requests.ConnectionError:
            return False

    def stop(self) -> None:
        for node in self.nodes:
            subprocess.run(node.ssh("sudo pkill -9 -u rackserve; sudo rm -rf /dev/shm/*"), check=False)
        time.sleep(2)

    def clean(self) -> None:
        for node in self.nodes:
            node.sudo("rm -rf /etc/rackserve/by-hand /tmp/by-hand.log")


if __name__ == "__main__":
    main()
