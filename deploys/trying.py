"""Replicas that are started without weights, to be seen to generate, and leave nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pyinfra import host

from models.plan import Plan, Replica
from models.release import TRIAL
from roles import gang, health, releases, units, weights
from roles import replicas as folders
from roles.barrier import barrier

from . import releasing, replacing, staging
from .cluster import Refused, on_control, planned

#: Of this run, by replica: why it did not generate.
problems: dict[str, str] = {}


def replicas() -> list[Replica]:
    """Those of the plan on whose hosts nothing is served, without weights; Refused where there are none."""
    served = {name for its in releasing.found().values() for name in its.hosts}
    free = [replica for replica in planned() if not served & {*replica.hosts}]
    if not free:
        raise Refused(
            f"{', '.join(sorted(served))}: something is served there, and a trial wants the GPUs for itself."
            " To try all the same: rackserve deploy teardown"
        )
    releasing.whole(replica.hosts for replica in free)
    if on_control() and (busy := [one.name for one in planned() if one not in free]):
        host.log(f"{', '.join(busy)}: not tried, for something is served on its nodes")
    return [replica.trial for replica in free]


def undescribed() -> list[Plan]:
    """Those of the plans on whose hosts nothing says what their model is."""
    return [made for made in staging.fetched() if weights.lacking(made.hosts, made.model)]


def over() -> None:
    """What a trial left that broke off is gone, but for the programs that look after a replica."""
    units.only(name="Stop what was tried", pattern=f"rackserve-{TRIAL}*.service")
    releases.untried(name="Forget what was tried")
    weights.undescribed(name="Remove what stood in for weights")


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
        replacing.generate(releasing.release(replica), partial(_failed, replica.name))
    barrier(name="Every replica was tried")


def end(tried: Sequence[Replica]) -> None:
    """Nothing is left of it; the run fails where one did not generate."""
    replacing.stop({replica.name: replica.hosts for replica in tried})
    for replica in host.loop(_here(tried)):
        releases.put(name=f"Remove {replica.name}", replica=replica.name, id=None)
    folders.only(name="Remove what it wrote", keep=[*releasing.found(), "gateway"])
    over()
    for replica in host.loop(_led(tried)):
        health.judged(name=f"{replica.name} generated", problem=partial(problems.get, replica.name, ""))
    barrier(name="Every replica generated without weights")


def _failed(name: str, problem: str) -> None:
    problems[name] = f"{name}: {problem}"
    host.log(problems[name])  # now: a node that is gone may keep the run from its end


def _here(tried: Sequence[Replica]) -> list[Replica]:
    return [replica for replica in tried if host.name in replica.hosts]


def _led(tried: Sequence[Replica]) -> list[Replica]:
    return [replica for replica in tried if host.name == replica.head.name]
