"""What NCCL is told on a host, of what was seen there; or everything that is in the way. Pure.

What NCCL finds out by itself it is not told. Read in NVIDIA/nccl at v2.30.7-1, which is what
roles/runtime/locks/cuda.lock brings; env: docs/userguide/source/env.rst.

- /etc/nccl.conf: env, top. src/misc/param.cc reads it after ~/.nccl.conf or NCCL_CONF_FILE, and
  src/os/linux.cc sets what is not set yet: the environment wins, and of two lines the first.
- NCCL_SOCKET_IFNAME, NCCL_IB_HCA: env; `=` is an exact match, `mlx5_1` would be mlx5_10, too. Ports that are
  down NCCL passes over by itself, of those that are up it takes all, storage's as well
  (src/transport/net_ib/init.cc); two kinds of link it does not connect (connect.cc).
- Near: src/graph/xml.cc and paths.cc rank a path by PCI switch, then NUMA node, then anything else.
- NCCL_IB_GID_INDEX: never said. NCCL finds RoCE v2 over IPv4 itself (connect.cc; env: since 2.21), and an
  index moves when an interface gets an address. NCCL_IB_ROCE_VERSION_NUM is 2 and NCCL_IB_ADDR_FAMILY
  AF_INET where nobody says otherwise.
- NCCL_IB_TC: what the switches make lossless is nothing that a node knows; only from the inventory.
- NCCL_DMABUF_ENABLE: 1 unless said otherwise, and without effect where kernel or driver cannot (env).
- nvidia-peermem: DMA-BUF is what NVIDIA recommends (GPU Operator, "GPUDirect RDMA and GPUDirect Storage"); it
  needs the open kernel modules, which /proc/driver/nvidia/version names, and Linux 5.12 or newer. Without
  it: nvidia_peermem, where the InfiniBand core has the interface for it (NVIDIA's OFED has,
  kernel-open/nvidia-peermem/nvidia-peermem.c gives up without).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

AUTO = "auto"
CONF = "/etc/nccl.conf"
#: The library, what makes its devices appear (rdma-core: udev's rules, uverbs is loaded), and ibstat.
PACKAGES = ("ibverbs-providers", "infiniband-diags", "libibverbs1", "rdma-core")

BEGIN = "# Rackserve: the fabric, from the inventory and the node. Changed by hand it is put back."
END = "# Rackserve: to here."

INFINIBAND, ETHERNET = "InfiniBand", "Ethernet"
SWITCH, NODE, FAR = range(3)

#: Nobody else may say them beside us.
OURS = ("NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_IB_DISABLE")


@dataclass(frozen=True)
class Device:
    """A device on the PCI bus."""

    path: str = ""  # /sys/devices/pci0000:16/0000:16:01.0/...
    numa: int = -1

    @property
    def bridges(self) -> set[str]:
        """Those above it; two devices that share one are on the same PCI switch."""
        return set(re.findall(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", self.path)[:-1])


@dataclass(frozen=True)
class Port:
    """A port of an HCA."""

    hca: str
    number: int = 1
    state: str = "4: ACTIVE"
    link: str = INFINIBAND
    rate: str = ""
    node: str = "1: CA"
    device: Device = Device()
    interfaces: tuple[str, ...] = ()
    gids: tuple[int, ...] = ()  # those of RoCE v2 over IPv4

    @property
    def name(self) -> str:
        return f"{self.hca}:{self.number}"

    @property
    def up(self) -> bool:
        return self.state.startswith("4:")

    @property
    def usable(self) -> bool:
        """NCCL has nothing for iWARP (RNIC), and RoCE without an address connects nobody."""
        kind = self.link == INFINIBAND or (self.link == ETHERNET and bool(self.gids))
        return self.up and kind and "RNIC" not in self.node

    def is_called(self, word: str) -> bool:
        return word in (self.hca, self.name)


@dataclass(frozen=True)
class Seen:
    """A host as it is."""

    interface: str = ""  # that has the cluster's address
    ports: tuple[Port, ...] = ()
    gpus: tuple[Device, ...] = ()
    conf: str = ""
    kernel: str = ""
    driver: str = ""  # /proc/driver/nvidia/version, its first line
    peermem: str = ""  # of nvidia_peermem: loaded, loadable

    @property
    def dma_buf(self) -> bool:
        number = tuple(map(int, re.findall(r"\d+", self.kernel)[:2]))
        return "Open Kernel Module" in self.driver and number >= (5, 12)


@dataclass(frozen=True)
class Asked:
    """What the inventory says of a host."""

    address: str
    interface: str | None = None
    hcas: str | bool = AUTO  # names, or False: none
    traffic_class: int | None = None
    alone: bool = False  # there is no other host

    @property
    def names(self) -> list[str]:
        """Of the HCAs, where it names some."""
        named = isinstance(self.hcas, str) and self.hcas != AUTO
        return [word.strip() for word in str(self.hcas).split(",")] if named else []


@dataclass(frozen=True)
class Wanted:
    """What a host gets."""

    conf: str
    hcas: tuple[str, ...] = ()
    peermem: bool = False
    unused: bool = False  # there are HCAs, and none will do


def everywhere(traffic_class: int | None) -> dict[str, str]:
    """What NCCL is told alike on all nodes."""
    return {} if traffic_class is None else {"NCCL_IB_TC": str(traffic_class)}


def wanted(seen: Seen, asked: Asked) -> Wanted:
    """What that host gets; only where there are no `problems`."""
    ports = _chosen(seen, asked)
    hcas = tuple(asked.names or (port.name for port in ports))
    return Wanted(
        conf=_merged(seen.conf, _variables(seen, asked)),
        hcas=hcas,
        peermem=bool(hcas and seen.driver and seen.peermem and not seen.dma_buf),
        unused=bool(seen.ports) and not hcas and asked.hcas is not False,
    )


def problems(seen: Seen, asked: Asked) -> list[str]:
    """What is wrong, each with its fix; nothing has been changed."""
    found = [*_interface(seen, asked), *_named(seen, asked)]
    return found or list(_others(seen, asked))


def _interface(seen: Seen, asked: Asked) -> Iterator[str]:
    if not seen.interface:
        yield f"no interface has the address {asked.address}; correct `address`"
    elif asked.interface and asked.interface != seen.interface:
        where = f"{asked.address} is on {seen.interface}"
        yield f"interface is {asked.interface}, and {where}: correct `interface`, or leave it out"
    elif not asked.alone and (seen.interface == "lo" or ip_address(asked.address).is_loopback):
        yield f"{asked.address} is on {seen.interface}, where no other host reaches it: correct `address`"


def _named(seen: Seen, asked: Asked) -> Iterator[str]:
    there = ", ".join(f"{port.name} ({port.link}, {port.state})" for port in seen.ports) or "none"
    for word in asked.names:
        its = [port for port in seen.ports if port.is_called(word)]
        if not its:
            yield f"hcas: {word or 'a name that is empty'} is not there; there are: {there}"
        elif not any(port.up for port in its):
            state = ", ".join(port.state for port in its)
            yield f"hcas: {word} is {state}: see ibstat {its[0].hca}, its cable and switch, or leave it out"
        elif not any(port.usable for port in its):
            on = " ".join(its[0].interfaces) or "its interface"
            yield f"hcas: {word} has no RoCE v2 address: give {on} an IPv4 address, or leave it out"
    ports = _chosen(seen, asked)
    if len({port.link for port in ports}) > 1:
        said = ", ".join(f"{port.name} is {port.link}" for port in ports)
        yield f"hcas: {said}: NCCL connects only what is of one kind, name those"


def _others(seen: Seen, asked: Asked) -> Iterator[str]:
    """Lines of the file that are not ours, and say otherwise."""
    ours = _variables(seen, asked)
    for name, value in _read(_split(seen.conf)[1]).items():
        if name in (*OURS, *ours) and ours.get(name) != value:
            how = {"NCCL_SOCKET_IFNAME": "interface", "NCCL_IB_TC": "roce_traffic_class"}.get(name, "hcas")
            yield f"{CONF} says {name}={value}: remove that line, and say it with `{how}` in the inventory"


def _variables(seen: Seen, asked: Asked) -> dict[str, str]:
    """Of a node without an HCA nothing is said but its interface."""
    made = {"NCCL_SOCKET_IFNAME": f"={seen.interface}"}
    ports = _chosen(seen, asked)
    if asked.hcas is False and seen.ports:
        made["NCCL_IB_DISABLE"] = "1"
    if ports:
        made["NCCL_IB_HCA"] = "=" + ",".join(asked.names or [port.name for port in ports])
    if any(port.link == ETHERNET for port in ports):
        made.update(everywhere(asked.traffic_class))
    return made


def _chosen(seen: Seen, asked: Asked) -> list[Port]:
    """The ports; a link that was told already and is down stays: NCCL passes it over until it is up again."""
    if asked.hcas is False:
        return []
    if asked.names:
        return [port for port in seen.ports if port.usable and any(map(port.is_called, asked.names))]
    told = _read(_split(seen.conf)[0]).get("NCCL_IB_HCA", "").lstrip("=").split(",")
    ports = [port for port in seen.ports if port.usable or (not port.up and port.name in told)]
    kind = _kind(ports, seen.gpus)
    return _near([port for port in ports if port.link == kind], seen.gpus)


def _kind(ports: list[Port], gpus: Sequence[Device]) -> str:
    """InfiniBand where there is any; but where only Ethernet is on a switch with a GPU it is storage's."""
    beside = {port.link for port in ports for gpu in gpus if _distance(gpu, port.device) == SWITCH}
    return INFINIBAND if INFINIBAND in (beside or {port.link for port in ports}) else ETHERNET


def _near(ports: list[Port], gpus: Sequence[Device]) -> list[Port]:
    """Those on a switch with a GPU, and for GPUs that those are far from, those of their NUMA node.

    The others are storage's; where none is near any GPU, all.
    """
    near: list[Port] = []
    for way in (SWITCH, NODE):
        left = [gpu for gpu in gpus if all(_distance(gpu, port.device) == FAR for port in near)]
        near += [port for port in ports if any(_distance(gpu, port.device) == way for gpu in left)]
    return [port for port in ports if port in near or not near]


def _distance(one: Device, other: Device) -> int:
    if one.bridges & other.bridges:
        return SWITCH
    return NODE if one.numa == other.numa else FAR


def _merged(before: str, variables: dict[str, str]) -> str:
    """Our lines, which count because they are the first, and then what somebody else wrote there."""
    lines = [BEGIN, *(f"{name}={value}" for name, value in variables.items()), END]
    return "".join(f"{line}\n" for line in (*lines, *_split(before)[1]))


def _split(conf: str) -> tuple[list[str], list[str]]:
    """(our lines, the others)."""
    lines = conf.splitlines()
    if BEGIN not in lines or END not in lines:
        return [], lines
    begin, end = lines.index(BEGIN), lines.index(END)
    return lines[begin + 1 : end], lines[:begin] + lines[end + 1 :]


def _read(lines: Sequence[str]) -> dict[str, str]:
    """As NCCL does: no blanks are cut, and the first that says something counts."""
    rows = [line.partition("=") for line in lines if not line.startswith("#") and "=" in line]
    return {name: value for name, _, value in reversed(rows)}
