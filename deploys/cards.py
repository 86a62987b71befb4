"""What each host is to have for its network cards; all that is in the way on any is said at once."""

from __future__ import annotations

from functools import cache
from threading import RLock

from pyinfra import host, state

from roles import ofed

from .cluster import Refused, asked, cluster

_once = RLock()  # hosts are prepared side by side

_coming: set[str] = set()


def wanted() -> ofed.Wanted | None:
    """What this host gets, where the inventory names a release. Refused names every host with a problem."""
    if cluster().hosts[host.name].doca_ofed:
        host.get_fact(ofed.Look, _ignore_errors=True)  # each its own, side by side, before one asks all
    with _once:
        return _wanted().get(host.name)


def coming() -> set[str]:
    """The hosts on which this run, if it provisions, installs modules that only a reboot loads."""
    with _once:
        return set(_coming)


@cache
def _wanted() -> dict[str, ofed.Wanted]:
    """A host that cannot be asked is not among them: what it lacks is said by base.fit."""
    active = {member.name for member in state.activated_hosts}
    releases = {name: own.doca_ofed for name, own in cluster().hosts.items() if own.doca_ofed}
    looks = {
        name: asked(name).get_fact(ofed.Look, _ignore_errors=True) for name in releases if name in active
    }
    seen = {name: look for name, look in looks.items() if look}
    if wrong := [f"{name}: {said}" for name in seen for said in ofed.problems(seen[name], releases[name])]:
        raise Refused("; ".join(wrong))
    its = {name: ofed.wanted(look, releases[name]) for name, look in seen.items()}
    _coming.update(name for name, one in its.items() if not one.is_there(seen[name]))
    return its
