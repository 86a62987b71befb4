"""Runs on a node, beside swarm.py: who is sent which piece next, and when lost ones are asked for.

Without sockets, threads or a clock; sets of pieces are bits of an int.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from pieces import bits

LEAD = 2  # pieces that a node may be behind in relaying before it takes no more from a seed
CREDIT = 4  # pieces that a seed deals to a node before it hears that they were taken
BATCH = 8  # pieces asked for again at once
DEALT, IDLE = 0xFFFFFFFF, 0xFFFFFFFE  # in place of a piece's number: there is no more; none yet
RELAY = 1 << 31  # beside a piece's number: you are the only one who gets it from me


class Dealing:
    """What one node deals, as a seed, and relays of what it was dealt."""

    def __init__(self, undealt: int) -> None:
        self.undealt = undealt  # pieces that nobody was sent yet
        self.first_hand: list[int] = []  # what we relay
        self.lines: set[Line] = set()
        self.given, self.given_at = 0, 0.0

    def open(self, lacks: int) -> Line:
        self.lines.add(line := Line(self, lacks))
        return line

    def close(self, line: Line) -> None:
        self.lines.remove(line)

    def behind(self, now: float) -> bool:
        """True when our own link is what the others wait for, not the links of a few of them.

        TCP shares a link unevenly, so when ours is full, most may be up to date and some far behind.
        """
        lags = sorted(len(self.first_hand) - line.relayed for line in self.lines if line.at > now - 1)
        return len(lags) > 1 and lags[7 * (len(lags) - 1) // 8] > LEAD

    def lost(self, lacks: int, seed: bool, now: float) -> list[int]:
        """Some of what another lost. A seed gives each piece to one node, which relays it."""
        if now > self.given_at + 2:  # what is still lost did not get through
            self.given, self.given_at = 0, now
        lacks &= ~(self.given if seed else 0)
        # From the end: another seed that still deals is at the beginning.
        chosen = list(bits(lacks, BATCH))
        for index in chosen:
            self.given |= 1 << index
            self.undealt &= ~(1 << index)
        return chosen


class Line:
    """What one other node is sent, of the pieces that it lacked at first."""

    def __init__(self, dealing: Dealing, lacks: int) -> None:
        self.dealing, self.lacks = dealing, lacks
        self.owed = 0  # dealt, and not taken yet
        self.relayed, self.at = 0, float("-inf")  # how many of what we relay, and when
        self.all_dealt = False  # and told so

    @property
    def ours(self) -> int:
        return self.lacks & self.dealing.undealt

    @property
    def waits(self) -> bool:
        """True when there is nothing to send until we are dealt more."""
        return self.all_dealt and not self.ours and self.relayed == len(self.dealing.first_hand)

    def next(self, now: float) -> int:
        """The number of a piece, with RELAY when it is dealt; or DEALT or IDLE."""
        if (ours := self.ours) and self.owed < CREDIT:
            self.owed += 1
            index = (ours & -ours).bit_length() - 1
            self.dealing.undealt ^= 1 << index
            return index | RELAY
        if not ours and not self.all_dealt:
            self.all_dealt = True
            return DEALT
        while self.relayed < len(self.dealing.first_hand):
            index = self.dealing.first_hand[self.relayed]
            self.relayed, self.at = self.relayed + 1, now
            if self.lacks >> index & 1:
                return index
        return IDLE


class Lull:
    """Tells when lost pieces are to be asked for: when all was dealt, and little comes."""

    def __init__(self, quiet: float) -> None:
        self.quiet = quiet  # seconds between two looks
        self.before, self.first, self.still = 0, 0.0, 0

    def __call__(self, came: int, dealt: bool, now: float) -> bool:
        self.first = self.first or (came and now - self.quiet)
        slow = (came - self.before) * (now - self.first) < came * self.quiet / 4
        self.still = 0 if came > self.before else self.still + 1
        self.before = came
        return dealt and slow or self.still >= 5


def share(have: int, everything: int, me: str, seeds: Sequence[str]) -> int:
    """What a node deals: of several seeds that have everything, each its part."""
    if have != everything or me not in seeds:
        return have
    return sum(1 << index for index in range(seeds.index(me), everything.bit_length(), len(seeds)))


def helpers(others: Iterable[str], seeds: Sequence[str]) -> list[str]:
    """Who is asked for lost pieces, in this order: nodes first."""
    return sorted(others, key=lambda name: (name in seeds, random.random()))
