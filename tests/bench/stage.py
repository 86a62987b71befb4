"""What bringing a model's weights to all nodes costs.

fanout    ours and other ways, every link shaped both ways, beside what one link needs for the bytes
unshaped  the same without a limit: what the processor allows
hash      making a seed's manifest, beside what the disk reads and what the processor hashes
sparse    one file of 20 GB, of holes, from a hub to one node
nothing   `stage_weights` where everything is in place, beside one plain ssh (in the lab)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from pieces import make

from tests.bench.apply import apply, plain_ssh
from tests.bench.fanout import FLAT, WAYS, measure, snapshot
from tests.bench.netns import network
from tests.bench.onnode import sha256
from tests.bench.report import median, report, seconds
from tests.lab import Lab
from tests.lab.hub_testing import running_hub
from tests.lab.shell import wait_until
from tests.staging import EXPECTED, Node

RECEIVERS = (2, 4, 8)
#: Mbit/s that all receivers take together: so few that the machine's processor is no limit.
DELIVERED = 600
SIZE = 1 << 30  # bytes
SPARSE = 20 * 10**9  # bytes
HASHED = 16, 128 << 20  # files, bytes of each
TIMES = 15


@click.command()
@click.option("--part", envvar="PART", type=click.Choice(["fanout", "unshaped", "hash", "sparse", "nothing"]))
@click.option("--times", default=2, show_default=True, help="Runs of ours, of which the median counts.")
@click.option("--memory", default="/dev/shm", show_default=True, help="Where nodes' folders are made.")
@click.option("--disk", default="/var/tmp", show_default=True, help="What `hash` and `sparse` use.")
def main(part: str | None, times: int, memory: str, disk: str) -> None:
    if shutil.which("rsync") is None:
        raise SystemExit("rsync is missing: apt-get install rsync")
    parts = {
        "fanout": lambda: _fanout(memory, times),
        "unshaped": lambda: _unshaped(memory, times),
        "hash": lambda: _hash(disk),
        "sparse": lambda: _sparse(disk),
        "nothing": _nothing,
    }
    for name in [part] if part else parts:
        click.echo(f"\n{name}")
        report(f"stage-{name}", list(parts[name]()))


def _fanout(memory: str, times: int) -> Iterator[dict[str, object]]:
    for way in WAYS:
        for count in RECEIVERS:
            size, runs = (SIZE, times if way == "ours" else 1) if way in FLAT else (SIZE // 8 // count, 1)
            yield {"way": way, "N": count, **_measured(memory, way, count, runs, size, DELIVERED / count)}


def _unshaped(memory: str, times: int) -> Iterator[dict[str, object]]:
    for way in WAYS:
        for count in (1, *RECEIVERS[:2]):
            yield {"way": way, "N": count, **_measured(memory, way, count, times, SIZE)}


def _measured(
    memory: str, way: str, count: int, times: int, size: int, mbit: float | None = None
) -> dict[str, object]:
    """Medians; `worst` is the longest run."""
    with tempfile.TemporaryDirectory(dir=memory) as folder, network(count + 1, mbit) as net:
        case = WAYS[way](net, Path(folder), snapshot(Path(folder), size))
        runs = [measure(case) for _ in range(times)]
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    whole = {"MB": round(size / 1e6), "runs": times, "s": middle.pop("seconds")}
    if mbit is None:
        return {**whole, "GB/s in all": size * count / whole["s"] / 1e9, **middle}
    bound, worst = size * 8 / mbit / 1e6, max(run["seconds"] for run in runs)
    ratios = {"ratio": whole["s"] / bound, "worst": worst / bound}
    return {"Mbit/s": round(mbit), **whole, "link alone, s": bound, **ratios, **middle}


def _hash(disk: str) -> Iterator[dict[str, object]]:
    files, size = HASHED
    with tempfile.TemporaryDirectory(dir=disk) as folder:
        entries = []
        for number in range(files):
            path = Path(folder) / f"model-{number}.safetensors"
            with path.open("wb") as file:
                for _ in range(size >> 20):
                    file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
            entries.append((path.name, size, sha256(path)))
        paths = [Path(folder) / name for name, _, _ in entries]

        def rate(run: Callable[[], object]) -> float:
            return files * size / seconds(run) / 1e9

        def uncached(run: Callable[[], object]) -> float:
            for path in paths:
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return rate(run)

        def dd() -> None:
            for path in paths:
                command = ["dd", f"if={path}", "of=/dev/null", "bs=4M", "iflag=direct", "status=none"]
                subprocess.run(command, check=True)

        def made() -> None:
            make(folder, entries, "commit")

        yield {"what": "dd, direct, one file after another", "GB/s": rate(dd)}
        yield {"what": "make(), nothing cached", "GB/s": uncached(made)}
        yield {"what": "make(), all cached", "GB/s": rate(made)}
        yield {"what": "sha256 of as much memory, all cores", "GB/s": rate(lambda: _sha256(files * size))}


def _sha256(size: int) -> None:
    cores, block = os.cpu_count() or 1, bytes(1 << 20)

    def hash_share(_: int) -> None:
        digest = hashlib.sha256()
        for _ in range(size // cores // len(block)):
            digest.update(block)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(hash_share, range(cores)))


def _sparse(disk: str) -> Iterator[dict[str, object]]:
    with tempfile.TemporaryDirectory(dir=disk) as folder, running_hub(Path(folder)) as hub:
        model = hub.root / "lab/sparse"
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps(EXPECTED))
        with (model / "model.safetensors").open("wb") as file:
            file.truncate(SPARSE)
        node = Node(hub, Path(folder) / "node").at("lab/sparse")
        # The hub hashes it when it is asked first, for longer than its client waits.
        resolve = node.command("resolve", repository="lab/sparse", commit="unknown")
        wait_until(lambda: not subprocess.run(resolve, capture_output=True).returncode, 300, "the hub's hash")
        command = node.command("fetch", repository="lab/sparse")
        took = seconds(lambda: subprocess.run(command, input="", text=True, check=True))
        row = {"GB": SPARSE / 1e9, "s": took, "GB/s": SPARSE / took / 1e9}
        yield {**row, "problem": node.problem(repository="lab/sparse")}


def _nothing() -> Iterator[dict[str, object]]:
    lab = Lab()
    lab.up(len(lab.nodes()) or 3)
    hosts = lab.nodes()
    for deploy in ("provision", "stage_weights", "stage_weights"):
        apply(hosts, deploy=deploy)
    ours = median(lambda: apply(hosts, deploy="stage_weights"), TIMES)
    plain = median(lambda: plain_ssh(hosts), TIMES)
    yield {"hosts": len(hosts), "stage_weights again, s": ours, "plain ssh, s": plain, "ratio": ours / plain}


if __name__ == "__main__":
    main()
