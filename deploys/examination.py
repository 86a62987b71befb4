"""What the inventory and its plan promise of each host: what the doctor compares with what it sees."""

from __future__ import annotations

from functools import cache
from threading import Lock

from pyinfra import state
from pyinfra.api.exceptions import PyinfraError

from models.errors import BadInput
from models.plan import Plan, Replica
from models.weights import stored_bytes
from roles import doctor, gateway, runtime, weights

from . import fabric
from .cluster import Cluster, gateways_of, reached
from .planning import of_host, plans_of
from .settings import Settings

#: Echo requests go to so many of the hosts that follow in the inventory.
NEIGHBOURS = 8

_planning = Lock()


def expected(name: str) -> doctor.Expected:
    """What is expected of a host; without a plan, what the inventory alone says."""
    cluster = _cluster()
    own, made = cluster.hosts[name], plans()
    its = None if isinstance(made, str) else of_host(made, name)
    mine = its.on(name) if its else []
    first = name == cluster.control.name
    told, untold = fabric.told(name, own, alone=len(cluster.hosts) == 1)
    path = own.weights_path or (weights.path(its.model) if its else "")
    return doctor.Expected(
        address=own.address,
        interface=own.interface,
        gpus=own.gpus,
        gpu=own.gpu,
        cuda=_cuda() if own.runtime == "cuda" else "",
        environment=runtime.path(own.runtime, own.plugins),
        ports=[ports for replica in mine for ports in _ports(replica, name, own)] + _gateway_ports(name, own),
        weights=path if mine else "",
        weights_bytes=stored_bytes(its.model.architecture) if its and mine else 0,
        peers=_peers(name),
        replicas=[replica.name for replica in mine],
        plan="; ".join(map(_described, made)) if first and not isinstance(made, str) else "",
        nccl=told,
        no_nccl=untold,
        no_plan=made if first and isinstance(made, str) else "",
    )


def plans() -> list[Plan] | str:
    """The inventory's plans, or why it has none."""
    with _planning:  # hosts are prepared side by side
        return _plans()


@cache
def _cluster() -> Cluster:
    return reached()


@cache
def _plans() -> list[Plan] | str:
    cluster = _cluster()
    if cluster.control in state.failed_hosts:
        return f"{cluster.control.name}, which knows what is staged, cannot be reached"
    try:
        return plans_of(cluster)
    except (BadInput, PyinfraError) as error:
        return str(error)


@cache
def _cuda() -> str:
    """Of the runtime that vLLM's environment for GPUs brings."""
    versions = runtime.pins(*runtime.locks("cuda")).get("nvidia-cuda-runtime", set())
    return max(version for version in versions if version)


def _peers(name: str) -> dict[str, str]:
    hosts = _cluster().hosts
    names = list(hosts)
    at = names.index(name)
    after = [*names[at + 1 :], *names[:at]][:NEIGHBOURS]
    return {peer: hosts[peer].address for peer in after}


def _ports(replica: Replica, name: str, own: Settings) -> list[tuple[int, int]]:
    """What this replica listens on there (models.plan.Ports), from and to."""
    ports, is_head = replica.ports, name == replica.head.name
    fixed = [ports.api] if is_head else []
    if replica.executor == "mp" and is_head:
        fixed.append(ports.master)
    if is_head:
        fixed.append(ports.gang)
    if own.gateway and is_head:
        fixed.append(ports.health)
    rays = [(ports.ray, ports.ray + 999)] if replica.executor == "ray" else []
    return [*((port, port) for port in fixed), *rays]


def _gateway_ports(name: str, own: Settings) -> list[tuple[int, int]]:
    try:
        here = name in gateways_of(_cluster(), own)
    except BadInput:
        return []  # preflight says so
    return [(port, port) for port in (own.gateway_port, gateway.STATISTICS)] if here else []


def _described(made: Plan) -> str:
    replicas = len(made.replicas)
    first = made.replicas[0]
    split = f"TP {first.tensor_parallel} x PP {first.pipeline_parallel}"
    return f"{made.model.name}: {replicas} replica{'s' if replicas > 1 else ''}, {split}"
