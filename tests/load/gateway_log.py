"""Which server a request went to, as HAProxy's log has it."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

#: Of `option httplog`: the client's port, when the request began, the server that had it last.
_LINE = re.compile(r"\S+:(\d+) \[(\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d)\.(\d{3})\] \S+ [\w-]+/(\S+) ")

#: Time zones differ by multiples of this, and the log's may be another than ours. In seconds.
_ZONES = 900
_STALE = 0.1  # seconds by which a log's clock may lag: it is cut to milliseconds, and read once a round
_LATE = 5.0  # seconds that a busy machine may need to read a request that was sent


def servers(lines: Sequence[dict[str, Any]], log: str) -> list[str]:
    """For each of a load's lines the server's name; "" where the log has no such request."""
    seen: dict[int, list[tuple[float, str]]] = defaultdict(list)
    for port, date, milliseconds, server in _LINE.findall(log):
        begun = time.mktime(time.strptime(date, "%d/%b/%Y:%H:%M:%S")) + int(milliseconds) / 1000
        seen[int(port)].append((begun, server))
    return [_server(line, seen[line.get("port", 0)]) for line in lines]


def _server(line: dict[str, Any], seen: Sequence[tuple[float, str]]) -> str:
    after = [((begun - line["sent"] + _STALE) % _ZONES, server) for begun, server in seen]
    delay, server = min(after, default=(_ZONES, ""))
    return server if delay < _LATE else ""
