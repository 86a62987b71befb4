"""The Python environments of a node: a small one for our tools, and vLLM's.

Both are exactly their lock files, hashes checked, the same on every node. What is
installed is read from the packages themselves, so a half-finished install is finished
and a stray package removed by the next run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import files

from .facts import normalized
from .operations import Pins, tools_environment, vllm_environment
from .operations import pruned as pruned

LOCKS = Path(__file__).with_name("locks")
FOLDER = "/opt/rackserve"
TOOLS = f"{FOLDER}/tools"

#: The Python each kind of runtime is locked for.
PYTHON = {"cuda": "3.12", "cpu": "3.11"}


def locks(kind: str, plugins: str | None = None) -> list[Path]:
    """The lock files of a runtime: `cuda` or `cpu`, and what the user adds to it."""
    return [LOCKS / f"{kind}.lock", *([Path(plugins)] if plugins else [])]


def path(kind: str, plugins: str | None = None) -> str:
    """Where that environment is on a node; a new lock is a new folder."""
    digest = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks(kind, plugins)))
    return f"{FOLDER}/runtime/{kind}-{digest.hexdigest()[:12]}"


@deploy("Runtime")
def tools(wheelhouse: str | None) -> None:
    """The tools environment: hub client, HTTP client and uv."""
    lock = _upload([LOCKS / "tools.lock"])
    tools_environment(
        name="Install the tools environment",
        path=TOOLS, lock=lock[0], pins=pins(LOCKS / "tools.lock"), wheelhouse=wheelhouse,
    )  # fmt: skip


@deploy("Runtime")
def environment(kind: str, plugins: str | None, wheelhouse: str | None) -> None:
    """vLLM's environment, of one kind."""
    sources = locks(kind, plugins)
    vllm_environment(
        name=f"Install the {kind} environment of vLLM",
        path=path(kind, plugins), python=PYTHON[kind], locks=_upload(sources), pins=pins(*sources),
        uv=f"{TOOLS}/bin/uv", wheelhouse=wheelhouse,
    )  # fmt: skip


def pins(*sources: Path) -> Pins:
    """What hash-locked requirements files allow: {normalized name: versions}.

    None among the versions means that the package may be absent: its line has a marker
    for some other platform or Python.
    """
    allowed: dict[str, set[str | None]] = {}
    for line in (line for source in sources for line in source.read_text().splitlines()):
        if match := re.match(r"([A-Za-z0-9][\w.-]*)==([^\s;]+)\s*(;?)", line):
            name, version, marker = match.groups()
            allowed.setdefault(normalized(name), set()).update({version, None} if marker else {version})
    return allowed


def _upload(sources: Sequence[Path]) -> list[str]:
    """Put lock files on the node; returns their paths there."""
    for source in host.loop(sources):
        dest = f"{FOLDER}/locks/{source.name}"
        files.put(name=f"Upload {source.name}", src=str(source), dest=dest, mode="644")
    return [f"{FOLDER}/locks/{source.name}" for source in sources]
