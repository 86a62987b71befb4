"""What each host is to do for a measurement, or why it cannot. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roles import service

from .check import Host, Ranks, Unclear
from .parse import GiB

#: Beyond these seconds systemd ends what was begun, whoever still waits for it.
LIMITS = {"disk": 60, "listening": 120, "connecting": 30, "allreduce": 180}

#: Seconds to measure, until all ranks are there, and no more than so much.
DISK = {"bytes": GiB, "leave": GiB, "seconds": 5}
CONNECT = 4  # a second and a third SYN are sent within
MEETING, REDUCE = 60, 20
MOST = {"nccl": GiB, "gloo": 256 * 2**20}

SYSTEM = "/usr/bin/python3"


@dataclass(frozen=True)
class Task:
    """A program of node/ on one host: what it is asked, who runs it, on which Python."""

    program: str
    asked: Mapping[str, Any]
    python: str = SYSTEM
    user: str = "root"
    is_ready_when_answered: bool = False  # what comes next builds on it


def disk(host: Host) -> Task:
    """The disk that the weights are on, or will be."""
    path = host.expected.weights or service.HOME
    if path not in host.get("folders"):
        raise Unclear(f"what {path} is on could not be read")
    return Task("disk", {"folder": host.get("folders")[path]["there"], **DISK})


def listening(host: Host) -> Task | None:
    """None where nobody must reach it."""
    ports = sorted(host.expected.listens)
    return Task("listening", {"ports": ports}, is_ready_when_answered=True) if ports else None


def connecting(host: Host, others: Mapping[str, Host]) -> Task | None:
    """Those of the others that were seen: one that is out of reach is said elsewhere."""
    targets = [
        [name, others[name].expected.address, port]
        for name, ports in host.expected.reaches.items()
        for port in ports
        if name in others
    ]
    return Task("connecting", {"targets": targets, "seconds": CONNECT}) if targets else None


def allreduce(host: Host, ranks: Ranks, others: Mapping[str, Host]) -> Task:
    """This host's part; Unclear says what is in the way on any of the replica's."""
    for name in ranks.hosts:
        if in_the_way := _in_the_way(name, others.get(name)):
            raise Unclear(f"{ranks.replica}: {in_the_way}")
    asked = {
        "address": ranks.address, "port": ranks.port, "rank": list(ranks.hosts).index(host.name),
        "nodes": len(ranks.hosts), "gpus": ranks.gpus, "backend": ranks.backend,
        "environment": {**_network(host), **host.expected.environment_of.get(ranks.replica, {})},
        "meeting": MEETING, "seconds": REDUCE, "most": MOST[ranks.backend],
    }  # fmt: skip
    return Task("allreduce", asked, f"{host.expected.environment}/bin/python", service.USER)


def _in_the_way(name: str, host: Host | None) -> str:
    """Why a host cannot take part."""
    if host is None:
        return f"{name} could not be looked at"
    if not any(row.startswith("torch-") for row in host.get("installed")):
        return f"{name} has no torch in {host.expected.environment}: rackserve deploy provision"
    if serving := _serving(host.get("units")):
        return f"{name} serves ({', '.join(serving)}): its GPUs are busy"
    if pids := (host.seen or {}).get("gpu_cgroups"):
        return f"{name}'s GPUs are busy (pid {', '.join(sorted(pids))})"
    return ""


def _serving(units: Sequence[Mapping[str, Any]]) -> list[str]:
    """The units that hold GPUs, or are about to."""
    parts = ("-vllm.service", "-ray.service", "-gang.service")
    return [
        row["Id"].removesuffix(".service")
        for row in units
        if row["Id"].endswith(parts) and row.get("ActiveState") in ("active", "activating", "reloading")
    ]


def _network(host: Host) -> dict[str, str]:
    """What the units of a replica are told."""
    interface = host.expected.interface or (host.get("net")["name"])
    return service.network(host.expected.address, interface)
