"""One Ray node of one replica: a systemd unit with ports, folder and token of its own.

Each replica is a Ray cluster by itself. `ray stop` is never used: it ends every Ray of
the user on the host, another replica's too; systemd ends a unit's processes by cgroup.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from models.plan import Replica
from roles import service
from roles.files import File

TEMPLATE = Path(__file__).with_name("ray.service.j2")

#: Bytes. vLLM hardly uses Ray's object store; Ray's own default is 30 % of all memory.
OBJECT_STORE = 256 * 2**20

#: What a node of Ray is nothing without. `ray start --block` itself runs on when its raylet ends with status
#: 0 (Ray 2.60, scripts/scripts.py:1294), as it does when one of its agents has died (agent_manager.cc:87).
NEEDS = ("raylet",)


def unit(replica: Replica) -> str:
    return service.unit(replica.name, "ray")


def units(replica: Replica) -> list[str]:
    """The Ray units that a replica has on each of its nodes: one, or none."""
    return [unit(replica)] if replica.executor == "ray" else []


def address(replica: Replica) -> str:
    """Where this replica's Ray is found (RAY_ADDRESS)."""
    return f"{replica.head.address}:{replica.ports.ray}"


def driver(replica: Replica) -> dict[str, str]:
    """The variables with which a driver finds this replica's Ray; none when it has no Ray."""
    if replica.executor != "ray":
        return {}
    return {"RAY_ADDRESS": address(replica), **authentication(replica)}


def authentication(replica: Replica) -> dict[str, str]:
    """What a Ray process or driver needs to be let in, said outright.

    Left unsaid, a stray token file on one node decides (Ray 2.60, scripts.py:1069).
    """
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": _token_path(replica)}


def files(
    replica: Replica, host_name: str, environment: str, variables: Mapping[str, str], token: str
) -> list[File]:
    """What a host's Ray of a replica reads: its head's on the replica's first host, else a worker's.

    + environment: the virtual environment; + variables: of the process, none secret
    """
    text = service.rendered(
        TEMPLATE,
        replica=replica.name,
        role="head" if host_name == replica.head.name else "worker",
        command=shlex.join(command(replica, host_name, environment)),
        environment=service.environment_lines({**variables, **authentication(replica)}),
        service=service,
        folder=folder(replica),
        path=service.path(environment),
    )
    return [
        File(_token_path(replica), token + "\n", owner=f"root:{service.USER}", mode="440", secret=True),
        File(service.unit_path(unit(replica)), text),
    ]


def folder(replica: Replica) -> str:
    """Ray's temporary folder; short, for its sockets must fit in 107 bytes."""
    return f"{service.HOME}/ray-{replica.name}"


def command(replica: Replica, host_name: str, environment: str) -> list[str]:
    """The argv of `ray start`, every port pinned (Ray 2.60, scripts/scripts.py)."""
    node = replica.node(host_name)
    base = replica.ports.ray
    is_head = node == replica.head
    return [
        f"{environment}/bin/ray", "start", "--block", "--disable-usage-stats",
        *(["--head", f"--port={base}"] if is_head else [f"--address={address(replica)}"]),
        *([f"--temp-dir={folder(replica)}", "--include-dashboard=false"] if is_head else []),
        f"--node-ip-address={node.address}",
        f"--node-name={node.name}",
        f"--num-gpus={replica.gpus_per_node}",
        f"--object-store-memory={OBJECT_STORE}",
        f"--node-manager-port={base + 1}",
        f"--object-manager-port={base + 2}",
        f"--runtime-env-agent-port={base + 3}",
        f"--dashboard-agent-grpc-port={base + 4}",
        f"--dashboard-agent-listen-port={base + 5}",
        f"--metrics-export-port={base + 6}",
        f"--min-worker-port={base + 100}",
        f"--max-worker-port={base + 999}",
    ]  # fmt: skip


def _token_path(replica: Replica) -> str:
    return f"{service.folder(replica.name)}/ray.token"
