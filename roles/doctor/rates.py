"""How fast GPUs should reduce over a link: a share of its nominal rate, one row for each kind. Pure.

busbw is what nccl-tests call so, doc/PERFORMANCE.md there: comparable with a link's rate, whatever the number
of ranks. A floor is below what others measured where all was well, and above what they had where it was not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from models.hardware import UnknownGpu, gpu

from .check import Host, Ranks


@dataclass(frozen=True)
class Link:
    """A kind of link, and the share of its rate that a large all-reduce must reach."""

    name: str
    share: float
    source: str


LINKS = {
    "nvlink": Link(
        "NVLink", 0.7,
        "of 300 and 450 GB/s: 230 to 250 on 8 A100, 460 to 480 on 8 H100, and 20 % less is a fault "
        "(docs.alayanew.com, NCCL-tests in practice, 2026)",
    ),
    "pcie": Link(
        "PCIe", 0.3, "of 64 GB/s: 35 to 45 on 8 H100 PCIe (same page); less between two sockets: assumed",
    ),
    "IB": Link(
        "InfiniBand or RoCE", 0.7,
        "of 100 GB/s: 75 was what NVIDIA expects (nccl#495); of 400: 231 was the fault of nccl#2409, and 470 "
        "what it ought to be; of one 400 Gb/s port for each GPU: 50 (nccl-tests#232)",
    ),
    "Socket": Link("TCP", 0.25, "of 12.5 GB/s: 4 to 6 (nccl#450); of 4: at most 60 % (nccl#209)"),
    "gloo": Link("TCP by Gloo", 0.1, "assumed: it is for the lab, and only warns"),
}  # fmt: skip

#: GPUs with less to their neighbours have no NVLink to all of them (models/hardware.py).
NVLINK = 200e9


@dataclass(frozen=True)
class Floor:
    """Bytes/s of busbw, and what of."""

    rate: float
    said: str


def busbw(size: int, seconds: float, ranks: int) -> float:
    """algbw * 2(n-1)/n, in bytes/s."""
    return size / seconds * 2 * (ranks - 1) / ranks


def network(lines: Iterable[str]) -> str:
    """What NCCL went over between nodes, of its log: IB, Socket, a plugin's name; empty when it said nothing.

    Socket when any connection is.
    """
    text = "\n".join(lines)
    ways = re.findall(r"via NET/(\w+)", text) or re.findall(r"Using network (\w+)", text)
    if "Socket" in ways:
        return "Socket"
    return "IB" if any(way.startswith("IB") for way in ways) else (ways or [""])[0]


def is_direct(lines: Iterable[str]) -> bool:
    """Cards read GPU memory themselves, on every connection between nodes."""
    ways = [line for line in lines if "via NET/" in line]
    return bool(ways) and all("/GDRDMA" in line for line in ways)


def floor(ranks: Ranks, hosts: Sequence[Host], over: str) -> Floor | None:
    """The lower one of a node's inside and what is between nodes; None where no rate is known.

    + over: what `network` says, or gloo
    """
    floors = [_inside(host) for host in hosts] if ranks.gpus > 1 and over != "gloo" else []
    if len(hosts) > 1:
        floors += [_between(host, ranks.gpus, over) for host in hosts]
    known = [one for one in floors if one]
    return min(known, key=lambda one: one.rate) if len(known) == len(floors) and known else None


def _inside(host: Host) -> Floor | None:
    try:
        rate = gpu(host.expected.gpu or "").link
    except UnknownGpu:
        return None
    return _floor("nvlink" if rate >= NVLINK else "pcie", rate, host.name)


def _between(host: Host, gpus: int, over: str) -> Floor | None:
    """A GPU uses one port, its nearest."""
    seen = host.seen or {}
    if over == "IB":
        return _floor("IB", sum(sorted(_ports(host), reverse=True)[:gpus]), host.name)
    speed = str((seen.get("net") or {}).get("speed") or "").strip()
    known = over in LINKS and speed.isdigit()
    return _floor(over, int(speed) * 1e6 / 8, host.name) if known else None


def _ports(host: Host) -> list[float]:
    """Bytes/s of the ports that are up, of those that NCCL is told where it is told some."""
    seen = host.seen or {}
    told = re.findall(r"(?m)^NCCL_IB_HCA==(.*)", seen.get("nccl") or "")
    words = told[0].split(",") if told else []
    return [
        float(port["rate"].split()[0]) * 1e9 / 8
        for name, port in (seen.get("infiniband") or {}).items()
        if "ACTIVE" in port["state"]
        and (not words or {name.replace("/", ":"), name.split("/")[0]} & {*words})
    ]


def _floor(kind: str, rate: float, name: str) -> Floor | None:
    link = LINKS[kind]
    said = f"{link.share:.0%} of {rate / 1e9:.4g} GB/s, {link.name} of {name}"
    return Floor(rate * link.share, said) if rate else None
