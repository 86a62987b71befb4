"""PCI and InfiniBand: what stands between a GPU and another node's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..check import Host, Verdict, check, failed, passed, warned

#: Of the ACS control register, what sends a transfer between two devices up to the root: redirection of
#: requests and of completions, and upstream forwarding (Linux: PCI_ACS_RR, _CR, _UF). Source validation,
#: bit 0, is no such thing.
REDIRECTS = 0x001C


@check(
    "pci.acs",
    "PCI bridges let GPUs and network cards talk directly",
    looks_at="the ACS control register of every PCI bridge above a GPU or an HCA",
    fix="sudo setpci -s BRIDGE ECAP_ACS+0x6.w=0000 at every boot, or ACS off in the BIOS",
    reference="nccl#304",
    gpus_only=True,
)
def acs(host: Host) -> Verdict | None:
    bridges = host.get("bridges")
    on = sorted(bridge for bridge, control in bridges.items() if control & REDIRECTS)
    if on:
        said = f"ACS is on for {len(on)} of {len(bridges)} bridges: {', '.join(on[:3])}"
        return warned(said, f"for b in {' '.join(on)}; do sudo setpci -s $b ECAP_ACS+0x6.w=0000; done")
    return passed(f"off on {len(bridges)} bridges above GPUs and HCAs")


@check(
    "pci.iommu",
    "The IOMMU translates nothing for the host",
    looks_at="/sys/kernel/iommu_groups/*/type, /proc/cmdline",
    fix="iommu='pt' in the inventory for {host}; rackserve deploy provision; rackserve rollout --reboot due",
    reference="nccl#1939",
    gpus_only=True,
)
def iommu(host: Host) -> Verdict | None:
    groups, types = host.get("hardware")["iommu_groups"], host.get("hardware")["iommu_types"]
    translating = [kind for kind in types if kind.startswith("DMA")]
    if translating:
        return warned(f"{groups} groups, of type {', '.join(types)}")
    # Kernels before 5.11 do not say the type.
    if groups and not types and not {"iommu=pt", "iommu.passthrough=1"} & set(host.get("cmdline").split()):
        return warned(f"{groups} groups, and no iommu=pt at boot")
    return passed("passed through" if groups else "off")


@check(
    "ib.ports",
    "InfiniBand's ports are active",
    looks_at="/sys/class/infiniband/*/ports/*/state",
    fix="ibstat on {host}; check the cable and the subnet manager",
    reference="vllm#6610",
)
def ports(host: Host) -> Verdict | None:
    found = {name: port for name, port in host.get("infiniband").items() if not _unused(port)}
    if not found:
        return None
    down = {name: port["state"] for name, port in found.items() if "ACTIVE" not in port["state"]}
    said = ", ".join(f"{name} {state}" for name, state in sorted(down.items())[:4])
    if len(down) == len(found):
        return failed(said)
    rates = sorted({port["rate"] for name, port in found.items() if name not in down})
    if down:
        return warned(f"{len(down)} of {len(found)} down: {said}")
    return passed(f"{len(found)} at {', '.join(rates)}")


def _unused(port: Mapping[str, str]) -> bool:
    """A card for Ethernet whose interface nobody has set up: most nodes have some."""
    return port["link_layer"] == "Ethernet" and "Disabled" in port["phys_state"]


@check(
    "ib.verbs",
    "NCCL finds the library for InfiniBand",
    looks_at="libibverbs.so.1",
    fix="sudo apt-get install -y libibverbs1 ibverbs-providers",
    reference="vllm#6732",
)
def verbs(host: Host) -> Verdict | None:
    if not host.get("infiniband"):
        return None
    return passed("there") if host.get("verbs") else failed("no libibverbs.so.1: NCCL goes over TCP")


@check(
    "ib.direct",
    "Network cards read GPU memory directly",
    looks_at="/proc/driver/nvidia/version (DMA-BUF), nvidia_peermem in /proc/modules",
    fix="install the open kernel modules (DMA-BUF), or: sudo modprobe nvidia-peermem",
    reference="nccl#1737",
    gpus_only=True,
)
def direct(host: Host) -> Verdict | None:
    if not host.get("infiniband"):
        return None
    if "Open Kernel Module" in host.get("driver"):
        return passed("DMA-BUF")
    loaded = any(line.startswith("nvidia_peermem ") for line in host.get("modules").splitlines())
    return passed("nvidia_peermem") if loaded else warned("closed modules, and no nvidia_peermem")


def _is_v2(gid: tuple[str, str]) -> bool:
    address, kind = gid
    return "v2" in kind and ":ffff:" in address


@check(
    "ib.gid",
    "RoCE ports have a v2 address over IPv4",
    looks_at="/sys/class/infiniband/*/ports/*/gid_attrs/types",
    fix="give the card's interface an IPv4 address; show_gids",
    reference="nccl#426",
)
def gid(host: Host) -> Verdict | None:
    roce = {name: port for name, port in host.get("infiniband").items()
            if port["link_layer"] == "Ethernet" and "ACTIVE" in port["state"] and port["gids"]}  # fmt: skip
    if not roce:
        return None
    without = [name for name, port in sorted(roce.items()) if not any(map(_is_v2, port["gids"]))]
    return failed(f"none on {', '.join(without)}") if without else passed(f"on {', '.join(sorted(roce))}")


@check(
    "nccl.hcas",
    "NCCL is told the HCAs that are up, and the interface",
    looks_at="/etc/nccl.conf, /sys/class/infiniband, the PCI bus",
    fix="rackserve deploy provision; it counts from the next start of a replica",
    reference="docs/fabric.md",
    gpus_only=True,
)
def told(host: Host) -> Verdict | None:
    if host.expected.no_nccl:
        return failed(host.expected.no_nccl, "correct the inventory, or {host}")
    if not host.expected.nccl:
        return None
    now, due = ((host.seen or {}).get("nccl") or "").splitlines(), host.expected.nccl.splitlines()
    lacks, stale = _missing(due, now), _missing(now, due)
    if lacks or stale:
        said = [f"not told {lacks}"] if lacks else []
        return warned(", ".join([*said, *([f"told {stale}"] if stale else [])]))
    named = re.findall(r"(?m)^NCCL_IB_HCA==(.*)", host.expected.nccl)
    words = named[0].split(",") if named else []
    states = {name.replace("/", ":"): port["state"] for name, port in host.get("infiniband").items()}
    down = [word for word in words if not any("ACTIVE" in states[name] for name in _ports(word, states))]
    if down:
        verdict = failed if len(down) == len(words) else warned
        return verdict(f"{', '.join(down)} of {', '.join(words)} is down: NCCL goes without",
                       "ibstat on {host}; check the cable and the switch")  # fmt: skip
    return passed(", ".join(words) or "no HCA, TCP")


def _missing(lines: Sequence[str], there: Sequence[str]) -> str:
    return " ".join(line for line in lines if line not in there and not line.startswith("#"))


def _ports(word: str, names: Iterable[str]) -> list[str]:
    """Those that NCCL means by it: mlx5_0:1, or all of mlx5_0."""
    return [name for name in names if word in (name, name.partition(":")[0])]
