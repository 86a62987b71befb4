"""Nodes of roles/weights/node/swarm.py in simulated time; what they decide, dealing.py decides."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from dealing import DEALT, IDLE, RELAY, Dealing, Lull, helpers
from pieces import Manifest

from tests.bench.events import Clock, Downlink, Uplink


@dataclass(frozen=True)
class Assumptions:
    """Seconds, and bytes where it says so."""

    start: float = 1.0  # until a node listens; with what the end takes
    connect: float = 0.001  # of a node's processor for each connection
    latency: float = 50e-6  # one way
    piece: float = 0.0005  # from a piece's last byte until it is written, hashed and known
    buffer: int = 2 << 20  # bytes that a connection takes before they are read
    chunk: int = 1 << 18  # bytes of a connection that are queued before the next piece is chosen
    uneven: float = 0.5  # TCP's shares of a link: their logarithm's standard deviation
    retry: float = 0.5  # as in swarm.py
    quiet: float = 1.0
    hurry: float = 2.0
    poll: float = 0.01


@dataclass(frozen=True)
class Trouble:
    """Of node 1."""

    dies_at: float = float("inf")  # seconds; silently, as when its power goes
    speed: float = 1.0

    def __str__(self) -> str:
        return "one at half speed" if self.speed < 1 else "one dies half-way"


class Node:
    def __init__(self, swarm: Swarm, name: str, rate: float, have: int) -> None:
        self.swarm, self.name, self.have = swarm, name, have
        self.dealing = Dealing(have)
        self.up, self.down = Uplink(swarm.clock, rate), Downlink(swarm.clock, rate)
        self.connections: list[Connection] = []  # by which we send
        self.came, self.sent, self.dealt, self.dead = 0, 0, False, False

    def take(self, what: int) -> None:
        index, size = what & ~RELAY, self.swarm.manifest.length(what & ~RELAY)
        if self.have >> index & 1:
            self.swarm.wasted += size
            return
        self.have |= 1 << index
        self.came += size
        if what & RELAY:
            self.dealing.first_hand.append(index)
            for connection in self.connections:
                connection.pump()
        self.swarm.look(self)


class Connection:
    """By which one node deals and relays to another."""

    __slots__ = (
        "swarm",
        "source",
        "to",
        "line",
        "picked",
        "sending",
        "unread",
        "unread_bytes",
        "reading",
        "weight",
    )

    def __init__(self, swarm: Swarm, source: Node, to: Node) -> None:
        self.swarm, self.source, self.to = swarm, source, to
        self.line = source.dealing.open(swarm.manifest.everything & ~to.have)
        self.picked: int | None = None
        self.sending: int | None = None
        self.unread: deque[int] = deque()
        self.unread_bytes = 0
        self.reading = False
        self.weight = swarm.chance.lognormvariate(0, swarm.how.uneven)
        source.connections.append(self)
        self.pump()

    def pump(self) -> None:
        """Choose the next piece when there is room for it, and send it when the one before is out."""
        if self.source.dead or self.to.dead:
            return
        length, how = self.swarm.manifest.length, self.swarm.how
        if self.picked is None and (self.sending is None or length(self.sending & ~RELAY) <= how.chunk):
            what = self.line.next(self.swarm.clock.now)
            if what == DEALT:
                self.to.dealt = self.to.dealt or self.source is self.swarm.nodes[0]
                what = self.line.next(self.swarm.clock.now)
            if what != IDLE:
                self.picked = what
        if self.picked is not None and self.sending is None and self.unread_bytes < how.buffer:
            self.sending, self.picked = self.picked, None
            size = length(self.sending & ~RELAY)
            self.source.up.send(size, self.weight, self.left, self.to.down.expect(size, how.latency))
            self.pump()

    def left(self, earliest: float) -> None:
        """A piece is out."""
        what, self.sending = self.sending, None
        size = self.swarm.manifest.length(what & ~RELAY)
        self.source.sent += size
        if not self.source.dead:
            self.unread_bytes += size
            arrival = max(self.swarm.clock.now + self.swarm.how.latency, earliest)
            self.swarm.clock.at(arrival, self.arrived, what)
            self.pump()

    def arrived(self, what: int) -> None:
        self.unread.append(what)
        if not self.reading:
            self.reading = True
            self.swarm.clock.after(self.swarm.how.piece, self.read)

    def read(self) -> None:
        if self.to.dead:
            return
        what = self.unread.popleft()
        self.unread_bytes -= self.swarm.manifest.length(what & ~RELAY)
        self.to.take(what)
        self.pump()
        if what & RELAY:
            self.taken()
        else:
            self.read_on()

    def taken(self) -> None:
        """What was dealt, when we are not behind in relaying."""
        clock, how = self.swarm.clock, self.swarm.how
        if self.to.dealing.behind(clock.now):
            clock.after(how.poll, self.taken)
            return
        clock.after(how.latency, self.credit)
        self.read_on()

    def read_on(self) -> None:
        self.reading = bool(self.unread)
        if self.reading:
            self.swarm.clock.after(self.swarm.how.piece, self.read)

    def credit(self) -> None:
        self.line.owed -= 1
        self.pump()


class Swarm:
    """Node 0 is the seed; the others receive."""

    def __init__(
        self, manifest: Manifest, count: int, rate: float, trouble: Trouble | None = None,
        how: Assumptions | None = None,
    ) -> None:  # fmt: skip
        self.manifest, self.trouble, self.how = manifest, trouble or Trouble(), how or Assumptions()
        self.clock, self.chance = Clock(), random.Random(1)
        self.nodes = [Node(self, "0", rate, manifest.everything)]
        for number in range(1, count + 1):
            speed = self.trouble.speed if number == 1 else 1
            self.nodes.append(Node(self, str(number), rate * speed, 0))
        self.wasted, self.seconds = 0, 0.0
        self.lacking = sum(not self._excused(node) for node in self.nodes[1:])

    def run(self) -> None:
        """Until all have everything but the one in trouble."""
        for node in self.nodes[1:]:
            self.clock.at(self.how.start, self._join, node)
            self._step(self._recover(node))
        if self.trouble.dies_at < float("inf"):
            self.clock.at(self.trouble.dies_at, setattr, self.nodes[1], "dead", True)
        self.clock.run(until=lambda: not self.lacking)
        self.seconds = self.clock.now
        if self.lacking:
            raise SystemExit(f"{self.lacking} nodes never got everything")

    def look(self, node: Node) -> None:
        if node.have == self.manifest.everything and not node.dead and not self._excused(node):
            self.lacking -= 1

    def _excused(self, node: Node) -> bool:
        return node is self.nodes[1] and self.trouble != Trouble()

    def _join(self, node: Node) -> None:
        """Learn the hashes of the seed, and call it; the others a moment later, one after another."""
        others = [other for other in self.nodes[1:] if other is not node]
        for number, other in enumerate(others):
            self.clock.after(self.how.retry + number * self.how.connect, self._call, other, node)
        hashes = 32 * len(self.manifest.pieces)
        self.nodes[0].up.send(hashes, 1, self._call, self.nodes[0], node)

    def _call(self, source: Node, to: Node) -> None:
        if not source.dead and not to.dead:
            Connection(self, source, to)

    def _recover(self, node: Node) -> Iterator[float | tuple[Node, Node, int]]:
        """As swarm.Node.recover: yields how long it waits, or what is carried from whom to whom."""
        lull, names = Lull(self.how.quiet), [other.name for other in self.nodes if other is not node]
        yield self.how.start
        while not node.dead and node.have != self.manifest.everything:
            yield self.how.quiet
            came = -1
            little = lull(node.came, node.dealt, self.clock.now)
            while little and came != node.came:
                came = node.came
                for name in helpers(names, ["0"]):
                    yield from self._ask(node, self.nodes[int(name)])

    def _ask(self, node: Node, other: Node) -> Iterator[float | tuple[Node, Node, int]]:
        lacks = self.manifest.everything & ~node.have
        if not lacks or other.dead and self.clock.now > self.trouble.dies_at + 3:
            return
        yield self.how.hurry if other.dead else self.how.connect + 4 * self.how.latency
        if not other.dead:
            seed = other is self.nodes[0]
            for index in other.dealing.lost(lacks & other.have, seed, self.clock.now):
                what = index | (RELAY if seed else 0)
                yield other, node, what
                node.take(what)

    def _step(self, process: Iterator[float | tuple[Node, Node, int]]) -> None:
        waits = next(process, None)
        if isinstance(waits, float):
            self.clock.after(waits, self._step, process)
        elif waits:
            source, to, what = waits
            size = self.manifest.length(what & ~RELAY)
            source.sent += size
            source.up.send(size, 1, self._carry, process, to.down.expect(size, self.how.latency))

    def _carry(self, process: Iterator, earliest: float) -> None:
        self.clock.at(max(self.clock.now + self.how.latency, earliest), self._step, process)
