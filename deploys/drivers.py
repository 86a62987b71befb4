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


def wanted() -> nvidia.Wanted | None:
    """What this host gets; None where its driver is left alone. Refused names every host with a problem."""
    if _provided(cluster().hosts[host.name]):
        host.get_fact(nvidia.Look, _ignore_errors=True)  # each its own, side by side, before one asks all
    with _once:
        return _wanted().get(host.name)


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
    for name, own in _asked():
        if name in seen:
            found = nvidia.problems(seen[name], str(own.driver), own.driver_source, own.gpus)
            wrong += [f"{name}: {problem}" for problem in found]
    if wrong:
        raise Refused("; ".join(wrong))
    found = {
        name: nvidia.wanted(seen[name], str(own.driver), own.driver_source)
        for name, own in _asked()
        if name in seen and not nvidia.yours(seen[name], str(own.driver), own.driver_source)
    }
    _coming.update(name for name, its in found.items() if not its.version(seen[name]))
    return found


def _seen() -> dict[str, nvidia.Seen]:
    """A host that cannot be asked is not among them: what it lacks is said by base.fit."""
    looks = {name: asked(name).get_fact(nvidia.Look, _ignore_errors=True) for name, _ in _asked()}
    return {name: look for name, look in looks.items() if look}


def _asked() -> list[tuple[str, Settings]]:
    active = {member.name for member in state.activated_hosts}
    return [(name, own) for name, own in cluster().hosts.items() if name in active and _provided(own)]


def _provided(own: Settings) -> bool:
    return own.runtime == "cuda" and own.gpus > 0 and own.driver is not False
