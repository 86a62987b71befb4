"""Runs on a node, as who serves, on vLLM's Python: its ranks of an all-reduce over all of a replica's.

    allreduce.py '{"address": "198.51.100.11", "port": 29501, "rank": 0, "nodes": 2, "gpus": 8,
                   "backend": "nccl", "environment": {...}, "meeting": 60, "seconds": 20,
                   "most": 1073741824}'

Only torch and what it brings is needed. Each rank is a process, as in vLLM.
"""

import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from datetime import timedelta

from answering import answer, attempted

SIZES = (2**10, 2**16, 2**20, 2**24, 2**28, 2**30)
BULK = 2**20  # beyond it time grows with size
TIMES = 20  # of each size, as nccl-tests
EACH = 1.0  # seconds for those
LINES = 400  # of NCCL's log

#: What of the log says which way data goes.
TELLING = ("Using network", "via NET/", "NET/IB :", "NET/Socket :", "NCCL version")


def run(asked):
    """What the first rank here measured, and what NCCL said on all of them."""
    os.environ.update(asked["environment"])
    pool = ProcessPoolExecutor(asked["gpus"], mp_context=multiprocessing.get_context("fork"))
    ranks = [pool.submit(rank, asked, local) for local in range(asked["gpus"])]
    done, _ = wait(ranks, return_when=FIRST_EXCEPTION)
    for one in done:
        if error := one.exception():
            number = asked["rank"] * asked["gpus"] + ranks.index(one)
            return {"error": f"rank {number}: {type(error).__name__}: {error}"[:500], "nccl": said()}
    return {"rows": ranks[0].result(), "nccl": said()}


def said():
    """The lines of all ranks' logs that tell, each once."""
    lines = {}
    for name in sorted(os.listdir(os.environ["RUNTIME_DIRECTORY"])):
        if name.startswith("nccl."):
            with open(f"{os.environ['RUNTIME_DIRECTORY']}/{name}", errors="replace") as file:
                lines.update((line.rstrip(), None) for line in file if any(map(line.__contains__, TELLING)))
    return list(lines)[:LINES]


def rank(asked, local):
    import torch
    import torch.distributed

    number, ranks = asked["rank"] * asked["gpus"] + local, asked["nodes"] * asked["gpus"]
    os.environ.update(
        NCCL_DEBUG="INFO", NCCL_DEBUG_SUBSYS="INIT,NET",
        NCCL_DEBUG_FILE=f"{os.environ['RUNTIME_DIRECTORY']}/nccl.{local}",
    )  # fmt: skip
    device = "cpu"
    if asked["backend"] == "nccl":
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    torch.distributed.init_process_group(
        asked["backend"], init_method=f"tcp://{asked['address']}:{asked['port']}",
        rank=number, world_size=ranks, timeout=timedelta(seconds=asked["meeting"]),
    )  # fmt: skip
    return Ranks(torch, device, ranks).measured(asked["seconds"], asked["most"])


class Ranks:
    """This rank among the others. All do the same: what they decide by, they agree on first."""

    def __init__(self, torch, device, count):
        self.torch, self.device, self.count = torch, device, count

    def measured(self, limit, most):
        """[bytes, seconds of one all-reduce] of each size for which there is time."""
        rows, until = [], time.monotonic() + limit
        for size in SIZES:
            left = -self.agreed(time.monotonic() - until)
            if size > most or (size > BULK and 3 * rows[-1][1] * size / rows[-1][0] > left):
                break
            rows.append([size, self.one(size)])
        return rows

    def one(self, size):
        buffer = self.torch.ones(size // 4, device=self.device)
        self.reduced(buffer, 1)
        if buffer[0].item() != self.count or buffer[-1].item() != self.count:
            raise ArithmeticError(f"{size} bytes: the sum of {self.count} ones is {buffer[0].item():g}")
        once = self.agreed(self.reduced(buffer, 1))
        times = max(1, min(TIMES, int(EACH / once)))
        return self.agreed(self.reduced(buffer, times)) / times

    def reduced(self, buffer, times):
        """The seconds that took."""
        self.finished()
        began = time.monotonic()
        for _ in range(times):
            self.torch.distributed.all_reduce(buffer)
        self.finished()
        return time.monotonic() - began

    def finished(self):
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def agreed(self, seconds):
        """The most of all ranks."""
        told = self.torch.tensor([seconds], dtype=self.torch.float64, device=self.device)
        self.torch.distributed.all_reduce(told, op=self.torch.distributed.ReduceOp.MAX)
        return told.item()


if __name__ == "__main__":
    answer(attempted(run, json.loads(sys.argv[1])))
