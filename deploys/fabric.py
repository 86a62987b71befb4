"""What NCCL is to be told on each host; all that is in the way on any of them is said at once.

Of hosts that serve with GPUs only: without them NCCL is not even loaded.
"""

from __future__ import annotations

from functools import cache
from threading import RLock

from pyinfra import host, inventory, state

from roles import nccl

from .cluster import Refused, asked, cluster
from .settings import Settings

_once = RLock()  # hosts are prepared side by side


def wanted() -> nccl.Wanted | None:
    """What this host gets; None where that is nothing. Refused names every host with a problem."""
    own = cluster().hosts[host.name]
    if _provided(own):
        host.get_fact(nccl.Look, address=own.address, _ignore_errors=True)  # each its own, side by side
    with _once:
        return _wanted().get(host.name)


def told(name: str, own: Settings, alone: bool) -> tuple[str, str]:
    """(what is to be in its file, as the host is now; or why nothing can be), for the doctor."""
    if not _provided(own):
        return "", ""
    on = inventory.get_host(name)
    seen = on.get_fact(nccl.Look, address=own.address, _ignore_errors=True)
    if seen is None:
        return "", ""
    its = _asked(own, alone)
    wrong = nccl.problems(seen, its)
    return ("", "; ".join(wrong)) if wrong else (nccl.wanted(seen, its).conf, "")


@cache
def _wanted() -> dict[str, nccl.Wanted]:
    """A host that cannot be asked is not among them: what it lacks is said by base.fit."""
    hosts, found, wrong = cluster().hosts, {}, []
    active = {member.name for member in state.activated_hosts}
    for name, own in hosts.items():
        if name not in active or not _provided(own):
            continue
        seen = asked(name).get_fact(nccl.Look, address=own.address, _ignore_errors=True)
        its = _asked(own, len(hosts) == 1)
        if seen and not (problems := nccl.problems(seen, its)):
            found[name] = nccl.wanted(seen, its)
        elif seen:
            wrong += [f"{name}: {problem}" for problem in problems]
    if wrong:
        raise Refused("; ".join(wrong))
    return found


def _asked(own: Settings, alone: bool) -> nccl.Asked:
    return nccl.Asked(own.address, own.interface, own.hcas, own.roce_traffic_class, alone)


def _provided(own: Settings) -> bool:
    return own.runtime == "cuda" and own.gpus > 0
