"""Folders of the head on every host, as they are there: wheels, environments, compile caches.

pyinfra inventories/cluster.py deploys/spread.py --data _folders=/srv/wheelhouse,/opt/rackserve/runtime
"""

from pyinfra import host

from deploys.cluster import begin, cluster, on_control, payloads
from roles import runtime, secret, weights
from roles.barrier import barrier

control, python = cluster().control, f"{runtime.TOOLS}/bin/python"

begin()

weights.tool()
for payload in host.loop(payloads()):
    folder = payload.folder
    lacking = weights.differing(python, payload, control, list(cluster().hosts))
    among = {name: own.address for name, own in cluster().hosts.items() if name in (control.name, *lacking)}
    concerned = lacking and host.name in among
    if lacking and on_control():
        weights.packed(name=f"Pack {folder}", python=python, payload=payload)
    barrier(name=f"{folder} is packed")
    if concerned:
        weights.roomy(name=f"Look for room for {folder}", python=python, model=payload, control=control)
    barrier(name=f"There is room for {folder}")
    if concerned:
        weights.staged(
            name=f"Spread {folder}",
            python=python, model=payload, control=control, among=among, uplinks=[],
            secret=secret.derive(secret.value(control), f"folder {folder}"),
        )  # fmt: skip
    if host.name in lacking:
        weights.unpacked(name=f"Put {folder} in place", python=python, payload=payload, origin=control)
    barrier(name=f"{folder} is everywhere")
    if concerned:
        weights.dropped(name=f"Drop the archive of {folder}", python=python, payload=payload)
