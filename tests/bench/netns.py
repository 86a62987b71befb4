"""Machines for a benchmark: network namespaces on one bridge, each behind a link of a given rate.

Nothing of it touches this machine's own network: the bridge is in a namespace, too. It is
removed however the benchmark ends, and what a killed one left goes before the next begins.
"""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lab.shell import LabError, kill, run

PREFIX = "rackserve-bench-"
SWITCH = f"{PREFIX}switch"
LOCK = Path("/run/rackserve-bench.lock")
MOST = 16


class Network:
    """Nodes 0 and on; `mbit` is each one's rate both ways, None is unlimited."""

    def __init__(self, count: int, mbit: float | None = None) -> None:
        if count > MOST:
            raise LabError(f"{count} namespaces; the most is {MOST}")
        self.count, self.mbit = count, mbit
        self._started: list[subprocess.Popen] = []

    def up(self) -> None:
        run("ip", "netns", "add", SWITCH)
        run("ip", "-n", SWITCH, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", SWITCH, "link", "set", "bridge", "up")
        for number in range(self.count):
            here, port = f"{PREFIX}{number}", f"port{number}"
            run("ip", "netns", "add", here)
            run(
                "ip", "-n", here, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", SWITCH
            )
            run("ip", "-n", SWITCH, "link", "set", port, "master", "bridge", "up")
            run("ip", "-n", here, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                run("ip", "-n", here, "link", "set", link, "up")
            if self.mbit:
                self._shape(here, "eth0")
                self._shape(SWITCH, port)

    def _shape(self, namespace: str, link: str) -> None:
        """What leaves by a link. As the lab's; much smaller queues lose what many send to one."""
        shape = ("tbf", "rate", f"{self.mbit}mbit", "burst", "256kb", "latency", "100ms")
        run("tc", "-n", namespace, "qdisc", "add", "dev", link, "root", *shape)

    def address(self, number: int) -> str:
        return f"10.0.0.{number + 1}"

    def start(self, number: int, *words: object, **options: Any) -> subprocess.Popen:
        """Start a program on a node; it is ended with the network at the latest."""
        command = ["ip", "netns", "exec", f"{PREFIX}{number}", *map(str, words)]  # execs: the pid is its own
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **options}
        self._started.append(started := subprocess.Popen(command, **options))
        return started

    def listens(self, number: int, port: int) -> bool:
        return bool(run("ip", "netns", "exec", f"{PREFIX}{number}", "ss", "-Hltn", f"sport = :{port}"))

    def sent(self, number: int) -> int:
        """Bytes that went out by a node's link, headers and all."""
        link = json.loads(run("ip", "-n", f"{PREFIX}{number}", "-s", "-j", "link", "show", "eth0"))[0]
        return int(link["stats64"]["tx"]["bytes"])

    def end(self) -> None:
        """End what was started."""
        for process in self._started:
            process.kill()
        for process in self._started:
            process.wait()
        self._started.clear()


@contextmanager
def network(count: int, mbit: float | None = None) -> Iterator[Network]:
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError("another benchmark has the network namespaces; wait for it") from None
        _remove()
        made = Network(count, mbit)
        before = signal.signal(signal.SIGTERM, _interrupted)
        try:
            made.up()
            yield made
        finally:
            again = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C leaves nothing either
            made.end()
            _remove()
            signal.signal(signal.SIGINT, again)
            signal.signal(signal.SIGTERM, before)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _remove() -> None:
    for line in run("ip", "netns", "list").splitlines():
        if (name := line.split()[0]).startswith(PREFIX):
            kill(lambda name=name: map(int, run("ip", "netns", "pids", name).split()), name)
            run("ip", "netns", "delete", name)
