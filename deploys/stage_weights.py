"""The model's snapshot on every node of the plan: resolved and downloaded once, verified everywhere."""

from pyinfra import host

from deploys.cluster import begin, cluster, here, on_control, plan
from roles import runtime, secret, weights
from roles.barrier import barrier

own, model, control = here(), plan().model, cluster().control
python = f"{runtime.TOOLS}/bin/python"
hub = weights.Hub(own.hf_endpoint, own.hf_token)
nodes = {name: cluster().hosts[name].address for name in plan().hosts}
mine = host.name in nodes

begin()

weights.tool()
if own.weights_path is None:
    if on_control():
        weights.resolved(name=f"Resolve {model.repository}", python=python, model=model, hub=hub)
    barrier(name="The commit is known")
    if mine:
        weights.roomy(name="Look for room", python=python, model=model, control=control)
    barrier(name="There is room everywhere")
    if host.name == next(iter(nodes)):
        weights.downloaded(
            name=f"Download {model.repository}",
            python=python, model=model, hub=hub, control=control, among=list(nodes),
        )  # fmt: skip
    barrier(name="A host has the weights")
    if mine:
        weights.staged(
            name=f"Stage {model.repository}",
            python=python, model=model, control=control, among=nodes,
            secret=secret.derive(secret.value(control), f"weights {model.repository}"),
        )  # fmt: skip
elif mine:
    weights.usable(
        name=f"Check {own.weights_path}",
        python=python, folder=own.weights_path, model=model,
    )  # fmt: skip
barrier(name="Every replica has its weights")
