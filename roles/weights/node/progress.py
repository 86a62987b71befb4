"""Runs on a node, beside stage.py: lines for people, of something that takes long."""

from __future__ import annotations

import time
from collections.abc import Callable

STALL = 20  # seconds without a byte after which that is said


class Progress:
    """How much, how fast, how long still; and when nothing comes any more.

    All nodes print at the same time of the clock, so that their lines stand together as a table: every 5
    seconds in the first minute, later every minute. Printing ends the process when nobody is there to
    read it any more.
    """

    def __init__(
        self, clock: Callable[[], float] = time.time, say: Callable[[str], None] | None = None
    ) -> None:
        self.clock, self.say = clock, say or (lambda line: print(line, flush=True))
        self.started = self.shown = self.came = clock()
        self.first = self.before = -1

    def __call__(self, have: int, total: int, waiting: str = "") -> None:
        """+ have, total: bytes
        + waiting: what it is for, said when nothing comes
        """
        now = self.clock()
        if self.first < 0:
            self.first = have
        if have != self.before:
            self.before, self.came = have, now
        every = 5 if now - self.started < 60 else 60
        if now // every == self.shown // every:
            return
        self.shown = now
        self.say(self.line(have, total, waiting, now))

    def line(self, have: int, total: int, waiting: str, now: float) -> str:
        much = f"{100 * have // max(total, 1):3} %  {have / 1e9:,.2f} of {total / 1e9:,.2f} GB"
        if have >= total:
            return f"{much}  is here, and goes to others"
        if now - self.came > STALL:
            return f"{much}  nothing came for {now - self.came:,.0f} s{waiting and ': '}{waiting}"
        rate = (have - self.first) / max(now - self.started, 1e-9)  # bytes a second
        left = f"  {duration((total - have) / rate)} left" if rate else ""
        return f"{much}  {rate / 1e6:,.0f} MB/s{left}"


#: How the last line of a node begins that has it all.
DONE = "whole "


def done(size: int, seconds: float, how: str) -> str:
    """The row of a table: how many bytes came in how many seconds."""
    return (
        f"{DONE}{size / 1e9:9,.2f} GB  {seconds:8,.1f} s  {size / max(seconds, 0.1) / 1e6:7,.0f} MB/s  {how}"
    )


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02} min"
        if hours
        else f"{minutes} min {seconds:02} s"
        if minutes
        else f"{seconds} s"
    )
