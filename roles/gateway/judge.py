"""Whether a replica that was replaced does as well as the others. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

#: What watch.py prints of a replica.
Window = Mapping[str, Any]

#: A share of errors this much above the others' is too much.
ERRORS = 0.01

#: More seconds than a check that is late costs. HAProxy (until 2.9) counts no error where a replica dies of a
#: request that came on a connection which had one before.
DOWN = 5

#: So many times the others' latency, and so many seconds more, is too slow. A replica that comes back
#: gets all new requests at first, and has no prefix in its cache.
SLOWER = {"first": (3.0, 1.0), "next": (2.0, 0.02)}

#: Measurements below which a mean says nothing: the first ones of a new process are slow.
LEAST = 20

WORDS = {"first": "to the first token", "next": "from token to token"}


def judge(name: str, windows: Mapping[str, Window]) -> str | None:
    """What is wrong with that replica beside the others; None when nothing is.

    Without requests nothing can be wrong; with no other replica, or too few requests, nothing can be slow.
    Of others that just got too few (new ones go to whom has fewest) counts all since they started.
    """
    own = windows[name]
    if own["down"] > DOWN:
        return f"it was down for {own['down']} s"
    others = [window for other, window in windows.items() if other != name]
    if own["errors"] and _share(own) > max(map(_share, others), default=0.0) + ERRORS:
        return f"{own['errors']} of {own['requests']} requests failed, of the others {_told(others)}"
    for key, (times, more) in SLOWER.items():
        mine, known = (
            _mean(own[key]),
            [mean for window in others if (mean := _usual(window, key)) is not None],
        )
        if mine is not None and known and mine > median(known) * times + more:
            return f"{mine:.2f} s {WORDS[key]}, of the others {median(known):.2f} s"
    return None


def _usual(window: Window, key: str) -> float | None:
    mean = _mean(window[key])
    return _mean(window["since"][key]) if mean is None else mean


def _mean(measured: Sequence[float] | None) -> float | None:
    """Of [mean, how many]."""
    return measured[0] if measured and measured[1] >= LEAST else None


def told(window: Window) -> str:
    """Its latencies, in words."""
    return "".join(f", {window[key][0]:.2f} s {WORDS[key]}" for key in WORDS if window[key])


def _share(window: Window) -> float:
    return window["errors"] / max(1, window["requests"])


def _told(others: list[Window]) -> str:
    return f"{sum(one['errors'] for one in others)} of {sum(one['requests'] for one in others)}"
