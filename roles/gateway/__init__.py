"""One OpenAI-compatible endpoint in front of all replicas: HAProxy.

Another router can take its place: what the rest knows of it are these names, and `Server`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyinfra.api import deploy
from pyinfra.operations import files

from roles import units as systemd

from .config import STATISTICS, Server, render
from .operations import ADMIN, CONFIG, RUN, UNIT, Servers, configured, drain, drained, ready

__all__ = [
    "PACKAGES",
    "STATISTICS",
    "UNIT",
    "Server",
    "Servers",
    "drain",
    "drained",
    "nothing",
    "ready",
    "render",
    "serving",
]

PACKAGES = ("haproxy",)

TEMPLATE = Path(__file__).with_name("gateway.service.j2")


@deploy("Gateway")
def serving(servers: Sequence[Server], port: int) -> None:
    """HAProxy running for these replicas; a change is loaded without a request lost."""
    files.put(
        name="Install gateway.py", src=str(Path(__file__).with_name("admin.py")), dest=ADMIN, mode="644"
    )
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
    files.file(name="Remove gateway.py", path=ADMIN, present=False)
