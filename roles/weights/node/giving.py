"""Runs on a node, beside swarm.py: what a node gives those that call it."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

import wire
from dealing import BATCH, DEALT, IDLE, RELAY, Dealing, Line, share
from pieces import BLOCK, opened
from store import Store

PULSE = 1.0  # seconds between signs of life


@dataclass
class Stats:
    """Of one node; bytes of pieces."""

    from_seeds: int = 0
    from_nodes: int = 0
    wasted: int = 0  # came twice, or wrong
    sent: int = 0
    seconds: float = 0.0  # until all was here and proven
    dropped: dict[str, str] = field(default_factory=dict)  # nodes that were used no more, and why


class Giver(wire.Endpoint):
    def __init__(self, folder, manifest, me, nodes, seeds, secret) -> None:
        super().__init__()
        self.manifest, self.me, self.secret, self.seeds = manifest, me, secret, seeds
        self.others = [name for name in dict.fromkeys([*seeds, *nodes]) if name != me]
        self.more = threading.Condition(self.lock)  # to relay; few are woken for each piece
        self.store = Store(folder, manifest, self.changed)
        self.dealing = Dealing(share(self.store.have, manifest.everything, me, seeds))
        self.stats = Stats()
        self.started = time.monotonic()
        self.heard = dict.fromkeys(self.others, self.started)
        self.done: set[str] = set()  # who said so

    def stop(self) -> None:
        with self.changed:
            self.stopping = True
            self.more.notify_all()
            self.store.stop(len(self.threads))
        super().stop()
        self.store.close()

    def serve(self, sock: socket.socket) -> None:
        with suppress(OSError, ValueError, KeyError, TypeError), self.using(sock):
            if not wire.greeted(sock, self.secret, self.me):
                return
            request = wire.hear(sock)
            name, lacks = request["me"], int(request["lacks"], 16) & self.manifest.everything
            if request["run"] != self.manifest.name or name not in self.heard:
                return sock.sendall(b"!")
            sock.sendall(b"+" if self.store.complete else b"=")
            with self.changed:
                self.heard[name] = time.monotonic()
                (self.done.add if request["done"] else self.done.discard)(name)
                self.changed.notify_all()
            if request["want"] == "hashes":
                sock.sendall(b"".join(digest or bytes(32) for digest in self.manifest.hashes))
            elif request["want"] == "lost":
                self.give(sock, lacks)
            elif request["want"] == "all":
                self.deal_and_relay(sock, name, lacks)

    def deal_and_relay(self, sock: socket.socket, name: str, lacks: int) -> None:
        with self.changed:
            line = self.dealing.open(lacks)
        try:
            self.feed(sock, name, line)
        finally:
            with self.changed:
                self.dealing.close(line)

    def feed(self, sock: socket.socket, name: str, line: Line) -> None:
        taken = select.poll()
        taken.register(sock, select.POLLIN)
        while not self.stopping:
            with self.changed:
                if line.waits and not self.stopping:
                    self.more.wait(PULSE)
                index, full = line.next(time.monotonic()), line.ours
            if index != IDLE or not full or not taken.poll(PULSE * 1000):
                self.send(sock, index)
            with suppress(BlockingIOError):
                said = sock.recv(BATCH, socket.MSG_DONTWAIT)
                if not said:
                    return
                line.owed -= said.count(b"+")
                self.heard[name] = time.monotonic()

    def give(self, sock: socket.socket, lacks: int) -> None:
        """Some of what another lost."""
        seed = self.me in self.seeds
        with self.changed:
            chosen = self.dealing.lost(lacks & self.store.have, seed, time.monotonic())
        for index in chosen:
            self.send(sock, index | (RELAY if seed else 0))
        self.send(sock, DEALT)

    def send(self, sock: socket.socket, what: int) -> None:
        """A piece, given its number with or without RELAY; or DEALT or IDLE."""
        wire.send_word(sock, what, more=what < IDLE)
        index = what & ~RELAY
        for number in self.manifest.pieces[index] if what < IDLE else ():
            offset, size = self.manifest.part(index, number)
            with opened(self.store.root, self.manifest.files[number]) as fd:
                while size:
                    sent = os.sendfile(sock.fileno(), fd, offset, min(size, BLOCK))
                    if not sent:
                        raise ConnectionError("our file became shorter")
                    offset, size = offset + sent, size - sent
                    self.stats.sent += sent
