"""What the inventory and its plan promise of each host: what the doctor compares with what it sees."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import permutations
from threading import Lock
from typing import Any

from pyinfra import host, state
from pyinfra.api.exceptions import PyinfraError

from models.errors import BadInput
from models.plan import Plan, Replica
from models.weights import stored_bytes
from roles import doctor, gateway, lock, nccl, remote, replicas, runtime, service, weights
from roles.barrier import barrier

from . import fabric
from .cluster import Cluster, gateways_of, reached
from .planning import of_host, plans_of
from .settings import Settings

#: Echo requests go to so many of the hosts that follow in the inventory.
NEIGHBOURS = 8

#: One of those that NCCL, Gloo and vLLM's messages take by chance: a firewall must let them through, too.
EPHEMERAL = 60999

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
        loads=max((_loaded(its, replica) for replica in mine), default=0) if its else 0,
        ranks=[_ranks(replica, own) for replica in mine if replica.split.gpus > 1],
        reaches=_reaches().get(name, {}),
        listens=sorted({port for ports in _reaches().values() for port in ports.get(name, ())}),
        environment_of={replica.name: _ranks_environment(replica, own) for replica in mine},
        names_hcas=isinstance(own.hcas, str) and own.hcas != nccl.AUTO,
    )


def journal(lines: int, of: str = "") -> dict[str, Any]:
    """The last lines of this host's units in the journal, and which host is the head of each of its replicas.

    + of: only of this replica's units
    """
    made, units = plans(), f"rackserve-{of}-*" if of else "rackserve-*"
    its = None if isinstance(made, str) else of_host(made, host.name)
    return {
        "lines": host.get_fact(replicas.Journal, pattern=units, lines=lines),
        "heads": {replica.name: replica.head.name for replica in (its.on(host.name) if its else ())},
    }


def measure(of: str = "") -> None:
    """What `--deep` does on all hosts, step by step; each step ends on all before the next begins.

    + of: only on the hosts of this replica
    The lock is held meanwhile: this takes GPUs and ports that a run may be about to give a replica.
    """
    if host.name == _cluster().control.name:
        lock.hold(name="Hold the lock")
    barrier(name="Nobody else is at work")
    _measure("disk", "disk.speed: writing and reading, on all hosts at once", of)
    doctor.begun(name="Listen where it will be listened", what="listening",
                 step="net.reach: every pair of a replica, every port", of=of, unless=_locked)  # fmt: skip
    _measure("connecting", "net.reach: connecting", of)
    doctor.ended(name="Listen no more", what="listening", of=of)
    for slot in host.loop(_slots()):
        _measure("allreduce", f"gpu.allreduce: the replicas of slot {slot}", of, slot)


def _measure(what: str, step: str, of: str, slot: int = 0) -> None:
    doctor.begun(name=f"Begin: {step}", what=what, step=step, of=of, slot=slot, unless=_locked)
    doctor.ended(name=f"End: {step}", what=what, of=of, slot=slot)


def _locked() -> str:
    """Who is at work, if anybody else is."""
    name = _cluster().control.name
    if lock.is_ours(name):
        return ""
    return next(reversed(remote.failures), f"{name}, which has the lock, cannot be reached")


def _slots() -> list[int]:
    """Replicas of the same one have no host in common, and are measured side by side."""
    made = plans()
    replicas = [] if isinstance(made, str) else [one for its in made for one in its.replicas]
    return sorted({replica.ports.slot for replica in replicas if replica.split.gpus > 1})


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
    here = name in _gateways(own)
    return [(port, port) for port in (own.gateway_port, gateway.STATISTICS)] if here else []


def _gateways(own: Settings) -> list[str]:
    try:
        return gateways_of(_cluster(), own)
    except BadInput:
        return []  # preflight says so


def _loaded(made: Plan, replica: Replica) -> int:
    """Bytes of the weights that each of its hosts reads."""
    return stored_bytes(made.model.architecture) // len(replica.nodes)


def _ranks(replica: Replica, own: Settings) -> doctor.Ranks:
    return doctor.Ranks(
        replica=replica.name, slot=replica.ports.slot, hosts=replica.hosts, address=replica.head.address,
        port=replica.ports.master, gpus=replica.gpus_per_node,
        backend="nccl" if own.runtime == "cuda" else "gloo",
    )  # fmt: skip


def _ranks_environment(replica: Replica, own: Settings) -> dict[str, str]:
    """Of what its units are told, what concerns the way between the ranks."""
    chosen = {key: value for key, value in own.vllm_env.items() if key.startswith(("NCCL_", "GLOO_"))}
    return {**service.devices(replica), **nccl.everywhere(own.roce_traffic_class), **chosen}


@cache
def _reaches() -> dict[str, dict[str, list[int]]]:
    """{host: {host: ports there}} that serving needs."""
    made = plans()
    found: dict[str, dict[str, set[int]]] = {}
    for replica in [] if isinstance(made, str) else [one for its in made for one in its.replicas]:
        for name, to in permutations(replica.hosts, 2):
            ports = {*sample(_ports(replica, to, _cluster().hosts[to])), EPHEMERAL}
            if to == replica.head.name:
                ports.add(replica.ports.master)  # where the ranks of an all-reduce meet
            found.setdefault(name, {}).setdefault(to, set()).update(ports)
        head = replica.head.name
        for name in _gateways(_cluster().hosts[head]):
            if name != head:
                ports = {replica.ports.api, replica.ports.health}
                found.setdefault(name, {}).setdefault(head, set()).update(ports)
    return {name: {to: sorted(ports) for to, ports in its.items()} for name, its in found.items()}


def sample(ports: Iterable[tuple[int, int]]) -> list[int]:
    """Of a range its first, its middle and its last."""
    return sorted({port for low, high in ports for port in (low, (low + high) // 2, high)})


def _described(made: Plan) -> str:
    replicas = len(made.replicas)
    first = made.replicas[0]
    split = f"TP {first.tensor_parallel} x PP {first.pipeline_parallel}"
    return f"{made.model.name}: {replicas} replica{'s' if replicas > 1 else ''}, {split}"
