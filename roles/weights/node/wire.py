"""Runs on a node, beside swarm.py: connections, and what is said on them whatever it is about."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

CHUNK = 1 << 18  # bytes received in one call, or queued for sending
TIMEOUT = 10  # seconds without a byte after which a connection is given up
LINE = 1 << 20  # bytes of what a caller may say it wants


class Endpoint:
    """One node's threads and connections, which end together."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # of all that follows
        self.changed = threading.Condition(self.lock)
        self.stopping = False
        self.error: BaseException | None = None
        self.threads: set[threading.Thread] = set()
        self.sockets: dict[socket.socket, str] = {}  # and whom we called

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
            threads = list(self.threads)
        self.hang_up(everyone=True)
        for thread in threads:
            thread.join()

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

    def listen(self, server: socket.socket, serve: Callable, most: int) -> None:
        """Serve each caller in a thread, while there are not too many."""
        with self.using(server) as server:
            while not self.stopping:
                try:
                    sock, _ = server.accept()
                except OSError:  # woken by stop(), or nothing within the timeout, or no more files
                    self.pause(0.01)
                    continue
                if len(self.threads) > most:
                    sock.close()
                else:
                    self.start(serve, sock)

    @contextmanager
    def using(self, sock: socket.socket, whom: str = "", timeout: int = TIMEOUT) -> Iterator[socket.socket]:
        with sock:
            tune(sock, timeout)
            with self.changed:
                if self.stopping:
                    raise ConnectionError("the run ends")
                self.sockets[sock] = whom
            try:
                yield sock
            finally:
                with self.changed:
                    del self.sockets[sock]


def tune(sock: socket.socket, timeout: int) -> None:
    # In the kernel, so that a call that moves a whole block is one system call.
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", timeout, 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A long queue would hide that a node is behind.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, CHUNK)


def exactly(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) < size:
        raise ConnectionError("it hung up")
    return data


def word(sock: socket.socket) -> int:
    return struct.unpack("!I", exactly(sock, 4))[0]


def send_word(sock: socket.socket, value: int, more: bool = False) -> None:
    sock.sendall(struct.pack("!I", value), socket.MSG_MORE if more else 0)


def receive(sock: socket.socket, piece: memoryview, timeout: int) -> bytes:
    """Fill a piece; returns its sha256."""
    ready = select.poll()
    ready.register(sock, select.POLLIN)
    digest, got = hashlib.sha256(), 0
    while got < len(piece):
        part = piece[got : got + CHUNK]
        # Woken once, when all of it is here: half the processor time of small reads.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(part))
        ready.poll(timeout * 1000)
        more = sock.recv_into(part)
        if not more:
            raise ConnectionError("it hung up")
        digest.update(part[:more])
        got += more
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return digest.digest()


# Both ends prove that they know the secret, for the name that was called


def greet(sock: socket.socket, secret: bytes, name: str) -> None:
    theirs, ours = exactly(sock, 32), secrets.token_bytes(32)
    sock.sendall(ours + _sign(secret, b"caller", name.encode(), theirs, ours))
    if not hmac.compare_digest(exactly(sock, 32), _sign(secret, b"called", name.encode(), theirs, ours)):
        raise ConnectionError("it does not know the secret")


def greeted(sock: socket.socket, secret: bytes, me: str) -> bool:
    """True when the caller knows the secret."""
    ours = secrets.token_bytes(32)
    sock.sendall(ours)
    theirs, proof = exactly(sock, 32), exactly(sock, 32)
    if not hmac.compare_digest(proof, _sign(secret, b"caller", me.encode(), ours, theirs)):
        return False
    sock.sendall(_sign(secret, b"called", me.encode(), ours, theirs))
    return True


def _sign(secret: bytes, role: bytes, *said: bytes) -> bytes:
    return hmac.digest(secret, b"rackserve swarm " + role + b"".join(said), "sha256")


def say(sock: socket.socket, request: dict[str, Any]) -> None:
    line = json.dumps(request).encode()
    sock.sendall(struct.pack("!I", len(line)) + line)


def hear(sock: socket.socket) -> dict[str, Any]:
    return json.loads(exactly(sock, min(word(sock), LINE)))


def address(name: str) -> tuple[str, int]:
    host, _, port = name.rpartition(":")
    return host.strip("[]"), int(port)


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
