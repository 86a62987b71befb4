"""The lab's bridge, its NAT to the outside, and faults on a node's link."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from pathlib import Path

from .paths import BRIDGE, GATEWAY, MARK, STATE, SUBNET
from .shell import LabError, run, succeeds

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
FORWARDING_BEFORE = STATE / "ip_forward.before"

_COMMENT = ("-m", "comment", "--comment", MARK)
_RULES = (
    ("nat", "POSTROUTING", ("-s", str(SUBNET), "!", "-d", str(SUBNET), "-j", "MASQUERADE")),
    ("filter", "FORWARD", ("-i", BRIDGE, "-j", "ACCEPT")),
    ("filter", "FORWARD", ("-o", BRIDGE, "-j", "ACCEPT")),
)


def check() -> None:
    """Refuse when the bridge's name or subnet already belongs to something else."""
    for link in json.loads(run("ip", "-json", "link", "show")):
        if link["ifname"] == BRIDGE and link.get("ifalias") != MARK:
            raise LabError(f"interface {BRIDGE} exists and is not the lab's; rename or remove it")
    for route in json.loads(run("ip", "-json", "-4", "route", "show")):
        if route["dst"] == "default" or route.get("dev") == BRIDGE:
            continue
        if IPv4Network(route["dst"], strict=False).overlaps(SUBNET):
            raise LabError(f"{route['dst']} on {route['dev']} overlaps the lab's subnet {SUBNET}")


def up() -> None:
    """Make the bridge and let its nodes out; doing it twice changes nothing."""
    if not _bridge_exists():
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "link", "set", BRIDGE, "alias", MARK)
        run("ip", "address", "add", f"{GATEWAY}/{SUBNET.prefixlen}", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    if not FORWARDING_BEFORE.exists():
        FORWARDING_BEFORE.write_text(FORWARDING.read_text())
    FORWARDING.write_text("1")
    for table, chain, rule in _RULES:
        if not succeeds("iptables", "-t", table, "-C", chain, *rule, *_COMMENT):
            run("iptables", "-t", table, "-I", chain, *rule, *_COMMENT)


def down() -> None:
    """Remove what `up` made and put IP forwarding back as it was."""
    for table, chain, rule in _RULES:
        while succeeds("iptables", "-t", table, "-D", chain, *rule, *_COMMENT):
            pass
    if _bridge_exists() and f"alias {MARK}" in run("ip", "link", "show", BRIDGE):
        run("ip", "link", "delete", BRIDGE)
    if FORWARDING_BEFORE.exists():
        FORWARDING.write_text(FORWARDING_BEFORE.read_text())
        FORWARDING_BEFORE.unlink()


def cut(link: str) -> None:
    """Take a node's cable out."""
    run("ip", "link", "set", link, "down")


def heal(link: str) -> None:
    """Undo `cut` and `slow`."""
    run("ip", "link", "set", link, "up")
    succeeds("tc", "qdisc", "delete", "dev", link, "root")


def slow(link: str, mbit: int) -> None:
    """Shape what a node receives to `mbit` Mbit/s."""
    shape = ("tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "100ms")
    run("tc", "qdisc", "replace", "dev", link, "root", *shape)


def _bridge_exists() -> bool:
    return succeeds("ip", "link", "show", BRIDGE)
