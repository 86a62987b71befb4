"""Runs on a node: spreads a snapshot's files among nodes, each at the speed of its link.

A seed has the files. It deals: every piece goes once, to whichever node is ready for the next.
A node relays to all others what it was dealt, in that order. So a seed sends the snapshot once,
every node sends it less than once, and the time does not grow with the number of nodes. A dead,
slow or lying node costs the others its share of the pieces, which they ask for again: nodes first,
then seeds.

All nodes are given the same files with the hub's checksums, by someone they trust. The hashes of
pieces are the seeds'; a seed that lies about them is found by the checksums. Only data that was
proven is written, and what is on the disk is the whole state: a run resumes from it. Nothing is
flushed to the disk: the caller does that before it publishes.

Both ends of a connection prove that they know the run's secret. Data is not encrypted.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import wire
from dealing import DEALT, IDLE, RELAY, Lull, helpers
from giving import PULSE, Giver, Stats
from pieces import Manifest, SwarmError
from pieces import make as make

HURRY = 2  # TIMEOUT of those that bring lost pieces: another may have them, too
RETRY = 0.5  # seconds between attempts to reach a node
QUIET = 1.0  # seconds of less than a quarter of the usual rate after which lost pieces are asked for

log = logging.getLogger("swarm")


def run(folder: str | os.PathLike, manifest: Manifest, me: str, nodes: Sequence[str], seeds: Sequence[str],
        secret: bytes, *, on_progress: Callable[[int, int, str], None] = lambda *_: None,
        on_proven: Callable[[], None] = lambda: None, patience: float = 600, grace: float = 30,
        ) -> Stats:  # fmt: skip
    """Take what `folder` lacks, and give it to the others until they have it all.

    `nodes` and `seeds` are host:port, the same lists on every node. A seed passes what `make`
    returned, another node `Manifest(files, commit)`, whose hashes are filled in.

    `on_progress` is called about once a second with bytes, here and in all, and with what is wrong with
    the seeds; what it raises ends the run.
    `on_proven` is called when all is here and proven; the folder may be renamed from then on.
    `patience` is how long nothing may come, in seconds. `grace` is how long a node that is not
    done may be silent before the others end without it.
    """
    node = Node(folder, manifest, me, nodes, seeds, secret)
    try:
        return node.run(on_progress, on_proven, patience, grace)
    finally:
        node.stop()


class Node(Giver):
    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.trouble = dict.fromkeys(self.others, "not asked yet")
        self.told: set[str] = set()  # whom we said that we are done
        self.dealt = False  # some seed has no more for us

    # The caller's thread

    def run(self, on_progress, on_proven, patience: float, grace: float) -> Stats:
        self.store.prepare()
        host, port = wire.address(self.me)
        try:
            server = socket.create_server((host, port), family=wire.family(host))
        except OSError as error:
            raise SwarmError(f"{self.me}: {error.strerror}") from None
        self.start(self.listen, server, self.serve, 100 + 10 * len(self.others))
        for _ in range(min(8, os.cpu_count() or 1)):
            self.start(self.store.work)
        for name in self.others:
            self.start(self.follow, name)
        self.start(self.recover)
        proven, shown, before, since = False, 0.0, -1, self.started
        seeds = set(self.seeds) - {self.me}
        while True:
            with self.changed:
                if not self.error and (proven or not self.store.complete):
                    self.changed.wait(PULSE)
                if self.error:
                    raise self.error
            now = time.monotonic()
            if now >= shown + PULSE or self.store.complete and not proven:
                shown = now
                on_progress(self.store.have_bytes, self.manifest.bytes, self.why())
            if self.store.complete and not proven:
                proven = True
                self.stats.seconds = now - self.started
                self.hang_up()
                on_proven()
            if proven and all(self.finished(name, now - grace) for name in self.others):
                return self.stats
            if proven or self.store.have_bytes != before or self.store.unread:
                before, since = self.store.have_bytes, now
            elif now - since > grace and seeds and seeds <= self.stats.dropped.keys():
                raise SwarmError(
                    f"{', '.join(sorted(seeds))} sent wrong bytes: run `rackserve stage --verify`"
                )
            elif now - since > patience:
                raise SwarmError(f"nothing came for {patience:.0f} s ({self.why()})")

    def why(self) -> str:
        return "; ".join(f"{name}: {self.trouble[name]}" for name in self.seeds if name != self.me)

    def finished(self, name: str, silent_since: float) -> bool:
        return self.heard[name] < silent_since or name in self.done and name in self.told

    # Connections

    @contextmanager
    def call(self, name: str, want: str) -> Iterator[socket.socket]:
        """A connection to a node, after both have proven themselves and it heard what we want."""
        host, port = wire.address(name)
        timeout = HURRY if want == "lost" else wire.TIMEOUT
        with self.using(socket.socket(wire.family(host)), name, timeout) as sock:
            sock.bind((wire.address(self.me)[0], 0))  # so it goes by the cluster's own network
            sock.connect((host, port))
            wire.greet(sock, self.secret, name)
            with self.changed:
                lacks, done = hex(self.store.lacks), self.store.complete
            request = {"me": self.me, "run": self.manifest.name, "want": want, "lacks": lacks, "done": done}
            wire.say(sock, request)
            answer = wire.exactly(sock, 1)
            if answer == b"!":
                raise ConnectionError("it spreads another snapshot, or not to us")
            with self.changed:
                self.heard[name], self.trouble[name] = time.monotonic(), "connected"
                if answer == b"+":
                    self.done.add(name)
            yield sock

    # What we take

    def follow(self, name: str) -> None:
        """Take what a node deals and relays; once we have everything, tell it."""
        while not self.stopping:
            complete = self.store.complete
            try:
                if complete:
                    with self.call(name, "nothing"), self.changed:
                        self.told.add(name)
                        return self.changed.notify_all()
                if not all(self.manifest.hashes):
                    if name in self.seeds:
                        self.learn(name)
                        if all(self.manifest.hashes):
                            continue
                elif name not in self.stats.dropped:
                    with self.call(name, "all") as sock:
                        self.take_all(sock, name)
            except (OSError, ValueError) as error:
                self.trouble[name] = str(error)
                if isinstance(error, ConnectionRefusedError) and complete and name in self.done:
                    self.told.add(name)  # it knew, for it ended
                    return
            if self.store.complete == complete:
                self.pause(RETRY)

    def learn(self, name: str) -> None:
        with self.call(name, "hashes") as sock:
            told = wire.exactly(sock, 32 * len(self.manifest.pieces))
        with self.changed:
            if all(self.manifest.hashes):
                return
            for index, known in enumerate(self.manifest.hashes):
                digest = told[32 * index : 32 * index + 32]
                self.manifest.hashes[index] = known or (digest if any(digest) else b"")
            if all(self.manifest.hashes):
                self.store.reread_all()

    def take_all(self, sock: socket.socket, name: str, lost: bool = False) -> None:
        """Take pieces as they come, until there is no more when they are lost ones."""
        buffer = memoryview(bytearray(self.manifest.piece_bytes))
        said = 0.0
        while not self.stopping:
            index = wire.word(sock)
            self.heard[name] = now = time.monotonic()
            if now > said + PULSE / 2 and not lost:
                sock.send(b".")  # we live
                said = now
            if index == DEALT:
                if lost:
                    return
                self.dealt = self.dealt or name in self.seeds
            elif index != IDLE:
                relay, index = index & RELAY, index & ~RELAY
                if index >= len(self.manifest.pieces):
                    raise ValueError("it sends what is no piece")
                piece = buffer[: self.manifest.length(index)]
                digest = wire.receive(sock, piece, HURRY if lost else wire.TIMEOUT)
                self.take(index, piece, digest == self.manifest.hashes[index], name, relay)
                if name in self.stats.dropped:
                    return
                if relay and not lost:
                    while self.behind() and not self.pause(0.01):
                        pass  # meanwhile the seed deals to others
                    sock.send(b"+")  # we took it

    def take(self, index: int, piece: memoryview, right: bool, name: str, relay: int) -> None:
        with self.changed:
            if not right:
                log.warning("%s sent wrong bytes and is used no more", name)
                self.stats.dropped[name] = "it sent wrong bytes"
            if not right or self.store.have >> index & 1:
                self.stats.wasted += len(piece)
                return
        try:
            self.store.write(index, piece)
        except OSError as error:
            return self.fail(error)
        with self.changed:
            if self.store.have >> index & 1:
                self.stats.wasted += len(piece)
                return
            if relay:
                self.stats.from_seeds += len(piece)
                self.dealing.first_hand.append(index)
                self.more.notify_all()
            else:
                self.stats.from_nodes += len(piece)
            self.store.gained(index)

    def behind(self) -> bool:
        with self.changed:
            return self.dealing.behind(time.monotonic())

    def recover(self) -> None:
        """Ask again for what was lost with a node."""
        lull = Lull(QUIET)
        while not self.pause(QUIET) and not self.store.complete:
            little = lull(self.stats.from_seeds + self.stats.from_nodes, self.dealt, time.monotonic())
            if all(self.manifest.hashes) and not self.store.unread and little:
                others = helpers(self.others, self.seeds)
                while any([self.ask(name) for name in others]) and not self.stopping:
                    pass

    def ask(self, name: str) -> int:
        """Take some lost pieces of a node; returns how many bytes."""
        before = self.store.have_bytes
        lacking = self.store.have != self.manifest.everything
        if lacking and name not in self.stats.dropped and time.monotonic() < self.heard[name] + 3:
            with suppress(OSError, ValueError), self.call(name, "lost") as sock:
                self.take_all(sock, name, lost=True)
        return self.store.have_bytes - before
