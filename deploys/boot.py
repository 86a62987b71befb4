"""What hosts are to be booted with; all that is in the way on any of them is said at once."""

from __future__ import annotations

from functools import cache
from threading import RLock

from pyinfra import host

from roles import base

from .cluster import here, refuse, seen

_once = RLock()  # hosts are prepared side by side

_coming: set[str] = set()


def wanted() -> base.Booted | None:
    """How this host boots, where its IOMMU is to pass through. Refused names every host with a problem."""
    refuse(problems())
    with _once:
        return _wanted()[0].get(host.name)


def problems() -> list[str]:
    """All that is in the way, on any host."""
    if here().iommu:
        host.get_fact(base.Boot, _ignore_errors=True)  # each its own, side by side, before one asks all
    with _once:
        return _wanted()[1]


def coming() -> set[str]:
    """The hosts that this run, if it provisions, tells something that only a reboot brings."""
    with _once:
        return set(_coming)


@cache
def _wanted() -> tuple[dict[str, base.Booted], list[str]]:
    looks = seen(base.Boot, lambda own: own.iommu)
    wrong = [f"{name}: {said}" for name, its in looks.items() if (said := base.cannot_boot(its))]
    if not wrong:
        _coming.update(name for name, its in looks.items() if its.parameter not in its.now)
    return looks, wrong
