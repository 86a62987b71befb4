"""Read the journals of the replicas' units; changes nothing. `rackserve logs` prints them."""

from pyinfra import host

from deploys.cluster import reached
from roles import replicas

reached()
host.data.seen = host.get_fact(
    replicas.Journal,
    pattern=f"rackserve-{host.data.get('_part', '*')}",
    lines=host.data.get("_lines", 100),
)
