"""Runs on a node, as root, on its own Python (3.9 and newer): what the doctor looks at, as JSON.

    look.py '{"address": "198.51.100.11", "environment": "/opt/...", ...}'

Reads only, but for a few echo requests to other nodes. What a file or a program says goes back
as it is; what it means is decided on the controller. Nothing here may end it: what cannot be read
is missing in the answer.
"""

import glob
import json
import os
import re
import sys
import time

import hardware
import network
import system
from reading import attempt, cgroup, finish, read, start

OURS = "/etc/systemd/system/rackserve-*.service"
GANGS = "/run/rackserve/*/state.json"
UNIT = "Id,ActiveState,SubState,Result,NRestarts,MainPID,LimitMEMLOCK,LimitNOFILE,Environment"
SERVICES = ("nvidia-fabricmanager", "nvidia-persistenced", "ufw", "firewalld", "unattended-upgrades")
KERNEL_SAYS = "NVRM: Xid|SXid .*, Fatal|[Oo]ut of memory: Killed|fallen off the bus"

FILES = {
    "cmdline": "/proc/cmdline", "meminfo": "/proc/meminfo", "modules": "/proc/modules",
    "mounts": "/proc/self/mounts", "driver": "/proc/driver/nvidia/version",
    "numa_balancing": "/proc/sys/kernel/numa_balancing", "release": "/proc/sys/kernel/osrelease",
    "port_range": "/proc/sys/net/ipv4/ip_local_port_range", "os": "/etc/os-release",
    "reboot": "/run/reboot-required.pkgs", "nccl": "/etc/nccl.conf", "ufw": "/etc/ufw/ufw.conf",
}  # fmt: skip

PROGRAMS = {
    "ip": ["ip", "-json", "address", "show"],
    "nvidia_smi": ["nvidia-smi", "-q"],
    "nvlink": ["nvidia-smi", "nvlink", "--status"],
    "gpu_processes": ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"],
    "fabricmanager": ["nv-fabricmanager", "--version"],
    "nvcc": ["/usr/local/cuda/bin/nvcc", "--version"],
    "services": ["systemctl", "show", "--property=Id,LoadState,ActiveState", *SERVICES],
    "kernel": ["journalctl", "-k", "-b", "-q", "--no-pager", "-o", "short-iso", "-n", "1000",
               "--grep", KERNEL_SAYS],
}  # fmt: skip

#: Only where there is a driver: on other nodes they cost time.
PACKAGES = ["dpkg-query", "-W", "-f", "${db:Status-Want} ${db:Status-Status} ${Package} ${Version}\n",
            "nvidia-*", "libnvidia-*", "libcuda1", "linux-modules-nvidia-*", "linux-objects-nvidia-*",
            "linux-signatures-nvidia-*"]  # fmt: skip

LOOKS = {
    "host": network.names, "listeners": network.listeners,
    "folders": system.folders, "shm": system.shared_memory, "processes": system.processes,
    "installed": system.packages, "weights": system.weights, "synchronized": system.clock,
    "hardware": hardware.hardware, "bridges": hardware.bridges,
    "infiniband": hardware.infiniband, "verbs": hardware.verbs,
}  # fmt: skip


def main(asked):
    running = start(programs(asked))
    seen = {name: read(path) for name, path in FILES.items()}
    for name, look in LOOKS.items():
        seen[name] = attempt(look, asked)
    seen.update((name, finish(process)) for name, process in running.items())
    addresses = attempt(json.loads, seen["ip"]) or []
    seen["net"] = attempt(network.interface, asked, addresses)
    seen["peers"] = attempt(network.echoes, asked, (seen["net"] or {}).get("mtu"))
    seen["gpu_cgroups"] = {pid: cgroup(pid) for pid in re.findall(r"(?m)^\d+", seen["gpu_processes"] or "")}
    seen["units"] = attempt(system.with_limits, seen["units"] or "")
    seen["gangs"] = attempt(gangs, asked)
    seen["time"] = time.time()
    print(json.dumps(seen))


def gangs(_):
    """{replica: how its head says that it is} of the replicas that have their head here."""
    return {path.split("/")[-2]: json.loads(read(path)) for path in glob.glob(GANGS)}


def programs(asked):
    units = [os.path.basename(path) for path in glob.glob(OURS)]
    more = {"units": ["systemctl", "show", f"--property={UNIT}", *units] if units else ["true"]}
    if os.path.exists("/proc/driver/nvidia/version"):
        more["packages"] = PACKAGES
    python = f"{asked.get('environment')}/bin/python"
    if os.path.exists(python):
        more["python"] = [python, "-I", "-S", "-V"]
    return {**PROGRAMS, **more}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
