"""Every replica of the plan runs its release, and was seen to generate.

Those that answer are replaced one after another: out of the gateway, drained, tried, let in. A run that
broke off is finished by the next.
"""

from pyinfra import host

from deploys import drivers, handover, rebooting, releasing, replacing, trying
from deploys.cluster import begin, cluster, gateways, here, on_control, plan, planned
from roles import gang, health, nvidia, releases, replicas, secret, units, vllm, weights
from roles.barrier import barrier

own, control, model = here(), cluster().control, plan().model

begin()
if drivers.needed():
    nvidia.loaded(name="The driver is loaded")
releases.unchanged(name="What runs is as planned for", installed=releasing.installed())
trying.over()

if plan().on(host.name) and own.weights_path is None:
    weights.required(name="Look for the weights", python=replacing.PYTHON, model=model, control=control)
barrier(name="Every replica has its weights")

if on_control():
    secret.present(name="Make the cluster's secret")
health.tool()
gang.tool()
releases.tool()
change = releasing.change()
entry = releasing.entry("serve", change)
if plan().on(host.name):
    vllm.node()
for replica in host.loop(plan().on(host.name)):
    releases.kept(
        name=f"Keep the release of {replica.name}",
        release=releasing.release(replica), files=releasing.files(replica, host.name),
    )  # fmt: skip
if on_control() and change:
    releases.begun(name="Say in the history what begins", entry=entry)
barrier(name="Every release is on its nodes")

handover.hand_over(change)
if change.leaving:
    replacing.retire(change, entry)
stays = [*change.names, *(["gateway"] if host.name in gateways() else [])]
units.only(name="Stop what is not planned", pattern=units.OURS, keep=stays)
replicas.only(name="Remove what is not planned", keep=stays)
barrier(name="Only planned replicas are left")

rebooting.reboot(releasing.idle())
replacing.confirm(releasing.staying())
if gateways() and change and change.answering:  # a run that broke off may have left one out
    replacing.let_in(change.serving(0), change.answering)
for place in host.loop(range(len(change.batches))):
    replacing.replace(change, place, entry)

if gateways():
    replacing.let_in(change.serving(len(change.batches)), [replica.name for replica in planned()])
if on_control() and change:
    releases.ended(name="Say in the history that it is done", entry=entry)
