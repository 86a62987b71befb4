"""What only --deep knows: the disk's speed, who reaches whom, how fast GPUs reduce together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..check import STATUSES, Host, Ranks, Unclear, Verdict, check, check_across, failed, passed, warned
from ..parse import size
from ..rates import Floor, busbw, floor, is_direct, network

#: Bytes/s. SATA's 6 Gb/s are 0.6e9 of data: what is slower is a disk on it, or on the network.
READS, WRITES = 1e9, 0.5e9


@check(
    "disk.speed",
    "The disk of the weights is as fast as flash on PCIe",
    looks_at="up to 1 GiB written and read past the page cache, 5 s each, on all hosts at once",
    fix="move the weights of {host} to a local NVMe disk (`mount`, docs/weights.md), or raise ready_timeout",
    reference="vllm#28821",
    deep=True,
)
def disk_speed(host: Host) -> Verdict | None:
    found = host.measure("disk")
    read, wrote = (moved / seconds for moved, seconds in (found["read"], found["wrote"]))
    said = f"reads {_rate(read)}, writes {_rate(wrote)} in {found['folder']}"
    if not found["direct"]:
        said += ", through the page cache (no O_DIRECT there)"
    if host.expected.loads:
        took = host.expected.loads / read
        said += f"; the {size(host.expected.loads)} of weights that it loads take {took:.0f} s at best"
    return warned(said) if read < READS or wrote < WRITES else passed(said)


#: How a connection is turned away, and who does so.
WHY = {"silent": "a firewall drops them", "refused": "a firewall rejects them"}


@check_across(
    "net.reach",
    "The other hosts of its replicas reach its ports",
    looks_at="a connection from each of them to each of its ports, of Ray's to three; to our own listener "
    "where nothing listens yet",
    fix="let the other nodes in on {host}: sudo ufw allow from ADDRESS; else see sudo iptables -S",
    reference="vllm#28498",
    deep=True,
)
def reach(hosts: Sequence[Host]) -> Mapping[str, Verdict]:
    rows = [
        (host.name, *row)
        for host in hosts
        for row in ((host.measured or {}).get("connecting") or {}).get("rows", ())
    ]
    return {host.name: _reached(host, hosts, rows) for host in hosts if host.expected.listens}


def _reached(host: Host, hosts: Sequence[Host], rows: Sequence[Sequence[Any]]) -> Verdict:
    """What the others say of one."""
    try:
        held = host.measure("listening")["held"]
    except Unclear as unclear:
        return Verdict("unknown", str(unclear))
    mine = [(name, port, how) for name, to, port, how in rows if to == host.name]
    away: dict[str, dict[int, list[str]]] = {}
    for name, port, how in mine:
        if how != "open":
            away.setdefault(how, {}).setdefault(port, []).append(name)
    heard = {name for name, *_ in mine}
    unasked = [one.name for one in hosts if host.name in one.expected.reaches and one.name not in heard]
    if away:
        return failed("; ".join(_turned_away(how, ports, held) for how, ports in away.items()))
    if unasked:
        return Verdict("unknown", f"nothing is known of the way from {', '.join(unasked)}")
    ports = ", ".join(map(str, sorted({port for _, port, _ in mine})))
    return passed(f"{ports} from {', '.join(dict.fromkeys(name for name, *_ in mine))}")


def _turned_away(how: str, ports: Mapping[int, Sequence[str]], held: Sequence[int]) -> str:
    """Ports that the same hosts do not reach, together."""
    by_hosts: dict[tuple[str, ...], list[int]] = {}
    for port, names in ports.items():
        by_hosts.setdefault(tuple(names), []).append(port)
    said = [f"{', '.join(names)} to {', '.join(map(str, numbers))}" for names, numbers in by_hosts.items()]
    why = WHY.get(how, "")
    if how == "refused" and not {*ports} <= {*held}:
        why = "who has the port listens on another address"
    return f"{how} from {'; '.join(said)}" + (f" ({why})" if why else "")


#: Where NCCL does not take the HCAs that it is told.
TCP = "first what else the doctor says of ib, nccl.hcas and units.memlock; docs/fabric.md: Is it used?"


@check_across(
    "gpu.allreduce",
    "The GPUs of a replica reduce as fast as their links",
    looks_at="all-reduces of 1 KiB to 1 GiB on every replica that does not run, with torch and NCCL of "
    "vLLM's environment; NCCL's log",
    fix="first what else the doctor says of ib, nccl.hcas, gpu.nvlink and pci; then docs/fabric.md",
    reference="nccl#2409",
    deep=True,
)
def allreduce(hosts: Sequence[Host]) -> Mapping[str, Verdict]:
    """Of a replica its first host says it."""
    by_name, said = {host.name: host for host in hosts}, {}
    for host in hosts:
        verdicts = [
            _reduced(ranks, by_name) for ranks in host.expected.ranks
            if ranks.hosts[0] == host.name and f"allreduce {ranks.replica}" in (host.measured or {})
        ]  # fmt: skip
        if verdicts:
            worst = min(verdicts, key=lambda one: STATUSES.index(one.status))
            said[host.name] = Verdict(worst.status, "; ".join(one.evidence for one in verdicts), worst.fix)
    return said


def _reduced(ranks: Ranks, hosts: Mapping[str, Host]) -> Verdict:
    """What one replica's all-reduce shows."""
    its, found = [hosts[name] for name in ranks.hosts if name in hosts], _found(ranks, hosts)
    if "rows" not in found:
        parts = {name: _found(ranks, hosts, name) for name in reversed(ranks.hosts) if name in hosts}
        errors = "; ".join(dict.fromkeys(part["error"] for part in parts.values() if "error" in part))
        began = any(part.get("nccl") for part in parts.values())
        return (
            failed(f"{ranks.replica}: {errors}") if began else Verdict("unknown", f"not measured: {errors}")
        )
    lines = [line for host in its for line in _found(ranks, hosts, host.name).get("nccl", ())]
    over = "gloo" if ranks.backend == "gloo" else network(lines)
    best, figures = _figures(ranks, found["rows"])
    said = f"{ranks.replica}: {len(its) * ranks.gpus} ranks on {', '.join(ranks.hosts)}, {figures}"
    if len(its) == 1:
        return _judged(best, floor(ranks, its, over), said, failed)
    said += f", over {_way(over, lines)}"
    if over == "Socket" and (promise := _promise(its)):
        return failed(f"{said}: it would serve over TCP, and {promise}", TCP)
    return _judged(best, floor(ranks, its, over), said, warned if over == "gloo" else failed)


def _found(ranks: Ranks, hosts: Mapping[str, Host], name: str = "") -> Mapping[str, Any]:
    """What one of its hosts measured: the first, unless another is asked."""
    return (hosts[name or ranks.hosts[0]].measured or {}).get(f"allreduce {ranks.replica}") or {}


def _judged(best: float, least: Floor | None, said: str, say: Any) -> Verdict:
    if least is None:
        return passed(f"{said}; no floor: a link's rate is not known")
    if best < least.rate:
        return say(f"{said}; at least {_rate(least.rate)} was to be expected ({least.said})")
    return passed(f"{said}; the floor is {_rate(least.rate)}")


def _figures(ranks: Ranks, rows: Sequence[Sequence[float]]) -> tuple[float, str]:
    """The best busbw, and what is said of it and of the smallest."""
    count = len(ranks.hosts) * ranks.gpus
    rates = {int(length): busbw(int(length), seconds, count) for length, seconds in rows}
    at = max(rates, key=lambda length: rates[length])
    small, took = rows[0]
    return rates[at], f"busbw {_rate(rates[at])} at {size(at)}; {size(small)} in {took * 1e3:.3g} ms"


def _promise(hosts: Sequence[Host]) -> str:
    """Who says that it is InfiniBand or RoCE."""
    for host in hosts:
        if host.expected.names_hcas:
            return f"`hcas` of {host.name} names HCAs"
        told = host.expected.nccl or (host.seen or {}).get("nccl") or ""
        if re.search(r"(?m)^NCCL_IB_HCA=", told):
            return f"/etc/nccl.conf of {host.name} names HCAs"
    return ""


def _way(over: str, lines: Sequence[str]) -> str:
    if over == "gloo":
        return "TCP by Gloo"
    how = "" if over != "IB" else " with GPUDirect" if is_direct(lines) else " without GPUDirect"
    return f"NET/{over}{how}" if over else "what NCCL did not say"


def _rate(rate: float) -> str:
    return f"{rate / 1e9:.3g} GB/s"
