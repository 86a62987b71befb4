"""What each host is to have for its network cards; all that is in the way on any is said at once."""

from __future__ import annotations

from functools import cache
from threading import RLock

from pyinfra import host

from roles import ofed

from .cluster import cluster, here, refuse, seen

_once = RLock()  # hosts are prepared side by side

_coming: set[str] = set()


def wanted() -> ofed.Wanted | None:
    """What this host gets, where the inventory names a release. Refused names every host with a problem."""
    refuse(problems())
    with _once:
        return _wanted()[0].get(host.name)


def problems() -> list[str]:
    """All that is in the way, on any host."""
    if here().doca_ofed:
        host.get_fact(ofed.Look, _ignore_errors=True)  # each its own, side by side, before one asks all
    with _once:
        return _wanted()[1]


def coming() -> set[str]:
    """The hosts on which this run, if it provisions, installs modules that only a reboot loads."""
    with _once:
        return set(_coming)


@cache
def _wanted() -> tuple[dict[str, ofed.Wanted], list[str]]:
    looks = seen(ofed.Look, lambda own: own.doca_ofed)
    releases = {name: cluster().hosts[name].doca_ofed for name in looks}
    if wrong := [f"{name}: {said}" for name in looks for said in ofed.problems(looks[name], releases[name])]:
        return {}, wrong
    its = {name: ofed.wanted(look, releases[name]) for name, look in looks.items()}
    _coming.update(name for name, one in its.items() if not one.is_there(looks[name]))
    return its, []
