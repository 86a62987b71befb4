"""Simulated time, and links that carry bytes in it."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable, tuple]] = []
        self._order = count()

    def at(self, when: float, action: Callable, *given: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), action, given))

    def after(self, seconds: float, action: Callable, *given: Any) -> None:
        self.at(self.now + seconds, action, *given)

    def run(self, until: Callable[[], bool]) -> None:
        while self._events and not until():
            self.now, _, action, given = heapq.heappop(self._events)
            action(*given)


class Uplink:
    """Shared by all that is being sent: each gets of the rate (bytes/s) what its weight is of all weights."""

    def __init__(self, clock: Clock, rate: float) -> None:
        self.clock, self.rate = clock, rate
        #: By the share at which each ends, and with its weight.
        self._sending: list[tuple[float, int, float, Callable, tuple]] = []
        self._weights = 0.0
        self._order = count()
        self._share, self._since = 0.0, 0.0  # bytes for a weight of 1 since the beginning; until when
        self._due = float("inf")

    def send(self, size: int, weight: float, action: Callable, *given: Any) -> None:
        self._advance()
        ends = self._share + size / weight
        heapq.heappush(self._sending, (ends, next(self._order), weight, action, given))
        self._weights += weight
        self._plan()

    def _advance(self) -> None:
        if self._sending:
            self._share += (self.clock.now - self._since) * self.rate / self._weights
        self._since = self.clock.now

    def _plan(self) -> None:
        if self._sending:
            left = max(self._sending[0][0] - self._share, 0)
            due = self.clock.now + left * self._weights / self.rate
            if due < self._due:
                self._due = due
                self.clock.at(due, self._end, due)

    def _end(self, due: float) -> None:
        if due != self._due:
            return  # something was to end before
        self._due = float("inf")
        self._advance()
        while self._sending and self._sending[0][0] <= self._share + 1:
            _, _, weight, action, given = heapq.heappop(self._sending)
            self._weights -= weight
            action(*given)
        self._plan()


class Downlink:
    """Of a rate, whoever sends."""

    def __init__(self, clock: Clock, rate: float) -> None:
        self.clock, self.rate, self._free = clock, rate, 0.0

    def expect(self, size: int, latency: float) -> float:
        """When something can be here at the earliest whose first byte is sent now."""
        self._free = max(self.clock.now + latency, self._free) + size / self.rate
        return self._free
