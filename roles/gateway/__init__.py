"""One OpenAI-compatible endpoint in front of all replicas: HAProxy.

Another router can take its place: what the rest knows of it are these names, and `Server`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import files

from roles import units as systemd

from .config import STATISTICS, Server, render
from .operations import (
    ADMIN,
    CONFIG,
    RUN,
    UNIT,
    WATCH,
    Configuration,
    Servers,
    configured,
    drain,
    drained,
    ended,
    enough,
    ready,
    seen,
    watched,
)

__all__ = [
    "PACKAGES",
    "STATISTICS",
    "UNIT",
    "Configuration",
    "Server",
    "Servers",
    "drain",
    "drained",
    "ended",
    "enough",
    "nothing",
    "ready",
    "render",
    "seen",
    "serving",
    "watched",
]

PACKAGES = ("haproxy",)

PROGRAMS = {"admin.py": ADMIN, "watch.py": WATCH}
TEMPLATE = Path(__file__).with_name("gateway.service.j2")


@deploy("Gateway")
def serving(servers: Sequence[Server], port: int) -> None:
    """HAProxy running for these replicas; a change is loaded without a request lost."""
    for name, dest in host.loop(PROGRAMS.items()):
        files.put(name=f"Install {dest}", src=str(Path(__file__).with_name(name)), dest=dest, mode="644")
    written = files.template(
        name=f"Write {UNIT}",
        src=str(TEMPLATE), dest=systemd.path(UNIT), mode="644",
        config=CONFIG, run=RUN, admin=ADMIN,
    )  # fmt: skip
    configured(name="Load haproxy.cfg", content=render(servers, port, RUN))
    systemd.running(name=f"Run {UNIT}", unit=UNIT, reads=[], changed=[written])


@deploy("Gateway")
def nothing() -> None:
    """The host without what the gateway leaves besides its folder and unit."""
    for path in host.loop(PROGRAMS.values()):
        files.file(name=f"Remove {path}", path=path, present=False)
