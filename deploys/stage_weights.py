"""The model's snapshot on every node of the plan: resolved and downloaded once, verified everywhere."""

from pyinfra import host

from deploys import staging
from deploys.cluster import begin, here, plan
from roles import weights
from roles.barrier import barrier

begin()

weights.tool()
if here().weights_path is None:
    staging.stage(lambda model: model)
elif host.name in plan().hosts:
    staging.usable()
barrier(name="Every replica has its weights")
