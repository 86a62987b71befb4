"""Stop serving: every replica's units and configuration, gone; the node stays provisioned."""

from deploys.cluster import begin
from roles import gateway, health, replicas, units, vllm
from roles.barrier import barrier

begin()

units.only(name="Stop vLLM", pattern="rackserve-*-vllm.service")
barrier(name="No vLLM runs")
units.only(name="Stop Ray and the gateway", pattern="rackserve-*.service")
replicas.only(name="Remove the replicas' configuration")
vllm.nothing()
health.no_tool()
gateway.nothing()
barrier(name="Nothing is served")
