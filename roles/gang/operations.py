"""What is done to a gang: started, stopped as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyinfra import host
from pyinfra.api import FactBase, QuoteString, StringCommand, operation
from pyinfra.api.operation import OperationMeta

from roles import service, units


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
