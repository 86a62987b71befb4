"""Hosts on which nothing serves get the driver that waited for that, and are rebooted."""

from __future__ import annotations

from collections.abc import Sequence

from pyinfra import host

from roles import base, lock, nvidia
from roles.barrier import barrier

from . import drivers
from .cluster import on_control


def reboot(hosts: Sequence[str]) -> None:
    """All at once."""
    if not hosts:
        return
    if waited := [name for name in hosts if name in drivers.waiting()]:
        if host.name in waited:
            nvidia.driver(drivers.waiting()[host.name], staged=True)
        barrier(name=f"{', '.join(waited)} has its driver")
    for name in host.loop([name for name in hosts if name == host.name]):
        base.rebooted(name=f"Reboot {name}")
    barrier(name=f"{', '.join(hosts)} is up again")
    if on_control():
        lock.kept(name="Keep the lock")
