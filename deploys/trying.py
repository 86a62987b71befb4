"""Replicas that are started without weights, to be seen to generate, and leave nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pyinfra import host

from models.plan import Replica
from models.release import TRIAL
from roles import gang, health, releases, units, weights
from roles import replicas as folders
from roles.barrier import barrier

from . import releasing, replacing
from .cluster import Refused, planned

UNITS = f"rackserve-{TRIAL}*.service"

#: Of this run, by replica: why it did not generate.
problems: dict[str, str] = {}


def replicas() -> list[Replica]:
    """Every replica of the plan, without weights; Refused where something is served."""
    served = [f"{name} on {', '.join(its.hosts)}" for name, its in releasing.found().items() if its.hosts]
    if served:
        raise Refused(
            f"{'; '.join(served)}: served, and a trial wants its GPUs; its kernels are"
            " compiled already. To try all the same: rackserve deploy teardown"
        )
    return [replica.trial for replica in planned()]


def start(tried: Sequence[Replica]) -> None:
    """All at once; waits until each generates, or says why not."""
    for replica in host.loop(_here(tried)):
        id = releasing.release(replica).id
        releases.put(name=f"Put {replica.name} in place", replica=replica.name, id=id)
    barrier(name="All is in place")
    for replica in host.loop(_here(tried)):
        gang.started(name=f"Start {replica.name}", replica=replica.name)
    barrier(name="Every replica starts")
    for replica in host.loop(_led(tried)):
        otherwise = partial(problems.setdefault, replica.name)
        replacing.generate(releasing.release(replica), otherwise)
    barrier(name="Every replica was tried")


def end(tried: Sequence[Replica]) -> None:
    """Nothing is left of it; the run fails where one did not generate."""
    replacing.stop({replica.name: replica.hosts for replica in tried})
    for replica in host.loop(_here(tried)):
        releases.put(name=f"Remove {replica.name}", replica=replica.name, id=None)
        releases.forgotten(name=f"Forget the release of {replica.name}", replica=replica.name)
    units.only(name="Remove its units", pattern=UNITS)
    folders.only(name="Remove what it wrote", keep=["gateway"])
    weights.undescribed(name="Remove the description")
    for replica in host.loop(_led(tried)):
        health.judged(name=f"{replica.name} generated", problem=partial(problems.get, replica.name, ""))
    barrier(name="Every replica generated without weights")


def _here(tried: Sequence[Replica]) -> list[Replica]:
    return [replica for replica in tried if host.name in replica.hosts]


def _led(tried: Sequence[Replica]) -> list[Replica]:
    return [replica for replica in tried if host.name == replica.head.name]
