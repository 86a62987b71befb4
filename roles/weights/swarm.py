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

import hashlib
import hmac
import json
import logging
import os
import queue
import random
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

BLOCK = 1 << 20  # bytes read, hashed or sent in one call
CHUNK = 1 << 18  # bytes received in one call, or queued for sending
LEAD = 2  # pieces that a node may be behind in relaying before it takes no more from a seed
CREDIT = 4  # pieces that a seed deals to a node before it hears that they were taken
TIMEOUT = 10  # seconds without a byte after which a connection is given up
HURRY = 2  # the same, of those that bring lost pieces: another may have them, too
PULSE = 1.0  # seconds between signs of life
RETRY = 0.5  # seconds between attempts to reach a node
QUIET = 1.0  # seconds of less than a quarter of the usual rate after which lost pieces are asked for
BATCH = 8  # pieces asked for again at once
DEALT, IDLE = 0xFFFFFFFF, 0xFFFFFFFE  # in place of a piece's number: there is no more; none yet
RELAY = 1 << 31  # beside a piece's number: you are the only one who gets it from me

log = logging.getLogger("swarm")


class SwarmError(Exception):
    """One line for a person."""


class File(NamedTuple):
    path: str
    size: int  # bytes
    checksum: str  # the hub's, in hex: sha256, or git's sha1 of a blob

    def digest(self):
        if len(self.checksum) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


class Manifest:
    """The files of a commit, cut into pieces: a piece is part of one file, or some small files."""

    def __init__(self, files: Iterable[tuple[str, int, str]], commit: str) -> None:
        self.files = [File(*file) for file in files]
        for file in self.files:
            if {"", ".", ".."} & set(file.path.split("/")) or "\0" in file.path:
                raise SwarmError(f"{file.path!r} is no path inside a folder")
        self.bytes = sum(file.size for file in self.files)
        self.piece_bytes = min(max(1 << (self.bytes // 4096).bit_length(), 1 << 18), 1 << 24)
        self.pieces: list[list[int]] = []  # numbers of files
        self.spans: list[range] = []  # each file's pieces
        pack, room = [], 0
        for number, file in enumerate(self.files):
            start = len(self.pieces)
            if file.size >= self.piece_bytes:
                self.pieces += [[number] for _ in range(0, file.size, self.piece_bytes)]
                self.spans.append(range(start, len(self.pieces)))
                continue
            if file.size > room:
                self.pieces.append(pack := [])
                room, at = self.piece_bytes, start
            if file.size:
                pack.append(number)
                room -= file.size
            self.spans.append(range(at, at + 1) if file.size else range(0))
        self.hashes: list[bytes] = [b""] * len(self.pieces)  # sha256; empty while unknown
        self.everything = (1 << len(self.pieces)) - 1  # sets of pieces are bits of an int
        self.name = hashlib.sha256(json.dumps([commit, self.files]).encode()).hexdigest()

    def part(self, index: int, number: int) -> tuple[int, int]:
        """Offset and bytes of a piece in a file."""
        offset = (index - self.spans[number].start) * self.piece_bytes
        return offset, min(self.piece_bytes, self.files[number].size - offset)

    def length(self, index: int) -> int:
        return sum(self.part(index, number)[1] for number in self.pieces[index])


def make(
    folder: str | os.PathLike,
    files: Iterable[tuple[str, int, str]],
    commit: str,
    names: Iterable[str] | None = None,
) -> Manifest:
    """Check files against the hub's checksums, and hash their pieces, reading once.

    `names` are those that are here, when another seed has the rest.
    """
    manifest = Manifest(files, commit)
    absent = set() if names is None else {file.path for file in manifest.files} - set(names)
    root = os.open(folder, os.O_RDONLY)

    def check(span: range) -> None:
        digests = {number: manifest.files[number].digest() for number in manifest.pieces[span.start]}
        for index in span:
            piece = hashlib.sha256()
            for number in manifest.pieces[index]:
                for block in blocks(root, manifest.files[number], *manifest.part(index, number)):
                    piece.update(block)
                    digests[number].update(block)
            manifest.hashes[index] = piece.digest()
        for number, digest in digests.items():
            compare(manifest.files[number], digest)

    try:
        for file in manifest.files:
            if file.path not in absent and os.stat(file.path, dir_fd=root).st_size != file.size:
                raise SwarmError(f"{file.path} has another size than the hub's")
        spans = {span for span in manifest.spans if span}
        for span, file in zip(manifest.spans, manifest.files, strict=True):
            if file.path in absent:
                spans.discard(span)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(check, sorted(spans, key=lambda span: span.start)))
    finally:
        os.close(root)
    return manifest


def blocks(root: int, file: File, offset: int, size: int) -> Iterator[memoryview]:
    """The bytes of a part of a file, as a buffer that each step fills again."""
    buffer = memoryview(bytearray(min(size, BLOCK)))
    with opened(root, file) as fd:
        while size:
            got = os.preadv(fd, [buffer[:size]], offset)
            if not got:
                raise SwarmError(f"{file.path} became shorter")
            yield buffer[:got]
            offset, size = offset + got, size - got


def compare(file: File, digest) -> None:
    if digest.hexdigest() != file.checksum:
        raise SwarmError(f"{file.path}: its checksum is not the hub's")


@dataclass
class Stats:
    """Of one node; bytes of pieces."""

    from_seeds: int = 0
    from_nodes: int = 0
    wasted: int = 0  # came twice, or wrong
    sent: int = 0
    seconds: float = 0.0  # until all was here and proven
    dropped: dict[str, str] = field(default_factory=dict)  # nodes that were used no more, and why


def run(folder: str | os.PathLike, manifest: Manifest, me: str, nodes: Sequence[str], seeds: Sequence[str],
        secret: bytes, *, on_progress: Callable[[int, int], None] = lambda have, total: None,
        on_proven: Callable[[], None] = lambda: None, patience: float = 600, grace: float = 30,
        ) -> Stats:  # fmt: skip
    """Take what `folder` lacks, and give it to the others until they have it all.

    `nodes` and `seeds` are host:port, the same lists on every node. A seed passes what `make`
    returned, another node `Manifest(files, commit)`, whose hashes are filled in.

    `on_progress` is called with bytes, about once a second; what it raises ends the run.
    `on_proven` is called when all is here and proven; the folder may be renamed from then on.
    `patience` is how long nothing may come, in seconds. `grace` is how long a node that is not
    done may be silent before the others end without it.
    """
    node = Node(folder, manifest, me, nodes, seeds, secret)
    try:
        return node.run(on_progress, on_proven, patience, grace)
    finally:
        node.stop()


class Node:
    def __init__(self, folder, manifest, me, nodes, seeds, secret) -> None:
        self.folder, self.manifest, self.me, self.secret, self.seeds = folder, manifest, me, secret, seeds
        self.others = [name for name in dict.fromkeys([*seeds, *nodes]) if name != me]
        self.root = os.open(folder, os.O_RDONLY)  # by which files are found, however the folder is named
        self.lock = threading.RLock()  # of all that follows
        self.changed = threading.Condition(self.lock)
        self.more = threading.Condition(self.lock)  # to relay; few are woken for each piece
        self.stopping = False
        self.error: BaseException | None = None
        self.threads: set[threading.Thread] = set()
        self.sockets: dict[socket.socket, str] = {}  # and whom we called
        self.jobs: queue.LifoQueue = queue.LifoQueue()  # so a file is proven before more is read
        self.stats = Stats()
        self.started = time.monotonic()
        self.heard = dict.fromkeys(self.others, self.started)
        self.trouble = dict.fromkeys(self.others, "not asked yet")
        self.done: set[str] = set()  # who said so
        self.told: set[str] = set()  # whom we said so
        self.dealt = False  # some seed has no more for us
        known = [index for index, digest in enumerate(manifest.hashes) if digest]
        self.have = sum(1 << index for index in known)
        self.have_bytes = sum(map(manifest.length, known))
        self.unread = 0  # pieces that may be on the disk from an earlier run
        self.first_hand: list[int] = []  # what we relay
        self.relayed: dict[socket.socket, tuple[int, float]] = {}  # how many to each, and when
        self.undealt = self.have
        if self.have == manifest.everything and me in seeds:  # every seed deals its share
            self.undealt = sum(1 << index for index in known[seeds.index(me) :: len(seeds)])
        self.given, self.given_at = 0, 0.0
        self.digests = {number: file.digest() for number, file in enumerate(manifest.files)}
        self.next = [span.start for span in manifest.spans]  # the piece that each digest waits for
        self.busy: set[int] = set()  # files in `jobs`

    # The caller's thread

    def run(self, on_progress, on_proven, patience: float, grace: float) -> Stats:
        self.prepare()
        host, port = address(self.me)
        try:
            server = socket.create_server((host, port), family=family(host))
        except OSError as error:
            raise SwarmError(f"{self.me}: {error.strerror}") from None
        self.start(self.listen, server)
        for _ in range(min(8, os.cpu_count() or 1)):
            self.start(self.work)
        for name in self.others:
            self.start(self.follow, name)
        self.start(self.recover)
        proven, shown, before, since = False, 0.0, -1, self.started
        while True:
            with self.changed:
                if not self.error and (proven or not self.complete):
                    self.changed.wait(PULSE)
                if self.error:
                    raise self.error
            now = time.monotonic()
            if now >= shown + PULSE or self.complete and not proven:
                shown = now
                on_progress(self.have_bytes, self.manifest.bytes)
            if self.complete and not proven:
                proven = True
                self.stats.seconds = now - self.started
                self.hang_up()
                on_proven()
            if proven and all(self.finished(name, now - grace) for name in self.others):
                return self.stats
            if proven or self.have_bytes != before or self.unread:
                before, since = self.have_bytes, now
            elif now - since > patience:
                why = "; ".join(f"{name}: {self.trouble[name]}" for name in self.seeds if name != self.me)
                raise SwarmError(f"nothing came for {patience:.0f} s ({why})")

    @property
    def complete(self) -> bool:
        return self.have == self.manifest.everything and not self.digests

    def finished(self, name: str, silent_since: float) -> bool:
        return self.heard[name] < silent_since or name in self.done and name in self.told

    def prepare(self) -> None:
        """Make every file that is not known to be right, of holes where it has no data."""
        holes = 0
        for number, file in enumerate(self.manifest.files):
            span = self.manifest.spans[number]
            if span and all(self.manifest.hashes[index] for index in span):
                del self.digests[number]
                continue
            os.makedirs(os.path.join(self.folder, os.path.dirname(file.path)), exist_ok=True)
            fd = os.open(file.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644, dir_fd=self.root)
            try:
                if os.fstat(fd).st_size != file.size:
                    os.truncate(fd, file.size)
                for index in span:
                    offset, size = self.manifest.part(index, number)
                    holes |= (not filled(fd, offset, offset + size)) << index
            finally:
                os.close(fd)
            if not span:
                compare(file, self.digests.pop(number))
        self.unread = self.manifest.everything & ~self.have & ~holes

    def start(self, work: Callable, *given) -> None:
        def body() -> None:
            try:
                work(*given)
            except BaseException as error:
                self.fail(error)
            finally:
                with self.changed:
                    self.threads.discard(threading.current_thread())

        thread = threading.Thread(target=body, daemon=True)
        with self.changed:
            if not self.stopping:
                self.threads.add(thread)
                thread.start()

    def fail(self, error: BaseException) -> None:
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
            self.more.notify_all()
            threads = list(self.threads)
        self.hang_up(everyone=True)
        for _ in threads:
            self.jobs.put(None)
        for thread in threads:
            thread.join()
        os.close(self.root)

    def hang_up(self, everyone: bool = False) -> None:
        """End the connections that we opened, or all."""
        with self.changed:
            for sock, whom in self.sockets.items():
                with suppress(OSError):
                    if whom or everyone:
                        sock.shutdown(socket.SHUT_RDWR)

    def pause(self, seconds: float) -> bool:
        """True when the run ends."""
        with self.changed:
            return self.changed.wait_for(lambda: self.stopping, seconds)

    # A thread for each processor: proves files, and what is on the disk

    def work(self) -> None:
        while (job := self.jobs.get()) and not self.stopping:
            job()

    def reread(self, index: int) -> None:
        digest = hashlib.sha256()
        for number in self.manifest.pieces[index]:
            for block in blocks(self.root, self.manifest.files[number], *self.manifest.part(index, number)):
                digest.update(block)
        with self.changed:
            self.unread &= ~(1 << index)
            if digest.digest() == self.manifest.hashes[index]:
                self.gained(index)

    def gained(self, index: int) -> None:
        """Under the lock: a piece is on the disk."""
        self.have |= 1 << index
        self.have_bytes += self.manifest.length(index)
        for number in self.manifest.pieces[index]:
            if self.next[number] == index and number not in self.busy:
                self.busy.add(number)
                self.jobs.put(partial(self.prove, number))

    def prove(self, number: int) -> None:
        """Add to a file's digest what follows without a gap."""
        file, digest = self.manifest.files[number], self.digests[number]
        while not self.stopping:
            with self.changed:
                index = self.next[number]
                if index == self.manifest.spans[number].stop:
                    break
                if not self.have >> index & 1:
                    self.busy.discard(number)
                    return
                self.next[number] += 1
            for block in blocks(self.root, file, *self.manifest.part(index, number)):
                digest.update(block)
        else:
            return
        compare(file, digest)
        with self.changed:
            del self.digests[number]
            if not self.digests:
                self.changed.notify_all()

    # Connections

    def listen(self, server: socket.socket) -> None:
        with self.using(server) as server:
            while not self.stopping:
                try:
                    sock, _ = server.accept()
                except OSError:  # woken by stop(), or nothing within the timeout, or no more files
                    self.pause(0.01)
                    continue
                if len(self.threads) > 100 + 10 * len(self.others):
                    sock.close()
                else:
                    self.start(self.serve, sock)

    @contextmanager
    def using(self, sock: socket.socket, whom: str = "", timeout: int = TIMEOUT) -> Iterator[socket.socket]:
        with sock:
            # In the kernel, so that a call that moves a whole block is one system call.
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", timeout, 0))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A long queue would hide that a node is behind.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, CHUNK)
            with self.changed:
                if self.stopping:
                    raise ConnectionError("the run ends")
                self.sockets[sock] = whom
            try:
                yield sock
            finally:
                with self.changed:
                    del self.sockets[sock]
                    self.relayed.pop(sock, None)

    def sign(self, role: bytes, *said: bytes) -> bytes:
        return hmac.digest(self.secret, b"rackserve swarm " + role + b"".join(said), "sha256")

    @contextmanager
    def call(self, name: str, want: str) -> Iterator[socket.socket]:
        """A connection to a node, after both have proven themselves and it heard what we want."""
        host, port = address(name)
        timeout = HURRY if want == "lost" else TIMEOUT
        with self.using(socket.socket(family(host)), name, timeout) as sock:
            sock.bind((address(self.me)[0], 0))  # so it goes by the cluster's own network
            sock.connect((host, port))
            theirs, ours = exactly(sock, 32), secrets.token_bytes(32)
            sock.sendall(ours + self.sign(b"caller", name.encode(), theirs, ours))
            if not hmac.compare_digest(exactly(sock, 32), self.sign(b"called", name.encode(), theirs, ours)):
                raise ConnectionError("it does not know the secret")
            with self.changed:
                lacks = self.manifest.everything & ~self.have & ~self.unread
                request = {"me": self.me, "run": self.manifest.name, "want": want, "lacks": hex(lacks)}
            line = json.dumps({**request, "done": self.complete}).encode()
            sock.sendall(struct.pack("!I", len(line)) + line)
            answer = exactly(sock, 1)
            if answer == b"!":
                raise ConnectionError("it spreads another snapshot, or not to us")
            with self.changed:
                self.heard[name] = time.monotonic()
                if answer == b"+":
                    self.done.add(name)
            yield sock

    def serve(self, sock: socket.socket) -> None:
        with suppress(OSError, ValueError, KeyError, TypeError), self.using(sock):
            ours = secrets.token_bytes(32)
            sock.sendall(ours)
            theirs, proof = exactly(sock, 32), exactly(sock, 32)
            if not hmac.compare_digest(proof, self.sign(b"caller", self.me.encode(), ours, theirs)):
                return
            sock.sendall(self.sign(b"called", self.me.encode(), ours, theirs))
            request = json.loads(exactly(sock, min(word(sock), BLOCK)))
            name, lacks = request["me"], int(request["lacks"], 16) & self.manifest.everything
            if request["run"] != self.manifest.name or name not in self.heard:
                return sock.sendall(b"!")
            sock.sendall(b"+" if self.complete else b"=")
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

    # What we send

    def deal_and_relay(self, sock: socket.socket, name: str, lacks: int) -> None:
        relayed, owed, all_dealt = 0, 0, False
        taken = select.poll()
        taken.register(sock, select.POLLIN)
        while not self.stopping:
            with self.changed:
                index, relay = IDLE, 0
                ours = lacks & self.undealt
                if ours and owed < CREDIT:
                    owed += 1
                    index = (ours & -ours).bit_length() - 1
                    self.undealt ^= 1 << index
                    relay = RELAY
                elif not ours and not all_dealt:
                    index, all_dealt = DEALT, True
                else:
                    if not ours and relayed == len(self.first_hand) and not self.stopping:
                        self.more.wait(PULSE)
                    while relayed < len(self.first_hand) and index == IDLE:
                        if lacks >> self.first_hand[relayed] & 1:
                            index = self.first_hand[relayed]
                        relayed += 1
                        self.relayed[sock] = relayed, time.monotonic()
            if index != IDLE or not ours or not taken.poll(PULSE * 1000):
                self.send(sock, index, relay)
            with suppress(BlockingIOError):
                said = sock.recv(BATCH, socket.MSG_DONTWAIT)
                if not said:
                    return
                owed -= said.count(b"+")
                self.heard[name] = time.monotonic()

    def behind(self) -> bool:
        """True when our own link is what the others wait for, not the link of one of them."""
        with self.changed:
            lately = time.monotonic() - 1
            lags = sorted(len(self.first_hand) - count for count, at in self.relayed.values() if at > lately)
            return len(lags) > 1 and lags[(len(lags) - 1) // 2] > LEAD

    def give(self, sock: socket.socket, lacks: int) -> None:
        """Some of what another lost. A seed gives each piece to one node, which relays it."""
        with self.changed:
            if time.monotonic() > self.given_at + 2:  # what is still lost did not get through
                self.given, self.given_at = 0, time.monotonic()
            seed = self.me in self.seeds
            lacks &= self.have & ~(self.given if seed else 0)
            # From the end: another seed that still deals is at the beginning.
            chosen = list(bits(lacks, BATCH))
            for index in chosen:
                self.given |= 1 << index
                self.undealt &= ~(1 << index)
        for index in chosen:
            self.send(sock, index, RELAY if seed else 0)
        self.send(sock, DEALT)

    def send(self, sock: socket.socket, index: int, relay: int = 0) -> None:
        sock.sendall(struct.pack("!I", index | relay), socket.MSG_MORE if index < IDLE else 0)
        for number in self.manifest.pieces[index] if index < IDLE else ():
            offset, size = self.manifest.part(index, number)
            with opened(self.root, self.manifest.files[number]) as fd:
                while size:
                    sent = os.sendfile(sock.fileno(), fd, offset, min(size, BLOCK))
                    if not sent:
                        raise ConnectionError("our file became shorter")
                    offset, size = offset + sent, size - sent
                    self.stats.sent += sent

    # What we take

    def follow(self, name: str) -> None:
        """Take what a node deals and relays; once we have everything, tell it."""
        while not self.stopping:
            complete = self.complete
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
            if self.complete == complete:
                self.pause(RETRY)

    def learn(self, name: str) -> None:
        with self.call(name, "hashes") as sock:
            told = exactly(sock, 32 * len(self.manifest.pieces))
        with self.changed:
            if all(self.manifest.hashes):
                return
            for index, known in enumerate(self.manifest.hashes):
                digest = told[32 * index : 32 * index + 32]
                self.manifest.hashes[index] = known or (digest if any(digest) else b"")
            if all(self.manifest.hashes):
                for index in bits(self.unread):
                    self.jobs.put(partial(self.reread, index))

    def take_all(self, sock: socket.socket, name: str, lost: bool = False) -> None:
        """Take pieces as they come, until there is no more when they are lost ones."""
        buffer = memoryview(bytearray(self.manifest.piece_bytes))
        said = 0.0
        ready = select.poll()
        ready.register(sock, select.POLLIN)
        while not self.stopping:
            index = word(sock)
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
                digest, got = hashlib.sha256(), 0
                while got < len(piece):
                    part = piece[got : got + CHUNK]
                    # Woken once, when all of it is here: half the processor time of small reads.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(part))
                    ready.poll((HURRY if lost else TIMEOUT) * 1000)
                    more = sock.recv_into(part)
                    if not more:
                        raise ConnectionError("it hung up")
                    digest.update(part[:more])
                    got += more
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
                self.take(index, piece, digest.digest() == self.manifest.hashes[index], name, relay)
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
            if not right or self.have >> index & 1:
                self.stats.wasted += len(piece)
                return
        at = 0
        try:
            for number in self.manifest.pieces[index]:
                offset, size = self.manifest.part(index, number)
                with opened(self.root, self.manifest.files[number], os.O_WRONLY) as fd:
                    while size:
                        done = os.pwrite(fd, piece[at : at + size], offset)
                        at, offset, size = at + done, offset + done, size - done
        except OSError as error:
            return self.fail(error)
        with self.changed:
            if self.have >> index & 1:
                self.stats.wasted += len(piece)
                return
            if relay:
                self.stats.from_seeds += len(piece)
                self.first_hand.append(index)
                self.more.notify_all()
            else:
                self.stats.from_nodes += len(piece)
            self.gained(index)

    def recover(self) -> None:
        """Ask again for what was lost with a node: when all was dealt, and little comes."""
        before, first, quiet = 0, 0.0, 0
        while not self.pause(QUIET) and not self.complete:
            came = self.stats.from_seeds + self.stats.from_nodes
            first = first or (came and time.monotonic() - QUIET)
            slow = (came - before) * (time.monotonic() - first) < came * QUIET / 4
            quiet = 0 if came > before else quiet + 1
            before = came
            if all(self.manifest.hashes) and not self.unread and (self.dealt and slow or quiet >= 5):
                others = sorted(self.others, key=lambda name: (name in self.seeds, random.random()))
                while any([self.ask(name) for name in others]) and not self.stopping:
                    pass

    def ask(self, name: str) -> int:
        """Take some lost pieces of a node; returns how many bytes."""
        before = self.have_bytes
        lacking = self.have != self.manifest.everything
        if lacking and name not in self.stats.dropped and time.monotonic() < self.heard[name] + 3:
            with suppress(OSError, ValueError), self.call(name, "lost") as sock:
                self.take_all(sock, name, lost=True)
        return self.have_bytes - before


def exactly(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) < size:
        raise ConnectionError("it hung up")
    return data


def word(sock: socket.socket) -> int:
    return struct.unpack("!I", exactly(sock, 4))[0]


def bits(pieces: int, most: int | None = None) -> Iterator[int]:
    """The numbers of the pieces, from the last."""
    while pieces and most != 0:
        index = pieces.bit_length() - 1
        pieces ^= 1 << index
        most = most and most - 1
        yield index


def address(name: str) -> tuple[str, int]:
    host, _, port = name.rpartition(":")
    return host.strip("[]"), int(port)


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextmanager
def opened(root: int, file: File, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(file.path, flags | os.O_NOFOLLOW, dir_fd=root)
    try:
        yield fd
    finally:
        os.close(fd)


def filled(fd: int, start: int, end: int) -> bool:
    """True when there is no hole between two offsets."""
    try:
        return os.lseek(fd, start, os.SEEK_DATA) == start and os.lseek(fd, start, os.SEEK_HOLE) >= end
    except OSError:  # nothing but a hole up to the end
        return False
