"""What node/look.py would see on healthy nodes, for the tests of the checks.

`nvidia-smi -q` is recorded (tests/recorded) and brought up to a driver that vLLM's CUDA runs on; so are the
kernel's lines of faults, what InfiniBand's ports say, nvcc's version and /etc/os-release. NVLink's lines are
as on two bridged H100 PCIe, where a third of the links is inactive and all is well. What a node without GPUs
shows has the form of look.lab-node.json there, which is recorded whole. Of the rest, GPUs' processes, dpkg's
rows, the IOMMU and ACS, no recording was found: it has the form that the kernel's and the programs' own
documentation shows.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from roles.doctor import Expected, Host, Ranks

RECORDED = Path(__file__).with_name("recorded")
GiB = 2**30


def kernel(name: str) -> str:
    """A kernel's log, recorded."""
    return (RECORDED / f"kernel.{name}.txt").read_text()


H100 = (RECORDED / "nvidia-smi-q.h100.txt").read_text()
#: The same GPU at full speed under a newer driver, and a second one of it.
SMI = (
    H100.replace("535.161.08", "580.95.05")
    .replace(": 12.2", ": 13.0")
    .replace("Slowdown                       : Active", "Slowdown                       : Not Active")
    .replace("Slowdown       : Active", "Slowdown       : Not Active")
)
SMI += SMI[SMI.index("GPU 00000000:19") :].replace("19:00.0", "3B:00.0")

_NVLINK = "\n".join(
    f"         Link {n}: {'<inactive>' if n in (4, 5, 10, 11, 16, 17) else '26.562 GB/s'}" for n in range(18)
)
NVLINK = (
    f"GPU 0: NVIDIA H100 PCIe (UUID: GPU-0)\n{_NVLINK}\nGPU 1: NVIDIA H100 PCIe (UUID: GPU-1)\n{_NVLINK}\n"
)

_DISK = {"there": "/", "size": 1000 * GiB, "free": 800 * GiB, "inodes": 10**8, "inodes_free": 10**8}
WEIGHTS = "/var/lib/rackserve/weights/org--model/main"
OURS = "/system.slice/rackserve-replica-0-vllm.service"

_UNIT = {
    "Id": "rackserve-replica-0-vllm.service", "ActiveState": "active", "SubState": "running",
    "Result": "success", "NRestarts": "0", "MainPID": "700", "LimitMEMLOCK": "infinity",
    "LimitNOFILE": "1048576",
    "limits": "Limit                     Soft Limit           Hard Limit           Units     \n"
              "Max locked memory         unlimited            unlimited            bytes     \n",
}  # fmt: skip
#: Neither pins memory, nor talks with other nodes' Ray or NCCL.
_BESIDE = [
    {**_UNIT, "Id": unit, "LimitMEMLOCK": "8388608", "limits": None, "network": {}}
    for unit in ("rackserve-replica-0-gang.service", "rackserve-gateway-haproxy.service")
]

#: Each value is one of an H100 node's: leptonai/gpud adf5017, 6e15cf1, 74dd83f (Apache-2.0), components/
#: accelerator/nvidia/infiniband/class/testdata/sys-class-infiniband-h100.0: mlx5_0, mlx5_5, mlx5_6.
_IB = {"state": "4: ACTIVE", "phys_state": "5: LinkUp", "rate": "400 Gb/sec (4X NDR)",
       "link_layer": "InfiniBand", "gids": []}  # fmt: skip
_ROCE = {**_IB, "link_layer": "Ethernet",
         "gids": [["0000:0000:0000:0000:0000:ffff:0a00:0001", "RoCE v2"]]}  # fmt: skip


_NCCL = "NCCL_SOCKET_IFNAME==eth1\nNCCL_IB_HCA==mlx5_0:1\n"


def seen(number: int) -> dict[str, Any]:
    """What there is to see on a healthy node with two GPUs, address 10.0.0.NUMBER."""
    address = f"10.0.0.{number}"
    network = {"VLLM_HOST_IP": address, "NCCL_SOCKET_IFNAME": "=eth1", "GLOO_SOCKET_IFNAME": "eth1"}
    return copy.deepcopy({
        "os": (RECORDED / "os-release.debian12.txt").read_text(),
        "host": {"name": f"gpu{number}", "addresses": [address]}, "synchronized": True, "reboot": None,
        "nccl": _NCCL,
        "services": "Id=nvidia-fabricmanager.service\nLoadState=loaded\nActiveState=active\n\n"
                    "Id=ufw.service\nLoadState=loaded\nActiveState=active\n\n"
                    "Id=unattended-upgrades.service\nLoadState=loaded\nActiveState=active\n",
        "ufw": "ENABLED=no\nLOGLEVEL=low\n",
        "folders": {path: _DISK for path in ("/", "/dev/shm", "/opt/rackserve", "/var/lib/rackserve",
                                             "/var/cache/rackserve", "/tmp", WEIGHTS)},
        "shm": [{"name": "nccl-aB3", "bytes": 9637888, "age": 900, "used": True}],
        "meminfo": "MemTotal:       2113000000 kB\nMemFree:        1900000000 kB\n",
        "kernel": "", "numa_balancing": "0\n", "release": "6.1.0-30-amd64\n",
        "mounts": "/dev/nvme0n1p2 / ext4 rw,relatime 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n",
        "weights": {"folder": WEIGHTS, "files": 30, "bytes": 140 * GiB, "digest": "f00d" * 16, "broken": []},
        "ip": "[...]", "port_range": "32768\t60999\n", "listeners": [[8000, 700, "vllm", OURS]],
        "net": {"name": "eth1", "mtu": 9000, "prefix": 24, "up": True, "speed": "100000\n",
                "rx_packets": 10**9, "rx_errors": 3, "rx_dropped": 0, "tx_errors": 0},
        "peers": {f"10.0.0.{3 - number}": [True, True]},
        "nvidia_smi": SMI, "nvlink": NVLINK,
        "driver": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  "
                  "(dvs-builder@U22-I3-B17-02-5)  Tue Sep 23 09:55:41 UTC 2025\n",
        "nvcc": (RECORDED / "nvcc.cuda-13.0.txt").read_text(),
        "fabricmanager": "Fabric Manager version is : 580.95.05\n",  # as leptonai/gpud has it of 535.161.08
        "packages": "hold installed nvidia-open-580 580.95.05-1\n"
                    "install installed libnvidia-container1 1.17.8-1\n"
                    "install installed nvidia-container-toolkit 1.17.8-1\n",
        "gpu_processes": "700, 70000 MiB\n", "gpu_cgroups": {"700": OURS},
        "modules": "nvidia 100 1 - Live 0x0\n", "cmdline": "BOOT_IMAGE=/vmlinuz quiet iommu=pt\n",
        "hardware": {"gpus": 2, "nvswitches": 4, "iommu_groups": 90,
                     "iommu_types": ["identity"], "governors": ["performance"]},
        "bridges": {"0000:00:01.1": 0, "0000:40:01.1": 0},
        "infiniband": {"mlx5_0/1": _IB, "mlx5_1/1": _ROCE}, "verbs": True,
        "installed": ["nvidia_nccl_cu13-2.30.7", "ray-2.60.0", "torch-2.14.0", "vllm-0.33.0"],
        "python": "Python 3.12.11\n", "units": [{**_UNIT, "network": network}, *_BESIDE],
        "gangs": {"replica-0": {"state": "up", "why": "", "row": 1, "falls": 9, "recent": [
            {"when": 0.0, "why": "gpu2: rackserve-replica-0-vllm ended (signal 9)"}]}} if number == 1 else {},
        "processes": [[700, "VLLM::EngineCor", OURS]], "time": 0.0,
    })  # fmt: skip


def measured(number: int) -> dict[str, Any]:
    """What --deep would measure there. NCCL's lines are recorded, of another replica of two nodes."""
    rows = [[1024, 3e-5], [2**20, 2.2e-4], [2**30, 1.5 * 2**30 / 80e9]]
    return copy.deepcopy({
        "disk": {"folder": WEIGHTS, "direct": True, "wrote": [2**30, 0.5], "read": [2**30, 0.25]},
        "listening": {"held": [20000, 20499, 20999, 60999], "taken": {8000: "Address already in use"}},
        "connecting": {"rows": [[f"gpu{3 - number}", port, "open"] for port in PORTS]},
        "allreduce replica-0": {"rows": rows, "nccl": NCCL_IB},
    })  # fmt: skip


PORTS = [8000, 20000, 20499, 20999, 60999]
NCCL_IB = (RECORDED / "nccl.ib.txt").read_text().splitlines()
NCCL_SOCKET = (RECORDED / "nccl.socket.txt").read_text().splitlines()
RANKS = Ranks(replica="replica-0", slot=0, hosts=("gpu1", "gpu2"), address="10.0.0.1", port=29501, gpus=2,
              backend="nccl")  # fmt: skip


def expected(number: int, **other: Any) -> Expected:
    return Expected(**{
        "address": f"10.0.0.{number}", "gpus": 2, "gpu": "H100", "cuda": "13.0.96",
        "environment": "/opt/rackserve/runtime/cuda-0", "ports": [(8000, 8000), (20000, 20999)],
        "weights": WEIGHTS, "weights_bytes": 140 * GiB, "peers": {f"gpu{3 - number}": f"10.0.0.{3 - number}"},
        "nccl": _NCCL, "replicas": ["replica-0"], "loads": 70 * GiB, "ranks": [RANKS],
        "reaches": {f"gpu{3 - number}": PORTS}, "listens": PORTS,
        "plan": "llama: 1 replica, TP 2 x PP 2" if number == 1 else "", **other,
    })  # fmt: skip


def healthy(**other: Any) -> list[Host]:
    """gpu1 and gpu2, with which nothing is wrong."""
    return [
        Host(name=f"gpu{n}", expected=expected(n, **other), seen=seen(n), measured=measured(n))
        for n in (1, 2)
    ]
