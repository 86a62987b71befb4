"""Load through a gateway and an eye on it, and what came of every request, and where it went."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.rollout.cases import Row
from tests.bench.rollout.layouts import MODEL, PORT, Served
from tests.bench.rollout.watch import Watch
from tests.lab.node import Node
from tests.load.driver import LONG, Load, in_flight_at, summary, troubled
from tests.load.gateway_log import servers

USERS = 24  # for each replica: as many requests at a time
LIMIT = 2400  # seconds
SHOWN = 20  # requests that went wrong, in the JSON
UNIT = "rackserve-gateway-haproxy"


class Under:
    """With it, all users ask from the beginning. At its end all have been answered."""

    def __init__(
        self, served: Served, folder: Path, *,
        gateway: Node, users: int, keep: bool = True, long: Sequence[int] = LONG,
    ) -> None:  # fmt: skip
        self.served, self.gateway, self.began = served, gateway, time.time()
        self.watch = Watch(gateway, folder / "watch.jsonl", LIMIT)
        self.load = Load(
            folder, f"http://{gateway.address}:{PORT}", served.key, model=MODEL, expected=served.expected,
            users=users, limit=LIMIT, keep=keep, long=long,
        )  # fmt: skip

    def __enter__(self) -> Under:
        self.watch.__enter__()
        try:
            self.load.__enter__()
            self.load.wait(lambda: self.load.in_flight >= 0.9 * self.load.users, 60, "all users to ask")
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.load.__exit__(kind)
        finally:
            self.watch.__exit__()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return self.load.lines()

    def log(self) -> str:
        """HAProxy's, of requests that ended since the load began."""
        words = f"journalctl --unit={UNIT} --output=cat --no-pager --since=@{int(self.began)}"
        return self.gateway.sudo(words)

    def located(self) -> list[dict[str, Any]]:
        """What did not go well, with the server that had it; "" where nobody knows."""
        bad = troubled(self.lines)
        return [{**line, "server": name} for line, name in zip(bad, servers(bad, self.log()), strict=True)]


def counts(lines: Sequence[dict[str, Any]]) -> Row:
    return {name: value for name, value in summary(lines).items() if name not in ("ok", "tokens")}


def lost(lines: Sequence[dict[str, Any]]) -> list[str]:
    """What must not be in a rollout, in words."""
    seen = summary(lines)
    return [f"{seen[name]} {name}" for name in ("failed", "truncated", "wrong") if seen[name]]


def judged(problems: Sequence[str], **row: Any) -> Row:
    return {**row, "passed": not problems, "why": "; ".join(problems)}


def at_drains(under: Under) -> list[Row]:
    """Of each drain: when, of whom, how many requests were in flight, and how many of them at the replica."""
    lines = under.lines
    return [
        {"at": at, "replica": name, "in flight": in_flight_at(lines, at), "its own": own}
        for at, name, own in under.watch.drains()
    ]
