"""A gateway that moves: the new one is there before the old one ends."""

from __future__ import annotations

from threading import RLock

from pyinfra import host, inventory, state

from models.rollout import Rollout
from roles import gateway, units
from roles.barrier import barrier

from .cluster import Refused, asked, cluster, gateways, here
from .replacing import at_gateway, ignored, server

_once = RLock()  # hosts are prepared side by side


def hand_over(rollout: Rollout) -> None:
    """Every gateway sees what answers; then hosts that were one end, with their last answer.

    A gateway that an earlier run has begun to end ends first: nobody else takes its place.
    """
    host.get_fact(units.InstalledUnits, pattern=units.OURS)  # each its own, before one asks all
    with _once:
        former = _former()
    ending = at_gateway() and host.get_fact(gateway.Configuration).ending
    if not former and not ending:
        return
    if ending:
        _end("Let the gateway end before it starts anew")
    if at_gateway() and (serving := rollout.serving(0)) and not _serves():
        gateway.serving(servers=[server(release) for release in serving], port=here().gateway_port)
    for name in host.loop(rollout.answering if at_gateway() else ()):
        otherwise = ignored if here().degraded else None
        gateway.seen(name=f"Wait until this gateway sees {name}", replica=name, otherwise=otherwise)
    barrier(name="Every gateway knows what answers")
    if host.name in former:
        _end("Hand over to another gateway" if gateways() else "End the gateway")
        units.only(name="Remove the gateway", pattern="rackserve-gateway-*.service")
    barrier(name="No other host is a gateway")


def _former() -> list[str]:
    """The hosts that are a gateway and are to be none; Refused when --limit leaves one out."""
    hosts = [name for name in cluster().hosts if name not in gateways() and _is_there(name)]
    for name in (*hosts, *gateways()) if hosts else ():
        if inventory.get_host(name) not in state.activated_hosts:
            raise Refused(f"{name} is, or was, a gateway, and --limit leaves it out: add --limit {name}")
    return hosts


def _is_there(name: str) -> bool:
    return gateway.UNIT in asked(name).get_fact(units.InstalledUnits, pattern=units.OURS)


def _serves() -> bool:
    """Its configuration is then not to be touched here: what leaves is drained first."""
    now = host.get_fact(gateway.Configuration)
    return now.active and not now.ending


def _end(name: str) -> None:
    gateway.ended(name=name, timeout=here().drain_timeout, cut=here().cut)
