"""A gateway that moves: the new one is there before the old one ends."""

from __future__ import annotations

from pyinfra import host

from models.rollout import Rollout
from roles import gateway, units
from roles.barrier import barrier

from .cluster import gateways, here
from .replacing import at_gateway, ignored, server


def hand_over(rollout: Rollout) -> None:
    """Hosts that become gateways know what answers; then those that were end, with their last answer."""
    ours = host.get_fact(units.InstalledUnits, pattern=units.OURS)
    if at_gateway() and gateway.UNIT not in ours and (serving := rollout.serving(0)):
        gateway.serving(servers=[server(release) for release in serving], port=here().gateway_port)
        for name in host.loop(rollout.answering):
            gateway.seen(name=f"Wait until the gateway sees {name}", replica=name, otherwise=ignored)
    barrier(name="Every gateway knows what answers")
    if not at_gateway() and gateway.UNIT in ours:
        gateway.ended(
            name="Hand over to another gateway" if gateways() else "End the gateway",
            timeout=here().drain_timeout, cut=here().cut,
        )  # fmt: skip
    barrier(name="No other host is a gateway")
