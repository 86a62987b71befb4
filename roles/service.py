"""What Rackserve's systemd services have in common: names, folders, environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from models.plan import Replica

USER = "rackserve"
HOME = "/var/lib/rackserve"
CACHE = "/var/cache/rackserve"
PREFIX = "rackserve-"


def unit(replica: str, part: str) -> str:
    """The unit of one part of a replica: rackserve-replica-0-ray.service."""
    return f"{PREFIX}{replica}-{part}.service"


def folder(replica: str) -> str:
    """A replica's configuration on a node."""
    return f"/etc/rackserve/{replica}"


def network(address: str, interface: str) -> dict[str, str]:
    """The same address for everyone who asks a node for one: vLLM, NCCL and Gloo.

    Left to themselves each guesses, and on a host with two networks they guess apart.
    """
    return {
        "VLLM_HOST_IP": address,
        "NCCL_SOCKET_IFNAME": f"={interface}",
        "GLOO_SOCKET_IFNAME": interface,
    }


def devices(replica: Replica) -> dict[str, str]:
    """Which GPUs of its nodes are a replica's; nothing where all are.

    Said also where no other replica is yet, so that one that is added later restarts none.
    """
    if replica.gpus_per_node == replica.head.gpus:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, replica.devices))}


def unit_path(name: str) -> str:
    """Where a unit of ours lives."""
    return f"/etc/systemd/system/{name}"


def rendered(template: Path, **values: Any) -> str:
    """A template beside a role's code, filled in."""
    jinja = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    return jinja.from_string(template.read_text()).render(values)


def path(environment: str) -> str:
    """PATH of a service: compilers started at run time look for ninja beside Python."""
    return f"{environment}/bin:/usr/local/bin:/usr/bin:/bin"


def environment_lines(environment: Mapping[str, str]) -> str:
    """`Environment=` lines of a unit; systemd.exec(5) gives the quoting."""
    return "\n".join(f'Environment="{name}={_escaped(value)}"' for name, value in environment.items())


def _escaped(value: str) -> str:
    for character, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("\n", "\\n")):
        value = value.replace(character, written)
    return value
