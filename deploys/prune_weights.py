"""Remove old snapshots: all but those that a revision means, and the last `--data _keep=N` (1)."""

from pyinfra import host

from deploys.cluster import begin, cluster
from roles import runtime, weights

begin()

weights.tool()
copies = weights.copies(weights.disks(list(cluster().hosts), weights.ROOT))
if copies[host.name] == host.name:
    weights.pruned(
        name="Remove old snapshots",
        python=f"{runtime.TOOLS}/bin/python", keep=int(host.data.get("_keep", 1)),
    )  # fmt: skip
