"""The cluster's secret: 32 random bytes on the control host, from which keys are derived.

It is read by root alone, travels over SSH's own stream, and is never an argument.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator

from gevent.lock import RLock
from pyinfra import host
from pyinfra.api import FactBase, Host, StringCommand, operation

from roles import files, remote

PATH = "/etc/rackserve/secret"

_guard = RLock()
_known: dict[str, str] = {}


class Secret(FactBase[str]):
    """The secret in hex, or the empty string."""

    def command(self) -> str:
        return f"cat {PATH} 2>/dev/null || true"

    def process(self, output: list[str]) -> str:
        return "".join(output).strip()

    @staticmethod
    def default() -> str:
        return ""


def value(control: Host) -> str:
    """The control host's secret; a new one for this run when it has none yet."""
    with _guard:
        if control.name not in _known:
            _known[control.name] = _read(control) or secrets.token_hex(32)
        return _known[control.name]


def _read(on: Host) -> str:
    with _guard, remote.unseen(on):
        return on.get_fact(Secret)


def derive(secret: str, purpose: str) -> str:
    """A key of 40 hex digits for one purpose; knowing it tells nothing of the others."""
    return hmac.new(bytes.fromhex(secret), purpose.encode(), hashlib.sha256).hexdigest()[:40]


@operation()
def present() -> Iterator[StringCommand]:
    """The secret is on this host; one that is there is kept."""
    if _read(host):
        host.noop("the secret is there")
        return
    yield from files.write_secret(PATH, value(host) + "\n")
