"""The model's snapshot on every node of the plan: resolved and downloaded once, verified everywhere."""

from pyinfra import host

from deploys.cluster import begin, cluster, here, on_control, plan, plans
from roles import runtime, secret, weights
from roles.barrier import barrier

own, model, control = here(), plan().model, cluster().control
python = f"{runtime.TOOLS}/bin/python"
source = weights.Source(own.hf_endpoint, own.hf_token, own.mirror, own.mirror_options)

begin()

weights.tool()
if own.weights_path is None:
    uplinks = [name for name in cluster().uplinks if plan(name) == plan()] or plan().hosts[:1]
    copies = weights.copies(weights.disks([*uplinks, *plan().hosts], weights.ROOT))
    uplinks = [name for name in uplinks if copies[name] == name]
    nodes = {name: cluster().hosts[name].address for name in dict.fromkeys(copies.values())}
    for made in host.loop(plans() if on_control() else ()):
        weights.resolved(
            name=f"Resolve {made.model.repository}", python=python, model=made.model, source=source
        )
    barrier(name="The commit is known")
    if host.name in nodes:
        weights.roomy(name="Look for room", python=python, model=model, control=control)
    barrier(name="There is room everywhere")
    if host.name in uplinks:
        weights.downloaded(
            name=f"Download {model.repository}",
            python=python, model=model, source=source, control=control, among=list(nodes), uplinks=uplinks,
        )  # fmt: skip
    barrier(name="What the hub has is here")
    if host.name in nodes:
        weights.staged(
            name=f"Stage {model.repository}",
            python=python, model=model, control=control, among=nodes, uplinks=uplinks,
            secret=secret.derive(secret.value(control), f"weights {model.repository}"),
        )  # fmt: skip
    barrier(name="Every copy is whole")
    if host.name in copies and host.name not in nodes:
        weights.shared(
            name=f"Look for {model.repository} on the shared file system",
            python=python, model=model, control=control, with_=copies[host.name],
        )  # fmt: skip
elif host.name in plan().hosts:
    weights.usable(
        name=f"Check {own.weights_path}",
        python=python, folder=own.weights_path, model=model,
    )  # fmt: skip
barrier(name="Every replica has its weights")
