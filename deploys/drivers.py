"""The driver that each host is to have; all that is in the way on any of them is said at once."""

from __future__ import annotations

from functools import cache
from threading import RLock

from pyinfra import host, state

from roles import nvidia

from .cluster import Refused, asked, cluster, plan
from .settings import Settings

_once = RLock()  # hosts are prepared side by side

_coming: set[str] = set()
_waiting: dict[str, nvidia.Wanted] = {}


def wanted() -> nvidia.Wanted | None:
    """What this host gets now, or None. Refused names every host with a problem."""
    if _provided(cluster().hosts[host.name]):
        host.get_fact(nvidia.Look, _ignore_errors=True)  # each its own, side by side, before one asks all
    with _once:
        its = _wanted().get(host.name)
        return None if host.name in _waiting else its


def waiting() -> dict[str, nvidia.Wanted]:
    """{host: what it gets when what serves there is out}, of this run, if it provisions."""
    with _once:
        return dict(_waiting)


def needed() -> bool:
    """This host serves with GPUs, and is not rebooted for its driver first."""
    own = cluster().hosts[host.name]
    return own.runtime == "cuda" and own.reboot == "no" and bool(plan().on(host.name))


def coming() -> set[str]:
    """The hosts on which this run, if it provisions, installs another driver: a reboot is then due there."""
    with _once:
        return set(_coming)


@cache
def _wanted() -> dict[str, nvidia.Wanted]:
    seen, wrong = _seen(), []
    asked_for = [(name, own) for name, own in _asked() if name in seen]
    for name, own in asked_for:
        reboots = own.reboot != "no"
        found = nvidia.problems(seen[name], str(own.driver), own.driver_source, own.gpus, reboots)
        wrong += [f"{name}: {problem}" for problem in found]
    if wrong:
        raise Refused("; ".join(wrong))
    its = {
        name: nvidia.wanted(seen[name], str(own.driver), own.driver_source)
        for name, own in asked_for
        if not nvidia.yours(seen[name], str(own.driver), own.driver_source)
    }
    _waiting.update({name: one for name, one in its.items() if one.waits(seen[name])})
    _coming.update(name for name, one in its.items() if name in _waiting or not one.version(seen[name]))
    return its


def _seen() -> dict[str, nvidia.Seen]:
    """A host that cannot be asked is not among them: what it lacks is said by base.fit."""
    looks = {name: asked(name).get_fact(nvidia.Look, _ignore_errors=True) for name, _ in _asked()}
    return {name: look for name, look in looks.items() if look}


def _asked() -> list[tuple[str, Settings]]:
    active = {member.name for member in state.activated_hosts}
    return [(name, own) for name, own in cluster().hosts.items() if name in active and _provided(own)]


def _provided(own: Settings) -> bool:
    return own.runtime == "cuda" and own.gpus > 0 and own.driver is not False
