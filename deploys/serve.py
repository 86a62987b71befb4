"""Ray and vLLM up on every replica of the plan, and each seen to generate."""

from pyinfra import host

import models
from deploys.cluster import begin, cluster, gateways, here, network, on_control, plan
from models.plan import Replica
from models.weights import stored_bytes
from roles import gateway, health, ray, replicas, runtime, secret, service, units, vllm, weights
from roles.barrier import barrier

own, control, model = here(), cluster().control, plan().model
template = models.template(model)
mine = plan().on(host.name)
python = f"{runtime.TOOLS}/bin/python"
environment = runtime.path(own.runtime, own.plugins)
model_path = own.weights_path or weights.path(model)


def variables(replica: Replica) -> dict[str, str]:
    """What every process of a replica on this host is to know of it."""
    return {**network(), **service.devices(replica)}


begin()

if mine and own.weights_path is None:
    weights.required(name="Look for the weights", python=python, model=model, control=control)
barrier(name="Every replica has its weights")

if on_control():
    secret.present(name="Make the cluster's secret")
health.tool()
seed = secret.value(control)
heads = [replica for replica in mine if host.name == replica.head.name]
answering = [replica for replica in heads if gateways()]
stays = [unit for replica in mine for unit in (*ray.units(replica), *vllm.units(replica, host.name))]
stays += [health.unit(replica) for replica in answering]
folders = [replica.name for replica in mine]
if host.name in gateways():
    stays.append(gateway.UNIT)
    folders.append("gateway")
units.only(name="Stop vLLM that is not planned", pattern="rackserve-*-vllm.service", keep=stays)
barrier(name="No unplanned vLLM runs")
units.only(name="Stop what else is not planned", pattern="rackserve-*.service", keep=stays)
replicas.only(name="Remove replicas that are not planned", keep=folders)
barrier(name="Only planned replicas are left")

with_ray = [replica for replica in mine if replica.executor == "ray"]
for replica in host.loop([replica for replica in with_ray if host.name == replica.head.name]):
    ray.node(replica, host.name, environment, variables(replica), secret.derive(seed, f"ray {replica.name}"))
barrier(name="Ray's heads run")
for replica in host.loop([replica for replica in with_ray if host.name != replica.head.name]):
    ray.node(replica, host.name, environment, variables(replica), secret.derive(seed, f"ray {replica.name}"))
barrier(name="Ray's workers run")

for replica in host.loop([replica for replica in mine if vllm.units(replica, host.name)]):
    vllm.server(
        replica,
        host.name,
        arguments={
            **weights.load_strategy(
                weights.disks(replica.hosts, model_path), stored_bytes(model.architecture)
            ),
            **vllm.arguments(
                model, replica, host.name, model_path, vllm.template_path(replica) if template else None
            ),
        },
        environment=environment,
        variables={**variables(replica), **ray.driver(replica), **vllm.variables(model, service.CACHE)},
        api_key=own.api_key or secret.derive(seed, "api key"),
        model_path=model_path,
        template=template,
        needs=ray.units(replica),
    )
barrier(name="vLLM runs")

for replica in host.loop(heads):
    health.generating(
        name=f"Wait until {replica.name} generates",
        python=python,
        url=f"http://127.0.0.1:{replica.ports.api}",
        secrets=vllm.secrets_path(replica),
        units=[*vllm.units(replica, host.name), *ray.units(replica)],
        timeout=own.ready_timeout,
    )
barrier(name="Every replica generates")

if gateways():
    for replica in host.loop(answering):
        health.watched(replica, secrets=vllm.secrets_path(replica))
    barrier(name="Every replica says how it is")
if host.name in gateways():
    gateway.serving(
        servers=[
            gateway.Server(
                name=replica.name,
                address=replica.head.address,
                port=replica.ports.api,
                health_port=replica.ports.health,
                requests=vllm.requests(replica),
            )
            for replica in plan().replicas
        ],
        port=own.gateway_port,
    )
