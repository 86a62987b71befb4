"""What is done to a gang: its programs on the node, started, stopped as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pyinfra import host
from pyinfra.api import FactBase, FileUploadCommand, QuoteString, StringCommand, operation
from pyinfra.api.operation import OperationMeta

from roles import service, units

NODE = Path(__file__).with_name("node")
PROGRAMS = "/opt/rackserve/libexec/gang"


class Programs(FactBase["dict[str, str]"]):
    """{name: sha256} of what is installed of them."""

    def command(self) -> str:
        return f"sha256sum {PROGRAMS}/*.py 2>/dev/null || true"

    def process(self, output: list[str]) -> dict[str, str]:
        return {PurePosixPath(path).name: digest for digest, path in map(str.split, output)}

    @staticmethod
    def default() -> dict[str, str]:
        return {}


class Agent(FactBase[str]):
    """systemd's ActiveState of a gang's agent; one that was killed is `activating` for a second."""

    def command(self, replica: str) -> str:
        return f"systemctl show --property=ActiveState --value {service.unit(replica, 'gang')}"

    def process(self, output: list[str]) -> str:
        return "".join(output).strip()

    @staticmethod
    def default() -> str:
        return "inactive"


@operation()
def installed() -> Iterator[StringCommand | FileUploadCommand]:
    """The programs of roles/gang/node, and no others. An agent that runs goes on with those it began with."""
    there = host.get_fact(Programs)
    ours = {path.name: path for path in sorted(NODE.glob("*.py"))}
    differing = [name for name, path in ours.items() if there.get(name) != _sha256(path)]
    strays = sorted(there.keys() - ours.keys())
    if not differing and not strays:
        host.noop(f"{PROGRAMS} is as it should be")
        return
    yield StringCommand("mkdir", "-p", PROGRAMS)
    for name in differing:
        yield FileUploadCommand(str(ours[name]), f"{PROGRAMS}/{name}")
    for name in strays:
        yield StringCommand("rm", QuoteString(f"{PROGRAMS}/{name}"))
    yield StringCommand("chmod", "-R", "u=rwX,go=rX", PROGRAMS)


@operation()
def removed() -> Iterator[StringCommand]:
    """The node without them."""
    if not host.get_fact(Programs):
        host.noop(f"{PROGRAMS} is not there")
        return
    yield StringCommand("rm", "-rf", PROGRAMS)


@operation()
def stopped(replica: str) -> Iterator[StringCommand]:
    """A replica's part on this host has ended; on its head, the replica: first it ends what it answers."""
    if host.get_fact(Agent, replica=replica) in ("", "inactive", "failed"):
        host.noop(f"{replica} is not supervised here")
        return
    yield StringCommand("systemctl", "stop", QuoteString(service.unit(replica, "gang")))


@operation()
def started(
    replica: str, reads: Sequence[str] = (), changed: Sequence[OperationMeta] = ()
) -> Iterator[StringCommand]:
    """A replica's agent on this host runs with the configuration on disk, and starts its part in step.

    + reads: files whose change needs a restart, besides the agent's own; + changed: as for units.running
    """
    config = f"{service.folder(replica)}/gang.json"
    yield from units.running._inner(
        unit=service.unit(replica, "gang"), reads=[config, *reads], changed=changed
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
