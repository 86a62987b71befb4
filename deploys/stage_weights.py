"""The model's snapshot on every node of the plan: resolved once, verified everywhere."""

from pyinfra import host

from deploys.cluster import begin, cluster, here, on_control, plan
from roles import runtime, weights
from roles.barrier import barrier

own, model, control = here(), plan().model, cluster().control
python = f"{runtime.TOOLS}/bin/python"
hub = weights.Hub(own.hf_endpoint, own.hf_token)

begin()

weights.tool()
if own.weights_path is None:
    if on_control():
        weights.resolved(name=f"Resolve {model.repository}", python=python, model=model, hub=hub)
    barrier(name="The commit is known")
if plan().on(host.name):
    if own.weights_path is None:
        weights.staged(
            name=f"Stage {model.repository}",
            python=python, model=model, hub=hub, control=control,
        )  # fmt: skip
    else:
        weights.usable(
            name=f"Check {own.weights_path}",
            python=python, folder=own.weights_path, model=model,
        )  # fmt: skip
barrier(name="Every replica has its weights")
