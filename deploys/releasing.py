"""From the plan to releases: what each replica is to run, and what of that differs from what it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from threading import RLock
from typing import Any

from pyinfra import host, inventory, state

import models
from models.plan import Plan, Replica
from models.release import TRIAL, Found, Release, merged
from models.rollout import Rollout, Step, back, before, rollout
from models.weights import stored_bytes
from roles import base, gang, gateway, lock, nccl, ray, releases, runtime, secret, service, vllm, weights
from roles.files import File

from . import boot, cards, drivers
from .cluster import Refused, asked, cluster, gateways, network_of, planned, plans, refusing

_once = RLock()  # hosts are prepared side by side


def found() -> dict[str, Found]:
    """Every replica as the hosts have it before this run."""
    with _once:
        return _found()


def change() -> Rollout:
    """What this run does."""
    with _once:
        return _change()


def release(replica: Replica) -> Release:
    """What a replica is to run."""
    with _once:
        return _release(replica.name)


def files(replica: Replica, name: str) -> list[File]:
    """All that a host has of a replica."""
    with _once:
        return _files(replica.name)[name]


def installed() -> dict[str, str]:
    """{replica: release} of this host, as this run was planned for."""
    return {name: its["installed"] for name, its in _kept()[host.name].items()}


def staying() -> list[Step]:
    """Replicas that this run does not touch, and that generate or are about to."""
    with _once:
        there = [Step(release, _found()[release.replica]) for release in _change().staying]
    return [step for step in there if step.old and step.old.settled]


def undone() -> Rollout:
    """What takes back what the last run did, or finishes the taking back."""
    with _once:
        return _undone()


def entry(deploy: str, change: Rollout) -> releases.Entry:
    """What the history says of this run."""
    gone = {name: (seen.release.id if seen.release else "", "") for name, seen in change.leaving.items()}
    changed = {step.name: (step.was.id if step.was else "", step.new.id) for step in change.steps}
    served = ", ".join(dict.fromkeys(step.new.serves for step in change.steps))
    return releases.Entry(
        run=lock.ID, who=lock.RUN["who"], deploy=deploy, model=served, replicas={**gone, **changed}
    )


def rebooting() -> list[str]:
    """The hosts that this run reboots; Refused when one is a gateway, unless its answers may be cut."""
    with _once:
        return _rebooting()


def idle() -> list[str]:
    """Those of them that no replica is on, once those are gone that leave."""
    stay = [seen.hosts for name, seen in found().items() if name not in change().leaving]
    busy = {name for hosts in (*stay, *(replica.hosts for replica in planned())) for name in hosts}
    return [name for name in rebooting() if name not in busy]


@cache
def _rebooting() -> list[str]:
    own = cluster().hosts[host.name]
    if own.reboot == "no":
        return []
    due = drivers.coming() | cards.coming() | boot.coming()  # what is not there yet is no fact
    hosts = [
        name
        for name in cluster().hosts
        if own.reboot == "all" or name in due or asked(name).get_fact(base.RebootDue)
    ]
    if (cut := [name for name in hosts if name in gateways()]) and not own.cut:
        raise Refused(
            f"{', '.join(cut)}: a gateway that is to be rebooted: it would cut all that it answers; make"
            " another host the gateway, or say --data cut=True"
        )
    return hosts


@cache
def _kept() -> dict[str, dict[str, dict[str, Any]]]:
    with _once:
        return {name: asked(name).get_fact(releases.Kept) for name in cluster().hosts}


def _found() -> dict[str, Found]:
    return merged(_kept())


@cache
def _change() -> Rollout:
    wanted = [_release(replica.name) for replica in planned()]
    return _whole(refusing(lambda: rollout(wanted, _found(), host.data.get("_replica"), _rebooting())))


def _whole(change: Rollout) -> Rollout:
    """It, where --limit leaves out no host that it wants."""
    whole([step.hosts for step in change.steps] + [seen.hosts for seen in change.leaving.values()])
    return change


def whole(wanted: Iterable[Sequence[str]]) -> None:
    """Refused when --limit leaves out one of these hosts. Those that the inventory lacks are not asked."""
    for name in dict.fromkeys(name for names in wanted for name in names):
        if name in cluster().hosts and inventory.get_host(name) not in state.activated_hosts:
            why = f"{name} has a part in what is to be done, and --limit leaves it out"
            raise Refused(f"{why}: add --limit {name}")


@cache
def _undone() -> Rollout:
    there = [name for name in cluster().hosts if asked(name).get_fact(gateway.Servers)]
    if there and not gateways():
        raise Refused(f"{there[0]} is a gateway, and the settings name none: say it with --data gateway=...")
    runs = asked(cluster().control.name).get_fact(releases.History, last=200)
    return _whole(refusing(lambda: back(_found(), before(runs))))


@cache
def _release(name: str) -> Release:
    replica, model = _replica(name), _plan(name).model
    return Release(
        replica=name,
        id=releases.identified(_files(name)),
        hosts=replica.hosts,
        address=replica.head.address,
        port=replica.ports.api,
        health_port=replica.ports.health,
        requests=vllm.requests(replica),
        devices=tuple(replica.devices),
        model=_model_path(replica),
        parts=tuple(part.unit for part in _parts(replica)[replica.head.name]),
        serves=model.name,
        names=vllm.names(model, replica),
    )


@cache
def _files(name: str) -> dict[str, list[File]]:
    replica = _replica(name)
    return {node.name: _on(replica, node.name) for node in replica.nodes}


def _on(replica: Replica, name: str) -> list[File]:
    own, model = cluster().hosts[name], _plan(replica.name).model
    environment = runtime.path(own.runtime, own.plugins)
    seed = secret.value(cluster().control)
    fabric = nccl.everywhere(own.roce_traffic_class)
    variables = {**network_of(name), **fabric, **service.devices(replica)}
    ours = vllm.variables(model, service.CACHE)
    made = []
    if ray.units(replica):
        caches = {key: value for key, value in ours.items() if key in vllm.CACHES}
        token = secret.derive(seed, f"ray {replica.name}")
        made += ray.files(replica, name, environment, {**variables, **caches}, token)
    if vllm.units(replica, name):
        template = models.template(model)
        made += vllm.files(
            replica,
            arguments={
                **_load_strategy(replica),
                **vllm.arguments(
                    model,
                    replica,
                    name,
                    _model_path(replica),
                    vllm.template_path(replica) if template else None,
                ),
            },
            environment=environment,
            variables={**variables, **ray.driver(replica), **ours},
            api_key=own.api_key or secret.derive(seed, "api key"),
            template=template,
        )
    made += gang.files(
        replica, name, parts=_parts(replica), token=secret.derive(seed, f"gang {replica.name}"),
        secrets=vllm.secrets_path(replica), gateway=bool(gateways()), hang=own.hang_timeout,
    )  # fmt: skip
    return made


def _parts(replica: Replica) -> dict[str, list[gang.Part]]:
    """Each host's units of a replica, in the order in which they start."""
    gcs = (replica.head.address, replica.ports.ray) if ray.units(replica) else None
    return {
        node.name: [
            *(
                gang.Part(unit, None if node == replica.head else gcs, (*ray.NEEDS, *vllm.RAY_NEEDS))
                for unit in ray.units(replica)
            ),
            *(gang.Part(unit, gcs) for unit in vllm.units(replica, node.name)),
        ]
        for node in replica.nodes
    }


def _load_strategy(replica: Replica) -> dict[str, str]:
    size = stored_bytes(_plan(replica.name).model.architecture)
    return weights.load_strategy(weights.disks(replica.hosts, _model_path(replica)), size)


def _model_path(replica: Replica) -> str:
    """Where vLLM finds the weights on each of its hosts."""
    own = cluster().hosts[replica.head.name]
    return own.weights_path or weights.path(_plan(replica.name).model)


def _replica(name: str) -> Replica:
    bare = name.removeprefix(TRIAL)
    found = next(replica for replica in planned() if replica.name == bare)
    return found if name == bare else found.trial


def _plan(name: str) -> Plan:
    """The plan that has a replica of that name."""
    bare = name.removeprefix(TRIAL)
    return next(made for made in plans() if bare in [replica.name for replica in made.replicas])
