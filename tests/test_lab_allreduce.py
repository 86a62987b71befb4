"""The doctor's all-reduce for real: processes over Gloo on loopback, on vLLM's Python. Needs no node.

That is the lab's environment, which is made and cached where it is not there yet.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from roles.doctor.facts import program
from roles.doctor.rates import busbw
from tests.lab import software
from tests.lab.paths import ENVIRONMENT

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module", autouse=True)
def environment() -> None:
    software.prepare(print)


@contextmanager
def node(folder: Path, port: int, rank: int, **asked: Any) -> Iterator[Path]:
    """One node's ranks, as systemd runs them; where the answer will be."""
    folder.mkdir()
    asked = {
        "address": "127.0.0.1", "port": port, "rank": rank, "nodes": 2, "gpus": 1, "backend": "gloo",
        "environment": {"GLOO_SOCKET_IFNAME": "lo"}, "meeting": 60, "seconds": 5, "most": 2**24, **asked,
    }  # fmt: skip
    process = subprocess.Popen(
        [ENVIRONMENT / "bin/python", "-I", "-", json.dumps(asked)], stdin=subprocess.PIPE,
        env={**os.environ, "RUNTIME_DIRECTORY": str(folder)},
    )  # fmt: skip
    assert process.stdin
    process.stdin.write(program("allreduce", ("answering",)).encode())
    process.stdin.close()
    try:
        yield folder / "answer"
    finally:
        process.terminate()
        process.wait()


def answer(path: Path) -> dict[str, Any]:
    until = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    return json.loads(path.read_text())


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.parametrize(("nodes", "gpus"), [(2, 1), (1, 2)])
def test_all_ranks_measure_the_same_sizes_and_have_figures(tmp_path: Path, nodes: int, gpus: int) -> None:
    port = free_port()
    with ExitStack() as stack:
        paths = [
            stack.enter_context(node(tmp_path / str(rank), port, rank, nodes=nodes, gpus=gpus))
            for rank in range(nodes)
        ]
        found = [answer(path) for path in paths]
    assert all("error" not in one for one in found), found
    sizes = [[size for size, _ in one["rows"]] for one in found]
    assert sizes == [sizes[0]] * nodes and sizes[0][:3] == [2**10, 2**16, 2**20] and max(sizes[0]) <= 2**24
    assert all(1e4 < busbw(size, seconds, 2) < 1e11 for size, seconds in found[0]["rows"])
    assert found[0]["nccl"] == []


def test_a_rank_that_does_not_come_is_an_error_that_names_who_waited(tmp_path: Path) -> None:
    with node(tmp_path / "0", free_port(), 0, meeting=3) as path:
        found = answer(path)
    assert found["error"].startswith("rank 0: ") and "rows" not in found
