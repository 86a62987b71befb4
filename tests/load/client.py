"""One user's connection to an OpenAI endpoint, kept between requests as OpenAI's own client keeps it."""

from __future__ import annotations

import http.client
import json
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.load.judge import Answer

RETRIES = 2  # of a 503 that says when to come back, as OpenAI's client does
LONGEST_WAIT = 60.0  # seconds: a Retry-After of more is not obeyed, as by that client
PATIENCE = 600.0  # seconds between two bytes; of an answer in one piece the first one is late


@dataclass
class Asked:
    """A request and what came of it. Times are seconds since the epoch; `sent` is that of the last try."""

    start: float
    sent: float = 0.0
    first: float = 0.0
    end: float = 0.0
    port: int = 0  # of this end: a gateway's log has it, too
    retries: int = 0
    answer: Answer = field(default_factory=Answer)


class Client:
    """`on_wire` is told +1 and -1 as a try begins and ends. Without `keep` each request has a connection."""

    def __init__(
        self, url: str, key: str, on_wire: Callable[[int], None] = lambda _: None, keep: bool = True
    ) -> None:
        place = urlsplit(url)
        self.connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=PATIENCE)
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        if not keep:
            self.headers["Connection"] = "close"
        self.on_wire = on_wire

    def ask(self, body: dict[str, Any]) -> Asked:
        """One completion, with its retries. What goes wrong is in the answer."""
        asked = Asked(time.time())
        while (wait := self._try(body, asked)) is not None and asked.retries < RETRIES:
            asked.retries += 1
            time.sleep(wait)
        asked.end = time.time()
        return asked

    def _try(self, body: dict[str, Any], asked: Asked) -> float | None:
        """None when it is over, else the seconds after which the server wants to be asked again."""
        asked.sent, asked.answer = time.time(), Answer()
        self.on_wire(+1)
        try:
            self._connect()
            asked.port = self.connection.sock.getsockname()[1]
            self.connection.request("POST", "/v1/completions", json.dumps(body), self.headers)
            return self._receive(self.connection.getresponse(), asked, bool(body.get("stream")))
        except (OSError, http.client.HTTPException) as error:
            asked.answer.broke = f"{type(error).__name__}: {error}"
            self.connection.close()
            return None
        finally:
            self.on_wire(-1)

    def _connect(self) -> None:
        """Anew where the other end has closed the connection meanwhile, which every client looks for."""
        sock = self.connection.sock
        if sock is not None and select.select([sock], [], [], 0)[0]:
            self.connection.close()
        if self.connection.sock is None:
            self.connection.connect()

    def _receive(self, response: http.client.HTTPResponse, asked: Asked, stream: bool) -> float | None:
        asked.answer.status = response.status
        if response.status == 200 and stream:
            for line in _lines(response):
                asked.first = asked.first or time.time()
                asked.answer.line(line)
        else:
            asked.first = time.time()
            asked.answer.body(response.read())
        wait = response.headers.get("Retry-After", "")
        again = response.status == 503 and wait.isdigit() and int(wait) <= LONGEST_WAIT
        return float(wait) if again else None


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """As they come. Its own iterator would end alike where the stream ends and where it breaks off."""
    rest = b""
    while piece := response.read1(65536):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    yield rest
