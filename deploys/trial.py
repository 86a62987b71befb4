"""Every replica starts once without weights, generates, and is gone: what was compiled for it stays.

On nodes that serve nothing, and before the weights are there: of the model only its configuration and its
tokenizer are fetched. What goes wrong in a first start, but for reading the weights, goes wrong here.

pyinfra inventories/cluster.py deploys/provision.py deploys/trial.py
"""

from pyinfra import host

from deploys import drivers, releasing, staging, trying
from deploys.cluster import begin, here, on_control, plan
from roles import gang, health, nvidia, releases, secret, vllm, weights
from roles.barrier import barrier

begin()
replicas = trying.replicas()
if drivers.needed():
    nvidia.loaded(name="The driver is loaded")
releases.unchanged(name="What runs is as planned for", installed=releasing.installed())
trying.over()
barrier(name="Nothing is tried")

weights.tool()
staging.resolve([weights.Description(made.model) for made in trying.undescribed()])
if here().weights_path is not None:
    staging.usable()
elif plan() in trying.undescribed():
    staging.stage(weights.Description)
    if host.name in plan().hosts:
        description = weights.Description(plan().model)
        weights.stood_in(name="Put the description where the weights will be", description=description)
if on_control():
    secret.present(name="Make the cluster's secret")
health.tool()
gang.tool()
releases.tool()
if plan().on(host.name):
    vllm.node()
for replica in host.loop([one for one in replicas if host.name in one.hosts]):
    releases.kept(
        name=f"Keep the release of {replica.name}",
        release=releasing.release(replica), files=releasing.files(replica, host.name),
    )  # fmt: skip
barrier(name="Every release is on its nodes")

trying.start(replicas)
trying.end(replicas)
