"""The model's snapshot on every node of the plan: resolved and downloaded once, verified everywhere."""

from deploys import staging
from deploys.cluster import begin, here
from roles import weights
from roles.barrier import barrier

begin()

weights.tool()
staging.resolve([made.model for made in staging.fetched()])
if here().weights_path is None:
    staging.stage(lambda model: model)
else:
    staging.usable()
barrier(name="Every replica has its weights")
