"""Starts locust, watches it, ends it, and says what came of every request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.lab.shell import LabError, wait_until
from tests.load.judge import OK, OUTCOMES

REPOSITORY = Path(__file__).parents[2]
LOCUSTFILE = Path(__file__).with_name("locustfile.py")

SHORT, LONG = (4, 64), (1400, 1900)  # tokens, from and to
FINISH = 600  # seconds that requests may still run when the load is to end


class Load:
    """With it, `users` are asking, `pause` seconds after each answer; at its end each gets its last one.

    `expected` is a file of expected.py's; `inside` are the words that put a command elsewhere. HAProxy
    (2.6) does not log who left a request without an answer where a client keeps its connection: without
    `keep` none does. Nothing lasts longer than `limit` seconds and FINISH.
    """

    def __init__(
        self, folder: Path, url: str, key: str, *, model: str, expected: Path, users: int,
        limit: int = 1800, pause: float = 0, keep: bool = True,
        short: Sequence[int] = SHORT, long: Sequence[int] = LONG,
        locustfile: Path = LOCUSTFILE, inside: Sequence[str] = (), **plan: Any,
    ) -> None:  # fmt: skip
        self.folder, self.url, self.key, self.users, self.limit = folder, url, key, users, limit
        self.locustfile, self.inside = locustfile, inside
        self.plan = {
            "model": model, "expected": str(expected), "pause": pause, "keep": keep,
            "short": short, "long": long, **plan,
        }  # fmt: skip

    def __enter__(self) -> Load:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("requests.jsonl", "status.json"):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "plan.json").write_text(json.dumps(self.plan))
        environment = {**os.environ, "OPENAI_API_KEY": self.key, "RACKSERVE_LOAD": str(self.folder)}
        with (self.folder / "locust.log").open("w") as log:
            self.process = subprocess.Popen(
                self._command(), env=environment, cwd=REPOSITORY,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self.wait(lambda: self.in_flight or self.ended, 60, "the first request")
        except BaseException:
            self.process.kill()
            raise
        return self

    def _command(self) -> list[str]:
        words = {
            "--locustfile": self.locustfile, "--host": self.url, "--users": self.users,
            "--spawn-rate": self.users, "--run-time": self.limit, "--stop-timeout": FINISH,
            "--exit-code-on-error": 0, "--loglevel": "WARNING",
        }  # fmt: skip
        options = [str(word) for pair in words.items() for word in pair]
        return [*self.inside, sys.executable, "-m", "locust", "--headless", "--only-summary", *options]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self.process.kill()
        self.stop()

    def stop(self) -> None:
        """No new request; returns when those that run have ended."""
        self.process.terminate()
        try:
            self.process.wait(FINISH + 60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait(self, ready: Any, seconds: float, what: str) -> None:
        """As wait_until, and LabError at once when the load has ended by itself."""

        def looked() -> bool:
            if self.process.poll() is not None:
                said = (self.folder / "locust.log").read_text()[-500:]
                raise LabError(f"the load ended ({self.process.returncode}) before {what}: {said}")
            return bool(ready())

        wait_until(looked, seconds, what)

    @property
    def in_flight(self) -> int:
        """Requests on the wire, a moment ago."""
        return self._status("in_flight")

    @property
    def ended(self) -> int:
        return self._status("ended")

    def _status(self, name: str) -> int:
        with suppress(FileNotFoundError):
            return json.loads((self.folder / "status.json").read_text())[name]
        return 0

    def lines(self) -> list[dict[str, Any]]:
        """Of the requests that have ended; the last line may be half written while it runs."""
        whole = (self.folder / "requests.jsonl").read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def ended_since(self, moment: float) -> int:
        return sum(line.get("end", 0) > moment for line in self.lines())


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many requests, of which outcome, how many of them were sent again, and the longest in seconds."""
    outcomes = Counter(line["outcome"] for line in lines)
    return {
        "requests": len(lines),
        **{outcome: outcomes[outcome] for outcome in OUTCOMES},
        "retried": sum(line.get("retries", 0) > 0 for line in lines),
        "tokens": sum(line.get("tokens", 0) for line in lines),
        "longest, s": max((took(line) for line in lines), default=0.0),
    }


def troubled(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are not ok, with the seconds each took."""
    return [{**line, "took": took(line)} for line in lines if line["outcome"] != OK]


def took(line: dict[str, Any]) -> float:
    return round(line.get("end", 0) - line.get("start", 0), 3)


def in_flight_at(lines: Sequence[dict[str, Any]], moment: float) -> int:
    """How many were on the wire then; of one that was sent again, its last time counts."""
    return sum(line.get("sent", moment) < moment <= line.get("end", 0) for line in lines)
