"""vLLM's part of one replica on one host: its config file, its secrets, its unit."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from pyinfra.api import deploy
from pyinfra.operations import files as put

from models.plan import Replica
from roles import service
from roles.files import File

from .arguments import CACHES, arguments, names, render, requests, variables

__all__ = ["CACHES", "RAY_NEEDS", "arguments", "files", "names", "node", "nothing", "requests",
           "secrets_path", "template_path", "unit", "units", "variables"]  # fmt: skip

TEMPLATE = Path(__file__).with_name("vllm.service.j2")

#: vLLM copies the driver's environment to every Ray worker, but for the names in this
#: file (vllm/ray/ray_env.py). The key has no business there.
NOT_CARRIED_PATH = f"{service.HOME}/.config/vllm/ray_non_carry_over_env_vars.json"
NOT_CARRIED = '["VLLM_API_KEY", "RAY_ADDRESS", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"]\n'

#: The beginning of what Ray calls the processes that are ranks. When one dies that is not on vLLM's own node,
#: vLLM sees it and hangs as it shuts down, with a /health of 200 (0.33, v1/executor/ray_executor_v2.py:522).
RAY_NEEDS = ("ray::RayWorker",)


def unit(replica: Replica) -> str:
    return service.unit(replica.name, "vllm")


def secrets_path(replica: Replica) -> str:
    """The root-only environment file with VLLM_API_KEY."""
    return f"{service.folder(replica.name)}/vllm.env"


def template_path(replica: Replica) -> str:
    """The chat template, where Rackserve ships one."""
    return f"{service.folder(replica.name)}/chat-template.jinja"


def units(replica: Replica, host_name: str) -> list[str]:
    """The vLLM units of a replica on a host: one or none.

    Ray starts the ranks of other hosts itself; vLLM's own executor wants a server on each.
    """
    here = host_name == replica.head.name or replica.executor == "mp"
    return [unit(replica)] if here else []


def files(
    replica: Replica,
    arguments: Mapping[str, Any],
    environment: str,
    variables: Mapping[str, str],
    api_key: str,
    template: str | None = None,
) -> list[File]:
    """What one vLLM process group of a replica reads.

    + arguments: vLLM's long flag names and values, complete
    + environment: the virtual environment; + variables: of the process, none secret
    + template: the text of a chat template for template_path()
    """
    config = f"{service.folder(replica.name)}/vllm.yaml"
    text = service.rendered(
        TEMPLATE,
        replica=replica.name,
        service=service,
        command=f"{environment}/bin/vllm serve --config {config}",
        path=service.path(environment),
        environment=service.environment_lines(variables),
        secrets=secrets_path(replica),
    )
    return [
        File(secrets_path(replica), f"VLLM_API_KEY={api_key}\n", mode="600", secret=True),
        *([File(template_path(replica), template)] if template is not None else []),
        File(config, render(arguments)),
        File(service.unit_path(unit(replica)), text),
    ]


@deploy("vLLM")
def node() -> None:
    """What all replicas on a node share."""
    put.put(
        name="Keep the API key from Ray's workers", src=StringIO(NOT_CARRIED), mode="644",
        dest=NOT_CARRIED_PATH,
    )  # fmt: skip


@deploy("vLLM")
def nothing() -> None:
    """The node without what servers leave besides their replica's own folder and unit."""
    put.file(name="Remove the list of uncarried variables", path=NOT_CARRIED_PATH, present=False)
