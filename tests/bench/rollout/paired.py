"""Locust's user for `latency`: each asks the server itself and through the gateway in turn."""

from __future__ import annotations

import itertools
import os

from locust import task

from tests.load.client import Client
from tests.load.locustfile import EXPECTED, PLAN, RECORD, Asking


class Paired(Asking):
    stream = True

    def on_start(self) -> None:
        urls = {"direct": PLAN["direct"], "through": self.host}
        key = os.environ["OPENAI_API_KEY"]
        clients = [(kind, Client(url, key, RECORD.on_wire, PLAN["keep"])) for kind, url in urls.items()]
        self.turns = itertools.cycle(clients)

    @task
    def completion(self) -> None:
        kind, client = next(self.turns)
        (prompt,) = EXPECTED
        self.ask(client, kind, prompt, len(EXPECTED[prompt]))
