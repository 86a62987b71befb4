"""Our units, and what an earlier run left beside them."""

from __future__ import annotations

from typing import Any

from ..check import Host, Verdict, check, failed, passed
from ..parse import limit

RESTARTS = 3  # of a unit, or falls of a replica in a row
NOFILE = 65536  # Ray's


@check(
    "units.state",
    "Our units run, and do not die again and again",
    looks_at="systemctl show, /run/rackserve/*/state.json",
    fix="rackserve doctor --logs",
    reference="vllm#32136",
)
def state(host: Host) -> Verdict | None:
    units = host.get("units")
    if not units:
        return None
    for unit in units:
        if unit["ActiveState"] == "failed" or unit["SubState"] == "auto-restart":
            return failed(f"{unit['Id']} is {unit['SubState']} ({unit['Result']}), "
                          f"{unit['NRestarts']} restarts")  # fmt: skip
        if int(unit["NRestarts"]) >= RESTARTS:
            return failed(f"{unit['Id']} was restarted {unit['NRestarts']} times")
    for replica, gang in host.get("gangs").items():
        if gang["row"] >= RESTARTS:
            return failed(f"{replica} fell {gang['row']} times in a row: {gang['recent'][-1]['why']}")
        if gang["state"] == "waiting":
            return failed(f"{replica} is waiting: {gang['why']}")
    return passed(f"{len(units)} units")


@check(
    "units.memlock",
    "Our units may pin memory without limit",
    looks_at="LimitMEMLOCK of the units, /proc/PID/limits of what runs in them",
    fix="systemctl cat 'rackserve-*' on {host}: remove what lowers LimitMEMLOCK; systemctl daemon-reload",
    reference="nccl-tests#206",
)
def memlock(host: Host) -> Verdict | None:
    units = _working(host)
    for unit in units:
        runs_with = limit(unit.get("limits") or "", "Max locked memory")
        if unit["LimitMEMLOCK"] != "infinity":
            return failed(f"{unit['Id']}: LimitMEMLOCK={unit['LimitMEMLOCK']}")
        if runs_with not in ("", "unlimited"):
            return failed(f"{unit['Id']} runs with {runs_with} bytes", "rackserve deploy serve")
    return passed("infinity") if units else None


@check(
    "units.nofile",
    "Our units may open enough files",
    looks_at="LimitNOFILE of the units",
    fix="systemctl cat 'rackserve-*' on {host}: remove what lowers LimitNOFILE; systemctl daemon-reload",
    reference="docs.ray.io: ulimit -n 65536",
)
def nofile(host: Host) -> Verdict | None:
    units = _working(host)
    for unit in units:
        if unit["LimitNOFILE"] != "infinity" and int(unit["LimitNOFILE"]) < NOFILE:
            return failed(f"{unit['Id']}: LimitNOFILE={unit['LimitNOFILE']}")
    return passed("enough") if units else None


@check(
    "units.address",
    "Ray, vLLM, NCCL and Gloo were told the inventory's address",
    looks_at="Environment= of the units",
    fix="rackserve deploy serve",
    reference="vllm#6775",
)
def address(host: Host) -> Verdict | None:
    units, net = _working(host), host.get("net")
    if not units:
        return None
    wanted = {
        "VLLM_HOST_IP": host.expected.address,
        "NCCL_SOCKET_IFNAME": f"={net['name']}",
        "GLOO_SOCKET_IFNAME": net["name"],
    }
    for unit in units:
        for name, value in wanted.items():
            if unit["network"].get(name) != value:
                return failed(f"{unit['Id']}: {name} is {unit['network'].get(name, 'unset')}, not {value}")
    return passed(f"{host.expected.address} on {net['name']}")


@check(
    "units.strays",
    "No vLLM or Ray runs outside our units",
    looks_at="/proc/*/comm and cgroup",
    fix="sudo kill PID on {host}, if nobody needs it",
    reference="vllm#42017",
)
def strays(host: Host) -> Verdict | None:
    rows = host.get("processes")
    others = [row for row in rows if "/rackserve-" not in row[2]]
    if not others:
        return passed(f"{len(rows)} processes, all ours")
    said = ", ".join(f"{name} (pid {pid})" for pid, name, _ in others[:4])
    return failed(said, f"sudo kill {' '.join(str(row[0]) for row in others[:20])} on {host.name}, "
                        "if nobody needs it")  # fmt: skip


def _working(host: Host) -> list[dict[str, Any]]:
    """The units of vLLM and Ray: what is beside them and before them has other needs."""
    return [unit for unit in host.get("units") if unit["Id"].endswith(("-vllm.service", "-ray.service"))]
