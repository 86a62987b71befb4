"""Memory, shared memory, and kernel settings that cost speed."""

from __future__ import annotations

import re

from ..check import Host, Verdict, check, failed, passed, warned
from ..parse import GiB, meminfo, size

#: What NCCL's guide gives a container for each job, and what vLLM's queues take beside it.
LEAST_SHM = GiB
WISHED_SHM = 16 * GiB
LEAST_SHM_ON_CPU = 64 * 2**20

STALE = 60  # seconds; what is younger may be about to be opened
MUCH = 0.5  # of /dev/shm: vLLM leaves 0.4 GB each time it is killed, and then there is no room


@check(
    "shm.size",
    "/dev/shm has room for NCCL and vLLM",
    looks_at="statvfs of /dev/shm",
    fix="sudo mount -o remount,size=50% /dev/shm",
    reference="vllm#1710",
)
def shm_size(host: Host) -> Verdict | None:
    disk = host.get("folders")["/dev/shm"]
    said = f"{size(disk['free'])} free of {size(disk['size'])}"
    if disk["free"] < (LEAST_SHM if host.expected.needs_gpus else LEAST_SHM_ON_CPU):
        return failed(said)
    if host.expected.needs_gpus and disk["size"] < WISHED_SHM:
        return warned(said)
    return passed(said)


@check(
    "shm.stale",
    "Nothing of a dead process is left in /dev/shm",
    looks_at="/dev/shm, /proc/*/maps",
    fix="sudo rm /dev/shm/nccl-* on {host}, while it serves nothing",
    reference="nccl#342",
)
def shm_stale(host: Host) -> Verdict | None:
    stale = [one for one in host.get("shm") if not one["used"] and one["age"] > STALE]
    if not stale:
        return passed("nothing")
    names = sorted(one["name"] for one in stale)
    held = sum(one["bytes"] for one in stale)
    say = failed if held > MUCH * host.get("folders")["/dev/shm"]["size"] else warned
    return say(
        f"{len(stale)} files that no process has, {size(held)}: {', '.join(names[:3])}",
        f"sudo rm {' '.join('/dev/shm/' + name for name in names)}",
    )


@check(
    "memory.cache",
    "Memory holds the weights as they are read",
    looks_at="/proc/meminfo, the plan",
    fix="stage on local flash, or expect loading to take the disk's time: docs/weights.md",
    reference="vllm#40988",
)
def cache(host: Host) -> Verdict | None:
    if not host.expected.weights_bytes or not host.expected.needs_gpus:
        return None
    total = meminfo(host.get("meminfo"))["MemTotal"]
    said = f"{size(total)} of memory, {size(host.expected.weights_bytes)} of weights"
    return passed(said) if total >= host.expected.weights_bytes else warned(said)


@check(
    "memory.killed",
    "The kernel has killed nothing for lack of memory",
    looks_at="the kernel's log since boot",
    fix="rackserve doctor --logs; give vLLM less (max-num-seqs, cpu-offload-gb), or the host more",
    reference="ROLL#234",
)
def killed(host: Host) -> Verdict | None:
    # A control group's: of a container, or of a unit with a MemoryMax.
    found = re.findall(r"((?:Memory cgroup o|O)ut of memory: Killed.*)", host.get("kernel"))
    if not found:
        return passed("none since it booted")
    return warned(f"{len(found)} since it booted, last: {found[-1][:120]}")


@check(
    "kernel.numa",
    "The kernel does not move pages between NUMA nodes",
    looks_at="/proc/sys/kernel/numa_balancing",
    fix="sudo sysctl -w kernel.numa_balancing=0",
    reference="DeepEP#624",
    gpus_only=True,
)
def numa(host: Host) -> Verdict | None:
    value = host.get("numa_balancing").strip()
    return passed("off") if value == "0" else warned(f"kernel.numa_balancing is {value}")


@check(
    "cpu.governor",
    "The CPU runs at its clock",
    looks_at="/sys/devices/system/cpu/*/cpufreq/scaling_governor",
    fix="rackserve deploy provision, with `governor` not False",
    reference="ipex-llm#12190",
    gpus_only=True,
)
def governor(host: Host) -> Verdict | None:
    found = host.get("hardware")["governors"]
    if not found:
        return passed("the firmware sets it")
    slow = [name for name in found if name in ("powersave", "ondemand", "conservative")]
    return warned(f"governor {', '.join(slow)}") if slow else passed(", ".join(found))
