"""Whether a replica that was replaced does as well as the others. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

#: What watch.py prints of a replica.
Window = Mapping[str, Any]

#: A share of errors this much above the others' is too much.
ERRORS = 0.01

#: So many times the others' latency, and so many seconds more, is too slow. A replica that comes back
#: gets all new requests at first, and has no prefix in its cache.
SLOWER = {"first": (3.0, 1.0), "next": (2.0, 0.05)}

#: Requests below which a mean says nothing: the first ones of a new process are slow.
LEAST = 20

WORDS = {"first": "to the first token", "next": "from token to token"}


def judge(name: str, windows: Mapping[str, Window]) -> str | None:
    """What is wrong with that replica beside the others; None when nothing is.

    Without requests nothing can be wrong; with no other replica, or too few requests, nothing can be slow.
    """
    own = windows[name]
    others = [window for other, window in windows.items() if other != name]
    busy = [window for window in others if window["requests"] >= LEAST]
    if own["errors"] and _share(own) > max(map(_share, others), default=0.0) + ERRORS:
        return f"{own['errors']} of {own['requests']} requests failed, of the others {_told(others)}"
    for key, (times, more) in SLOWER.items() if own["requests"] >= LEAST else ():
        known = [window[key] for window in busy if window[key] is not None]
        if known and own[key] is not None and own[key] > median(known) * times + more:
            return f"{own[key]:.2f} s {WORDS[key]}, of the others {median(known):.2f} s"
    return None


def _share(window: Window) -> float:
    return window["errors"] / max(1, window["requests"])


def _told(others: list[Window]) -> str:
    return f"{sum(one['errors'] for one in others)} of {sum(one['requests'] for one in others)}"
