"""Whether each GPU is well, at full speed, and nobody else's."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from ..check import Host, Verdict, check, failed, passed, warned
from ..parse import fatal_sxids, links, off_the_bus, xids
from .gpus import seen_gpus

#: Errors of a GPU that will not serve, as NVIDIA's catalogue has them (docs.nvidia.com/deploy/xid-errors,
#: Analyzing Xid Errors). 63 is a row remapped; after 109, a program that hangs, others may still run.
FATAL = {48, 64, 74, 79, 94, 95, 119, 120, 140, 143}
NOTED = {63, 109}

#: Those of NVLink 5 say themselves whether they are fatal; this one only what the others make necessary.
NVLINK_5 = range(144, 151)
RECOVERY = 154


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


@check(
    "gpu.ecc",
    "No memory error that ECC could not correct",
    looks_at="nvidia-smi -q: ECC Mode, ECC Errors",
    fix="drain {host}; sudo nvidia-smi --gpu-reset -i BUS; if it comes back, have the GPU replaced",
    reference="nccl#968",
    gpus_only=True,
)
def ecc(host: Host) -> Verdict | None:
    now: dict[str, int] = defaultdict(int)
    ever: dict[str, int] = defaultdict(int)
    off = []
    for gpu in seen_gpus(host):
        if gpu.get("ECC Mode/Current") == "Disabled":
            off.append(gpu["Bus"])
        for name, value in gpu.items():
            # "Aggregate Uncorrectable SRAM Sources" says once more where those of SRAM were.
            if name.startswith(("ECC Errors/Volatile/", "ECC Errors/Aggregate/")) and "Uncorrectable" in name:
                (now if "/Volatile/" in name else ever)[gpu["Bus"]] += _number(value)
    for bus, errors in now.items():
        if errors:
            return failed(f"{errors} uncorrectable since it booted on {bus}")
    for bus, errors in ever.items():
        if errors:
            return warned(f"{errors} uncorrectable in its life on {bus}")
    return (
        warned(f"ECC is off on {', '.join(off)}", "sudo nvidia-smi -e 1; reboot") if off else passed("none")
    )


@check(
    "gpu.rows",
    "No row of GPU memory waits to be remapped",
    looks_at="nvidia-smi -q: Remapped Rows",
    fix="drain {host} and reboot it; after a failure to remap have the GPU replaced",
    reference="wtdcode/vllm-backport#62",
    gpus_only=True,
)
def rows(host: Host) -> Verdict | None:
    for gpu in seen_gpus(host):
        if gpu.get("Remapped Rows/Remapping Failure Occurred") == "Yes":
            return failed(f"remapping failed on {gpu['Bus']}")
        if gpu.get("Remapped Rows/Pending") == "Yes":
            return failed(f"a remapping is pending on {gpu['Bus']}")
    return passed("none")


@check(
    "gpu.xid",
    "The kernel has reported no GPU failure",
    looks_at="the kernel's log since boot: NVRM: Xid, fatal SXid, fallen off the bus",
    fix="drain {host}; look the code up (docs.nvidia.com/deploy/xid-errors); reboot; have it replaced",
    reference="NVSentinel#1748",
    gpus_only=True,
)
def xid(host: Host) -> Verdict | None:
    kernel = host.get("kernel")
    if wrong := list(dict.fromkeys(_failures(kernel))):
        return failed(", ".join(wrong[:4]))
    seen = {(code, bus): f"Xid {code} on {bus}" for bus, code, _ in sorted(xids(kernel))}
    if noted := [said for (code, _), said in seen.items() if code in NOTED]:
        return warned(", ".join(noted[:4]))
    others = f"no failure; seen: {', '.join(list(seen.values())[:4])}"
    return passed(others if seen else "none since it booted")


def _failures(kernel: str) -> Iterator[str]:
    """What of the kernel's log is a GPU or NVSwitch that will not serve."""
    actions, lost = {}, set()
    for bus, code, said in xids(kernel):
        if code in FATAL or (code in NVLINK_5 and re.search(r"\bFatal\b", said)):
            yield f"Xid {code} on {bus}"
        if code == RECOVERY:
            actions[bus] = said.rpartition("(")[2].strip(" ,)")
        if code == 79:
            lost.add(bus)
    yield from (f"{bus} needs: {action}" for bus, action in actions.items() if action != "None")
    yield from (f"SXid {code} on {bus}" for bus, code in fatal_sxids(kernel))
    yield from (f"{bus} fell off the bus" for bus in off_the_bus(kernel) if bus[:-2] not in lost)


@check(
    "gpu.nvlink",
    "Every GPU has as many NVLinks up as its neighbours",
    looks_at="nvidia-smi nvlink --status",
    fix="drain {host} and reboot it; if the link stays away, have the board looked at",
    reference="nccl#340",
    gpus_only=True,
)
def nvlink(host: Host) -> Verdict | None:
    found = links(host.get("nvlink"))
    up = {gpu: sum(of) for gpu, of in found.items()}
    most = max(up.values(), default=0)
    if not most:
        return passed("no NVLink")
    # That some are inactive is how two bridged PCIe cards look, beside which another may have no bridge;
    # that one GPU has fewer is not.
    if any(of.count(False) for of in found.values() if sum(of) == most):
        up = {gpu: number for gpu, number in up.items() if number}
    short = {gpu: number for gpu, number in up.items() if number < most}
    if short:
        said = ", ".join(f"{number} on GPU {gpu}" for gpu, number in sorted(short.items()))
        return failed(f"{said}; {most} on the others")
    return passed(f"{most} on each")


@check(
    "gpu.pcie",
    "Each GPU has its full PCIe width",
    looks_at="nvidia-smi -q: Link Width",
    fix="drain {host} and reseat the card; check the riser and the BIOS's bifurcation",
    reference="nccl#700",
    gpus_only=True,
)
def pcie(host: Host) -> Verdict | None:
    said = []
    for gpu in seen_gpus(host):
        width = {key: gpu.get(f"PCI/GPU Link Info/Link Width/{key}", "") for key in ("Current", "Max")}
        if width["Current"][:-1].isdigit() and width["Current"] != width["Max"]:
            said.append(f"{width['Current']} of {width['Max']} on {gpu['Bus']}")
    return warned(", ".join(said)) if said else passed("full")


@check(
    "gpu.slowdown",
    "No GPU is slowed down by heat or power",
    looks_at="nvidia-smi -q: Clocks Event Reasons",
    fix="check power supplies, power cables and cooling of {host} (ipmitool sdr)",
    reference="leptonai/gpud#330",
    gpus_only=True,
)
def slowdown(host: Host) -> Verdict | None:
    said = []
    for gpu in seen_gpus(host):
        said += [
            f"{name.rsplit('/', 1)[1]} on {gpu['Bus']}"
            for name, value in gpu.items()
            if "HW Slowdown/" in name and value == "Active"
        ]
    return failed(", ".join(said[:3])) if said else passed("none")


@check(
    "gpu.processes",
    "Nobody else computes on the GPUs",
    looks_at="nvidia-smi --query-compute-apps, /proc/PID/cgroup",
    fix="sudo kill PID on {host}, if nobody needs it",
    reference="vllm#34643",
    gpus_only=True,
)
def processes(host: Host) -> Verdict | None:
    cgroups = host.get("gpu_cgroups")
    lines = [line.split(", ") for line in host.get("gpu_processes").splitlines() if line[:1].isdigit()]
    others = {pid: memory for pid, memory in lines if "/rackserve-" not in cgroups.get(pid, "")}
    if not others:
        return passed(f"{len(lines)} processes, all ours")
    said = ", ".join(f"pid {pid} holds {memory}" for pid, memory in others.items())
    return failed(said, f"sudo kill {' '.join(others)} on {host.name}, if nobody needs it")
