"""Stop serving: every replica's units and configuration, gone; the node stays provisioned."""

from pyinfra import host

from deploys.cluster import begin
from roles import gang, gateway, health, releases, replicas, units, vllm, weights
from roles.barrier import barrier

begin()

if host.get_fact(gateway.Configuration).ending:  # it would be waited for
    gateway.ended(name="Cut what the gateway still answers", timeout=0, cut=True)
units.only(name="Stop the gateway", pattern="rackserve-gateway-*.service")
units.only(name="Stop every replica", pattern="rackserve-*-gang.service")
barrier(name="No replica runs")
units.only(name="Remove their units", pattern=units.OURS)
replicas.only(name="Remove the replicas' configuration")
weights.undescribed(name="Remove what stood in for weights")
vllm.nothing()
health.no_tool()
gang.no_tool()
releases.no_tool()
gateway.nothing()
barrier(name="Nothing is served")
