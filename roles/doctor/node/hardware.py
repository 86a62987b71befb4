"""Runs on a node, for look.py: what sysfs says of its PCI bus and InfiniBand."""

import glob
import os
import struct

from reading import read

SYS = "/sys"


def hardware(_):
    """GPUs on the bus whatever the driver says, IOMMU groups, how the CPU's clock is set."""
    pci = glob.glob(f"{SYS}/bus/pci/devices/*")
    nvidia = [kind(path) for path in pci if is_nvidias(path)]
    types = glob.glob(f"{SYS}/kernel/iommu_groups/*/type")
    governors = glob.glob(f"{SYS}/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    return {
        "gpus": sum(one[:4] == "0x03" for one in nvidia), "nvswitches": nvidia.count("0x0680"),
        "iommu_groups": len(os.listdir(f"{SYS}/kernel/iommu_groups")),
        "iommu_types": sorted({(read(path) or "").strip() for path in types}),
        "governors": sorted({(read(path) or "").strip() for path in governors}),
    }  # fmt: skip


def is_nvidias(path):
    return (read(f"{path}/vendor") or "").strip() == "0x10de"


def kind(path):
    """Class and subclass of a PCI device: 0x0302."""
    return (read(f"{path}/class") or "")[:6]


def bridges(_):
    """{PCI bridge: its ACS control register}, for those that have one (PCIe 6.0, 7.7.11).

    Only of bridges above a GPU or a card that does RDMA: through no other do those two talk.
    """
    pci = glob.glob(f"{SYS}/bus/pci/devices/*")
    talking = [path for path in pci if is_nvidias(path) and kind(path)[:4] == "0x03"]
    talking += [path for path in pci if os.path.isdir(f"{path}/infiniband")]
    above = {name for path in talking for name in os.path.realpath(path).split("/")[:-1]}
    rows = {}
    for folder in pci:
        if os.path.basename(folder) in above and kind(folder) == "0x0604":
            with open(f"{folder}/config", "rb") as file:
                control = acs(file.read(4096))
            if control is not None:
                rows[os.path.basename(folder)] = control
    return rows


def acs(config):
    at, steps = 0x100, 0
    while 0x100 <= at <= len(config) - 8 and steps < 100:
        (header,) = struct.unpack_from("<I", config, at)
        if header & 0xFFFF == 0x000D:
            return struct.unpack_from("<H", config, at + 6)[0]
        at, steps = header >> 20, steps + 1
    return None


def infiniband(_):
    """{device/port: state, rate ...} and the kinds of its GIDs."""
    rows = {}
    for folder in sorted(glob.glob(f"{SYS}/class/infiniband/*/ports/*")):
        *_, device, _, port = folder.split("/")
        row = {key: (read(f"{folder}/{key}") or "").strip()
               for key in ("state", "phys_state", "rate", "link_layer")}  # fmt: skip
        gids = ((path, (read(path) or "").strip()) for path in glob.glob(f"{folder}/gids/*"))
        kinds = f"{folder}/gid_attrs/types/"
        row["gids"] = [
            [gid, (read(kinds + os.path.basename(path)) or "").strip()]
            for path, gid in gids
            if gid.strip("0:")
        ]
        rows[f"{device}/{port}"] = row
    return rows


def verbs(_):
    places = ("/usr/lib", "/usr/lib64", "/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu")
    return any(os.path.exists(f"{place}/libibverbs.so.1") for place in places)
