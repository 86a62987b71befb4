"""vLLM's part of one replica on one host: its config file, its secrets, its unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from pyinfra.api import deploy
from pyinfra.api.operation import OperationMeta
from pyinfra.operations import files

from models.plan import Replica
from roles import files as secret_files
from roles import service
from roles import units as systemd

from .arguments import arguments, render, requests, variables

__all__ = ["arguments", "nothing", "requests", "secrets_path", "server", "template_path", "unit", "units",
           "variables"]  # fmt: skip

TEMPLATE = Path(__file__).with_name("vllm.service.j2")

#: vLLM copies the driver's environment to every Ray worker, but for the names in this
#: file (vllm/ray/ray_env.py). The key has no business there.
NOT_CARRIED_PATH = f"{service.HOME}/.config/vllm/ray_non_carry_over_env_vars.json"
NOT_CARRIED = '["VLLM_API_KEY", "RAY_ADDRESS", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"]\n'


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


@deploy("vLLM")
def server(
    replica: Replica,
    host_name: str,
    arguments: Mapping[str, Any],
    environment: str,
    variables: Mapping[str, str],
    api_key: str,
    model_path: str,
    template: str | None = None,
    needs: Sequence[str] = (),
) -> None:
    """One vLLM process group of a replica.

    + arguments: vLLM's long flag names and values, complete
    + environment: the virtual environment; + variables: of the process, none secret
    + template: the text of a chat template for template_path()
    + model_path: what a new snapshot replaces, so that vLLM restarts for it
    + needs: units that must run before this one and take this one down with them
    """
    config = f"{service.folder(replica.name)}/vllm.yaml"
    changed = [
        secret_files.secret(
            name=f"Write the API key of {replica.name}",
            path=secrets_path(replica), content=f"VLLM_API_KEY={api_key}\n",
        ),
        files.put(
            name="Keep the API key from Ray's workers",
            src=StringIO(NOT_CARRIED), mode="644",
            dest=NOT_CARRIED_PATH,
        ),
        *_template(replica, template),
        files.put(
            name=f"Write {config}",
            src=StringIO(render(arguments)), dest=config, mode="644",
        ),
        files.template(
            name=f"Write {unit(replica)}",
            src=str(TEMPLATE), dest=systemd.path(unit(replica)), mode="644",
            replica=replica.name, needs=" ".join(needs), service=service,
            command=f"{environment}/bin/vllm serve --config {config}",
            path=service.path(environment),
            environment=service.environment_lines(variables), secrets=secrets_path(replica),
        ),
    ]  # fmt: skip
    systemd.running(
        name=f"Run {unit(replica)}",
        unit=unit(replica), changed=changed,
        reads=[config, secrets_path(replica), NOT_CARRIED_PATH, model_path,
               *([template_path(replica)] if template else [])],
    )  # fmt: skip


def _template(replica: Replica, text: str | None) -> list[OperationMeta]:
    if text is None:
        return []
    path = template_path(replica)
    return [files.put(name=f"Write {path}", src=StringIO(text), dest=path, mode="644")]


@deploy("vLLM")
def nothing() -> None:
    """The node without what servers leave besides their replica's own folder and unit."""
    files.file(name="Remove the list of uncarried variables", path=NOT_CARRIED_PATH, present=False)
