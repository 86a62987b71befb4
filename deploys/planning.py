"""From a cluster's settings to a plan for each of its models. Asks the hub, and what was staged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from models.errors import InventoryError
from roles import gateway, weights

from .settings import Settings, pools, settings

if TYPE_CHECKING:
    from models.model import Model
    from models.plan import Node, Plan, Request

    from .cluster import Cluster

#: The replicas of the first model are numbered from 0, those of the next from here, and so on: a model
#: may get more of them, or be replaced by another, and the others keep their names.
NUMBERS = 1000


def request_of(own: Settings, first: int = 0) -> Request:
    """What the settings say of a plan; `first` is the number of its first replica."""
    from models.fit import Targets
    from models.plan import Request

    return Request(
        targets=Targets(context=own.context, concurrency=own.concurrency),
        optimize=own.optimize,  # type: ignore[arg-type]
        replicas=own.replicas or (None if own.optimize else 1),
        tensor_parallel=own.tensor_parallel,
        pipeline_parallel=own.pipeline_parallel,
        executor=own.executor,  # type: ignore[arg-type]
        port=own.port,
        first=first,
    )


def plans_of(cluster: Cluster, said: Mapping[str, Any] | None = None) -> list[Plan]:
    """A plan for each model that the cluster's hosts are to serve, in the inventory's order.

    + said: what is set for hosts that do not set it themselves
    """
    made, found = [], pools(cluster.hosts)
    for place, names in enumerate(found.values()):
        own = cluster.hosts[names[0]]
        if said:
            own = settings(names[0], {**said, **cluster.data[names[0]]})
        if not own.model and len(found) > 1:
            raise InventoryError(
                f"{', '.join(names)}: no model, as others have: set it for the group, or gpus=0"
            )
        nodes = [node for node in cluster.nodes if node.name in names]
        made.append(plan_of(cluster, own, nodes, place * NUMBERS))
    return made


def of_host(made: Sequence[Plan], name: str) -> Plan:
    """The plan that a host is in; the first where it is in none."""
    return next((its for its in made if name in its.hosts), made[0])


def plan_of(cluster: Cluster, own: Settings, nodes: Sequence[Node], first: int = 0) -> Plan:
    """The plan for hosts of a cluster that share the settings in `own`.

    The hub is asked here, as the control host is told to ask it; a revision means the commit that
    was staged for it, also when the hub has a newer one.
    """
    # Imported late, like Node: of a run that changes nothing and plans nothing it is a thirtieth.
    from models import source
    from models.planner import planned

    control, commit = cluster.hosts[cluster.control.name], ""
    own = replace(own, hf_endpoint=control.hf_endpoint, hf_token=control.hf_token)
    if source.on_hub(own.model):
        commit = weights.recorded(cluster.control, own.model, own.revision or "main")
    made = planned(model_of(own, commit), nodes, request_of(own, first))
    for replica in made.replicas if own.gateway else ():
        if replica.ports.api == own.gateway_port:
            raise InventoryError(
                f"gateway_port is {own.gateway_port}, the port of {replica.name}: set another"
            )
        if gateway.STATISTICS in (own.gateway_port, replica.ports.api):
            raise InventoryError(f"{gateway.STATISTICS} is the port of the gateway's statistics: set another")
    gpu = made.replicas[0].gpu
    if gpu is not None and gpu.vendor == "amd":
        raise InventoryError(f"{gpu.name}: it can be planned, not served: there is no ROCm runtime yet")
    return made


def model_of(own: Settings, commit: str = "") -> Model:
    """The model that the settings ask for, with the user's arguments over its own.

    + commit: of the hub's, what was staged for the revision; its newest unless given
    """
    from models import source

    if not own.model:
        raise InventoryError("no model: set it with --data model=NAME; names: rackserve models")
    if source.is_folder(own.model) and own.weights_path is None:
        raise InventoryError(f"{own.model} is a folder here: copy it to every node and set weights_path")
    chosen = _found(own.model, commit or own.revision, own.hf_endpoint, own.hf_token)
    return chosen.with_(
        revision=own.revision,
        preset=own.preset or own.optimize,
        arguments=own.vllm_args,
        environment=own.vllm_env,
    )


#: Hosts are prepared side by side, and the hub is asked once.
_asking = Lock()


def _found(*what: str | None) -> Model:
    with _asking:
        return _find(*what)


@cache
def _find(what: str, *where: str | None) -> Model:
    from models import source

    return source.find(what, *where)
