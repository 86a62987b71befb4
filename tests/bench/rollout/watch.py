"""A gateway looked at five times a second, from its own host: who is in, who is up, who answers how many."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.lab.node import Node
from tests.lab.shell import wait_until

#: Runs on the gateway's host; a broken pipe ends it.
_LOOK = """
import importlib.util, json, sys, time
spec = importlib.util.spec_from_file_location("gateway", "/opt/rackserve/libexec/gateway.py")
gateway = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gateway)
until = time.time() + float(sys.argv[1])
while time.time() < until:
    try:
        servers = {one["name"]: one for one in gateway.servers(gateway.RUN)}
        print(json.dumps({"at": time.time(), "servers": servers}), flush=True)
    except (OSError, LookupError, ValueError):
        pass  # it is being loaded anew
    time.sleep(0.2)
"""

Look = tuple[float, dict[str, Any]]


class Watch:
    """With it, looks are written to `file`; none after `limit` seconds."""

    def __init__(self, gateway: Node, file: Path, limit: int) -> None:
        self.gateway, self.file, self.limit = gateway, file, limit
        self._looks: list[Look] = []
        self._read = 0

    def __enter__(self) -> Watch:
        words = self.gateway.ssh("sudo", "python3", "-u", "-", str(self.limit))
        with self.file.open("w") as out:
            self.ssh = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=out, text=True)
        assert self.ssh.stdin
        self.ssh.stdin.write(_LOOK)
        self.ssh.stdin.close()
        wait_until(lambda: bool(self.looks()), 20, f"the gateway on {self.gateway.name}")
        return self

    def __exit__(self, *_: object) -> None:
        self.ssh.kill()
        self.ssh.wait()

    def looks(self) -> list[Look]:
        """All so far; a last line that is half written comes with the next."""
        with self.file.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole + end)
        self._looks += [(line["at"], line["servers"]) for line in map(json.loads, whole.splitlines())]
        return self._looks

    def drains(self) -> Iterator[tuple[float, str, int]]:
        """When each replica was taken out, and how many requests it answered then."""
        for (_, before), (at, now) in pairwise(self.looks()):
            for name in before.keys() & now.keys():
                if before[name]["in"] and not now[name]["in"]:
                    yield at, name, max(before[name]["sessions"], now[name]["sessions"])

    def left(self, name: str, since: float) -> float | None:
        """When it was no longer sent requests."""
        return next((at for at, now in self.looks() if at >= since and not is_up(now, name)), None)

    def back(self, name: str, since: float) -> float | None:
        """When it was sent requests again and ever since; `since` when it never left, None when it is out."""
        later = [(at, is_up(now, name)) for at, now in self.looks() if at >= since]
        if not later or not later[-1][1]:
            return None
        ups = [at for (_, before), (at, up) in pairwise(later) if up and not before]
        return ups[-1] if ups else since

    def still(self, name: str, since: float, seconds: float) -> bool:
        """Whether it is up now, and has been for so long."""
        back = self.back(name, since)
        return back is not None and self.looks()[-1][0] - back >= seconds


def is_up(servers: dict[str, Any], name: str) -> bool:
    return name in servers and servers[name]["status"].startswith("UP")
