"""Spreading a snapshot to more nodes than there are machines here: a simulation.

Which piece goes to whom when is decided by roles/weights/node/dealing.py itself; simulated are links,
connections and time. `make bench-stage PART=fanout` before, and its measurements stand beside.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import click
from pieces import Manifest

from tests.bench.report import FOLDER, report
from tests.bench.simulated import Assumptions, Swarm, Trouble

FRAMING = 1448 / 1514  # of what a link of Ethernet carries, what TCP's users get


@click.command()
@click.option(
    "--nodes", default="100", show_default=True, help="How many receive, each a row; 1000 takes 15 min."
)
@click.option("--gb", default=140, show_default=True, help="Of the snapshot.")
@click.option("--gbit", default=10.0, show_default=True, help="Each node's link, both ways.")
@click.option("--trouble-at", default=100, show_default=True, help="Nodes of the rows with one in trouble.")
def main(nodes: str, gb: int, gbit: float, trouble_at: int) -> None:
    click.echo("beside what was measured")
    report("simulate-measured", list(_measured()) or [{"nothing": "run make bench-stage PART=fanout"}])
    click.echo(f"\n{gb} GB over links of {gbit:g} Gbit/s")
    counts = [int(count) for count in nodes.split(",")]
    report("simulate", list(_large(counts, int(gb * 1e9), gbit * 1e9 / 8, trouble_at)))
    click.echo(f"\n{Assumptions()}")


def _measured() -> Iterator[dict[str, Any]]:
    file = FOLDER / "stage-fanout.json"
    for row in json.loads(file.read_text())["rows"] if file.exists() else ():
        if row["way"] == "ours":
            rate, size = row["Mbit/s"] * 1e6 / 8, row["MB"] * 1e6
            seconds = simulated(row["N"], int(size), rate).seconds
            ratio = seconds / (size / rate)
            yield {"N": row["N"], "measured ratio": row["ratio"], "simulated ratio": ratio,
                   "difference, %": 100 * (ratio / row["ratio"] - 1)}  # fmt: skip


def _large(counts: list[int], size: int, rate: float, trouble_at: int) -> Iterator[dict[str, Any]]:
    cases = [(count, None) for count in counts]
    half = size / rate / 2
    cases += [(trouble_at, Trouble(dies_at=half)), (trouble_at, Trouble(speed=0.5))]
    for count, trouble in cases:
        started = time.monotonic()
        swarm = simulated(count, size, rate, trouble)
        yield {
            "N": count, "what": str(trouble or "all well"), "pieces": len(swarm.manifest.pieces),
            "s": swarm.seconds, "ratio": swarm.seconds / (size / rate),
            "seed sent": swarm.nodes[0].sent / size, "came twice, %": 100 * swarm.wasted / size / count,
            "a node's connections": 2 * count,
            "their buffers, GB": count * swarm.manifest.piece_bytes / 1e9,
            "simulated in, s": time.monotonic() - started,
        }  # fmt: skip


def simulated(count: int, size: int, rate: float, trouble: Trouble | None = None) -> Swarm:
    how = Assumptions(poll=max(Assumptions.poll, count / 5000))  # oftener would take hours to simulate
    swarm = Swarm(Manifest([("weights", size, "0" * 64)], "commit"), count, rate * FRAMING, trouble, how)
    swarm.run()
    return swarm


if __name__ == "__main__":
    main()
