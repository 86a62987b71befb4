"""Runs on a node, beside head.py and member.py: what they say to each other, a JSON object a line."""

import hashlib
import hmac
import json
import secrets
import socket
import threading
import time
from contextlib import suppress

LONGEST = 1 << 16  # bytes of a line
HANDSHAKE = 5.0  # seconds for who calls to prove itself


class Wire:
    """A connection; a line that is not here in time ends it."""

    def __init__(self, sock, patience):
        self.sock, self.patience, self.rest = sock, patience, b""
        self.closed, self.saying = False, threading.Lock()
        sock.settimeout(patience)

    def say(self, message):
        with self.saying:
            self.sock.sendall(json.dumps(message).encode() + b"\n")

    def hear(self):
        until = time.monotonic() + self.patience
        while b"\n" not in self.rest:
            left = until - time.monotonic()
            if left <= 0:
                raise ConnectionError("it did not finish its line")
            self.sock.settimeout(left)
            more = self.sock.recv(4096)
            if not more:
                raise ConnectionError("it hung up")
            self.rest += more
            if len(self.rest) > LONGEST:
                raise ConnectionError("it said too much")
        line, _, self.rest = self.rest.partition(b"\n")
        return _object(line)

    def close(self):
        self.closed = True
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # wakes who waits for a line
        self.sock.close()


def _object(line):
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ConnectionError("it said what we do not understand")
    return message


# Both ends prove that they know the token


def greet(wire, token, host):
    """The member's part."""
    ours, theirs = secrets.token_hex(16), str(wire.hear().get("nonce"))
    wire.say({"host": host, "nonce": ours, "proof": _proof(token, "member", host, theirs, ours)})
    if not _same(wire.hear().get("proof"), _proof(token, "head", host, theirs, ours)):
        raise ConnectionError("it does not know the token")


def greeted(wire, token, hosts):
    """The head's part: which of the hosts this is."""
    ours = secrets.token_hex(16)
    wire.say({"nonce": ours})
    said = wire.hear()
    host, theirs = str(said.get("host")), str(said.get("nonce"))
    if not _same(said.get("proof"), _proof(token, "member", host, ours, theirs)):
        raise PermissionError(f"{host} does not know the token")
    if host not in hosts:
        raise PermissionError(f"{host} is not one of {', '.join(hosts)}")
    wire.say({"proof": _proof(token, "head", host, ours, theirs)})
    return host


def _proof(token, *said):
    return hmac.new(
        token.encode(), json.dumps(["rackserve gang", *said]).encode(), hashlib.sha256
    ).hexdigest()


def _same(said, wanted):
    return hmac.compare_digest(str(said).encode(), wanted.encode())


def converse(wire, changed, beat, tell, hear):
    """Hand what is said to `hear` until the connection ends; say `tell()` once a beat, and when it differs.

    + changed: the condition under whose lock `tell` is asked, and which says when to ask
    """
    threading.Thread(target=_telling, args=(wire, changed, beat, tell), daemon=True).start()
    try:
        while True:
            hear(wire.hear())
    finally:
        wire.close()
        with changed:
            changed.notify_all()


def _telling(wire, changed, beat, tell):
    said = None
    try:
        while not wire.closed:
            with changed:
                changed.wait_for(lambda before=said: wire.closed or tell() != before, beat)
                said = tell()
            wire.say(said)
    except OSError:
        wire.close()


def listen(address, serve, most):
    """Serve each caller in a thread, `most` at once; for ever. An address that is not here yet is awaited."""
    server, left = _server(address), threading.BoundedSemaphore(most)

    def served(sock):
        try:
            with sock:
                serve(sock)
        except OSError:
            pass  # whoever it was is gone
        finally:
            left.release()

    while True:
        try:
            sock, _ = server.accept()
        except OSError:  # no more files
            time.sleep(0.1)
            continue
        if left.acquire(blocking=False):
            threading.Thread(target=served, args=(sock,), daemon=True).start()
        else:
            sock.close()


def _server(address):
    family, said = socket.AF_INET6 if ":" in address[0] else socket.AF_INET, None
    while True:
        try:
            return socket.create_server(tuple(address), family=family, backlog=128)
        except OSError as error:
            if str(error) != said:
                said = str(error)
                print(f"cannot listen on {address[0]} port {address[1]}, tries again: {said}")
            time.sleep(1)
