"""What NCCL is to be told on each host; all that is in the way on any of them is said at once.

Of hosts that serve with GPUs only: without them NCCL is not even loaded.
"""

from __future__ import annotations

from functools import cache
from threading import RLock

from pyinfra import host, inventory

from roles import nccl

from .cluster import cluster, here, refuse, seen
from .settings import Settings

_once = RLock()  # hosts are prepared side by side


def wanted() -> nccl.Wanted | None:
    """What this host gets; None where that is nothing. Refused names every host with a problem."""
    refuse(problems())
    with _once:
        return _wanted()[0].get(host.name)


def problems() -> list[str]:
    """All that is in the way, on any host."""
    own = here()
    if _provided(own):
        host.get_fact(nccl.Look, address=own.address, _ignore_errors=True)  # each its own, side by side
    with _once:
        return _wanted()[1]


def told(name: str, own: Settings, alone: bool) -> tuple[str, str]:
    """(what is to be in its file, as the host is now; or why nothing can be), for the doctor."""
    if not _provided(own):
        return "", ""
    on = inventory.get_host(name)
    look = on.get_fact(nccl.Look, address=own.address, _ignore_errors=True)
    if look is None:
        return "", ""
    its = _asked(own, alone)
    wrong = nccl.problems(look, its)
    return ("", "; ".join(wrong)) if wrong else (nccl.wanted(look, its).conf, "")


@cache
def _wanted() -> tuple[dict[str, nccl.Wanted], list[str]]:
    """A host that cannot be asked is not among them: what it lacks is said by cluster.fit."""
    hosts = cluster().hosts
    looks = seen(nccl.Look, _provided, lambda own: {"address": own.address})
    its = {name: _asked(hosts[name], len(hosts) == 1) for name in looks}
    if wrong := [f"{name}: {said}" for name in looks for said in nccl.problems(looks[name], its[name])]:
        return {}, wrong
    return {name: nccl.wanted(look, its[name]) for name, look in looks.items()}, []


def _asked(own: Settings, alone: bool) -> nccl.Asked:
    return nccl.Asked(own.address, own.interface, own.hcas, own.roce_traffic_class, alone)


def _provided(own: Settings) -> bool:
    return own.runtime == "cuda" and own.gpus > 0
