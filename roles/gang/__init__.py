"""A replica that starts as one and ends as one: an agent on each of its nodes, on plain systemd.

The units of Ray and vLLM are the gang's parts: only its agents start and stop them (docs/supervision.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyinfra.api import deploy

from models.errors import InventoryError
from models.plan import Replica
from roles import programs, service
from roles import units as systemd
from roles.files import File

from .operations import started, stopped

__all__ = ["LEAST_HANG", "Part", "files", "no_tool", "started", "state", "stopped", "tool", "unit"]

#: Where roles/gang/node is on a node.
NODE, PROGRAMS = Path(__file__).with_name("node"), "/opt/rackserve/libexec/gang"
TEMPLATE = Path(__file__).with_name("gang.service.j2")

#: Seconds. Shorter, and a gateway would not yet know that it is down (patience in node/gang.py, and some).
LEAST_HANG = 25


@dataclass(frozen=True)
class Part:
    """A unit of a replica.

    + awaits: the address and port that must accept before it is started
    + needs: beginnings of names of processes: once there, none may end, though the unit runs on without
    """

    unit: str
    awaits: tuple[str, int] | None = None
    needs: Sequence[str] = ()


@deploy("Gang")
def tool() -> None:
    """The programs that run on the node."""
    programs.installed(name="Install what supervises replicas", source=NODE, folder=PROGRAMS)


@deploy("Gang")
def no_tool() -> None:
    """The node without them."""
    programs.removed(name="Remove what supervises replicas", folder=PROGRAMS)


def unit(replica: Replica) -> str:
    return service.unit(replica.name, "gang")


def state(replica: str) -> str:
    """Where the head writes how the replica of that name is."""
    return f"/run/{_run(replica)}/state.json"


def files(
    replica: Replica,
    host_name: str,
    *,
    parts: Mapping[str, Sequence[Part]],
    token: str,
    secrets: str,
    gateway: bool,
    hang: int,
) -> list[File]:
    """What a node of the replica has of its gang.

    + parts: the units of each of its hosts, in the order in which they start
    + token: what its nodes prove to each other to know
    + secrets: the environment file with VLLM_API_KEY, on its first host
    + gateway: whether gateways ask how it is; + hang: seconds without a step or token
    """
    if hang < LEAST_HANG:
        raise InventoryError(f"hang is {hang}: must be at least {LEAST_HANG} seconds")
    config = f"{service.folder(replica.name)}/gang.json"
    written: dict[str, Any] = {
        "host": host_name,
        "members": list(replica.hosts),
        "head": [replica.head.address, replica.ports.gang],
        "token": token,
        "units": [
            {"unit": part.unit, "awaits": part.awaits, "needs": list(part.needs)} for part in parts[host_name]
        ],
        "user": service.USER,
        "folder": f"/run/{_run(replica.name)}",
        "times": {"hang": hang},
    }
    if host_name == replica.head.name:
        written["secrets"] = secrets
        written["api"] = replica.ports.api
        written["health"] = [replica.head.address, replica.ports.health] if gateway else None
    return [
        File(config, json.dumps(written, indent=1) + "\n", mode="600", secret=True),
        File(systemd.path(unit(replica)), _unit_file(replica, config)),
    ]


def _unit_file(replica: Replica, config: str) -> str:
    return service.rendered(
        TEMPLATE, replica=replica, program=f"{PROGRAMS}/gang.py", config=config, run=_run(replica.name)
    )


def _run(replica: str) -> str:
    return f"rackserve/{replica}"
