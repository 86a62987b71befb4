"""Locust's users: short and long answers, streamed and not, one after another.

The folder that RACKSERVE_LOAD names has a plan.json (see driver.py); into it go requests.jsonl, a line
for each request that ended, and status.json, how many are on the wire. The key is in OPENAI_API_KEY.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import gevent
from locust import User, events, task
from locust.env import Environment

from tests.load.client import Asked, Client
from tests.load.judge import FAILED, OK, judge

FOLDER = Path(os.environ["RACKSERVE_LOAD"])
PLAN = json.loads((FOLDER / "plan.json").read_text())
EXPECTED: dict[str, list[int]] = json.loads(Path(PLAN["expected"]).read_text())
STATUS = 0.2  # seconds between two of them


class Record:
    """All requests of this process."""

    def __init__(self) -> None:
        self.lines = (FOLDER / "requests.jsonl").open("a", buffering=1)
        self.in_flight = self.ended = 0

    def on_wire(self, change: int) -> None:
        self.in_flight += change

    def keep(self, line: dict[str, Any]) -> None:
        self.ended += 1
        self.lines.write(json.dumps(line) + "\n")

    def tell(self) -> None:
        new = FOLDER / "status.new"
        while True:
            new.write_text(json.dumps({"in_flight": self.in_flight, "ended": self.ended}))
            new.rename(FOLDER / "status.json")
            gevent.sleep(STATUS)


RECORD = Record()


@events.test_start.add_listener
def _tell(environment: Environment, **_: object) -> None:
    gevent.spawn(RECORD.tell)


class Asking(User):
    """Asks for a completion, waits for it, asks for the next."""

    abstract = True
    size, stream = "short", False

    def on_start(self) -> None:
        self.client = Client(self.host, os.environ["OPENAI_API_KEY"], RECORD.on_wire, PLAN["keep"])

    @task
    def completion(self) -> None:
        prompt, tokens = random.choice(list(EXPECTED)), random.randint(*PLAN[self.size])
        self.ask(self.client, f"{self.size}{'-stream' if self.stream else ''}", prompt, tokens)
        gevent.sleep(PLAN["pause"])  # not locust's wait_time: who is in it is ended also as he begins to ask

    def ask(self, client: Client, kind: str, prompt: str, tokens: int) -> None:
        body = {
            "model": PLAN["model"], "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "return_token_ids": True, "stream": self.stream,
        }  # fmt: skip
        start = time.time()
        try:
            asked = client.ask(body)
        except gevent.GreenletExit:
            why = "unfinished when the load was ended"
            RECORD.keep({"start": start, "end": time.time(), "kind": kind, "outcome": FAILED, "why": why})
            raise
        # Greedy: a shorter answer is the beginning of a longer one.
        outcome, why = judge(EXPECTED[prompt][:tokens], asked.answer)
        RECORD.keep({**_line(asked), "kind": kind, "outcome": outcome, "why": why})
        self.environment.events.request.fire(
            request_type="POST", name=kind, response_time=1000 * (asked.end - asked.start),
            response_length=len(asked.answer.tokens), context={},
            exception=None if outcome == OK else RuntimeError(f"{outcome}: {why}"),
        )  # fmt: skip


class Short(Asking):
    weight = 3


class ShortStream(Asking):
    weight, stream = 3, True


class Long(Asking):
    size = "long"


class LongStream(Asking):
    size, stream = "long", True


def _line(asked: Asked) -> dict[str, Any]:
    times = {name: round(getattr(asked, name), 4) for name in ("start", "sent", "first", "end")}
    answer = asked.answer
    return {
        **times, "port": asked.port, "retries": asked.retries, "status": answer.status,
        "tokens": len(answer.tokens),
    }  # fmt: skip
