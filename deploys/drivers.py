"""The driver that each host is to have; all that is in the way on any of them is said at once."""

from __future__ import annotations

from functools import cache
from threading import RLock

from pyinfra import host

from roles import nvidia

from . import boot, cards, fabric
from .cluster import cluster, here, plan, refuse, seen
from .settings import Settings

_once = RLock()  # hosts are prepared side by side

_coming: set[str] = set()
_waiting: dict[str, nvidia.Wanted] = {}


def wanted() -> nvidia.Wanted | None:
    """What this host gets now, or None. Refused names every host with a problem.

    It is what provisioning looks at first, so that it names those of cards, fabric and boot, too.
    """
    refuse([*problems(), *cards.problems(), *fabric.problems(), *boot.problems()])
    with _once:
        its = _wanted()[0].get(host.name)
        return None if host.name in _waiting else its


def problems() -> list[str]:
    """All that is in the way, on any host."""
    if _with_gpus(here()):
        host.get_fact(nvidia.Look, _ignore_errors=True)  # each its own, side by side, before one asks all
    with _once:
        return _wanted()[1]


def waiting() -> dict[str, nvidia.Wanted]:
    """{host: what it gets when what serves there is out}, of this run, if it provisions."""
    with _once:
        return dict(_waiting)


def needed() -> bool:
    """This host serves with GPUs, and is not rebooted for its driver first."""
    own = here()
    return own.runtime == "cuda" and own.reboot == "no" and bool(plan().on(host.name))


def coming() -> set[str]:
    """The hosts on which this run, if it provisions, installs another driver: a reboot is then due there."""
    with _once:
        return set(_coming)


@cache
def _wanted() -> tuple[dict[str, nvidia.Wanted], list[str]]:
    looks = seen(nvidia.Look, _with_gpus)  # also where the driver is its user's: that they are there
    its: dict[str, nvidia.Wanted] = {}
    wrong: list[str] = []
    for name, look in looks.items():
        own = cluster().hosts[name]
        if own.driver is False:
            wrong += [f"{name}: {problem}" for problem in nvidia.absent(look, own.gpus)]
            continue
        said = str(own.driver), own.driver_source
        found = nvidia.problems(look, *said, own.gpus, own.reboot != "no")
        wrong += [f"{name}: {problem}" for problem in found]
        if not found and not nvidia.yours(look, *said):
            its[name] = nvidia.wanted(look, *said)
    if wrong:
        return {}, wrong
    _waiting.update({name: one for name, one in its.items() if one.waits(looks[name])})
    _coming.update(name for name, one in its.items() if name in _waiting or not one.version(looks[name]))
    return its, []


def _with_gpus(own: Settings) -> bool:
    return own.runtime == "cuda" and own.gpus > 0
