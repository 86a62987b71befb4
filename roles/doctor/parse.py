"""From what a node's files and programs print to values. Pure."""

from __future__ import annotations

import re

GiB = 2**30


def gpus(text: str) -> list[dict[str, str]]:
    """`nvidia-smi -q`, a dictionary for each GPU: {"Fabric/State": "Completed", ...}."""
    found: list[dict[str, str]] = []
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        name, colon, value = (word.strip() for word in line.partition(" : "))
        if re.match(r"GPU [0-9A-Fa-f]+:", line):
            found.append({"Bus": line.split()[1]})
            above = []
        elif found and name and indent:
            above = [row for row in above if row[0] < indent]
            if colon:
                found[-1]["/".join([*(row[1] for row in above), name])] = value
            above.append((indent, name))
    return found


def driver_says(text: str, key: str) -> str:
    """A line of the head of `nvidia-smi -q`: Driver Version, CUDA Version."""
    match = re.search(rf"(?m)^{key}\s*: (\S+)", text)
    return match[1] if match else ""


def compiler_says(text: str) -> str:
    """The CUDA of `nvcc --version`: 13.0."""
    match = re.search(r"release (\d+\.\d+)", text)
    return match[1] if match else ""


def loaded_driver(text: str) -> str:
    """The version in /proc/driver/nvidia/version."""
    match = re.search(r"Module(?: for \S+)?\s+(\d[\d.]+)", text)
    return match[1] if match else ""


def links(text: str) -> dict[str, list[bool]]:
    """{GPU: whether each link is up} of `nvidia-smi nvlink --status`; it lists none where all are down."""
    up: dict[str, list[bool]] = {}
    gpu = ""
    for line in text.splitlines():
        if match := re.match(r"GPU (\d+):", line):
            gpu = match[1]
            up[gpu] = []
        elif match := re.match(r"\s+Link \d+: (.+)", line):
            up[gpu].append("inactive" not in match[1])
    return up


def xids(kernel: str) -> list[tuple[str, int, str]]:
    """(PCI address, code, what else it says) of NVIDIA's errors in the kernel's log."""
    found = re.findall(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)\): (\d+)(.*)", kernel)
    return [(bus, int(code), said) for bus, code, said in found]


def fatal_sxids(kernel: str) -> list[tuple[str, int]]:
    """(PCI address, code) of an NVSwitch's; it says itself whether an error is fatal."""
    return [(bus, int(code)) for bus, code in re.findall(r"SXid \(PCI:(\S+)\): (\d+), Fatal", kernel)]


def off_the_bus(kernel: str) -> list[str]:
    """PCI addresses of GPUs that fell off the bus, from the lines without an Xid; ? where they name none."""
    lines = [line for line in kernel.splitlines() if "fallen off the bus" in line and "Xid" not in line]
    found = [re.search(r"GPU ([0-9a-fA-F:]+\.\d):", line) for line in lines]
    return [match[1] if match else "?" for match in found]


def meminfo(text: str) -> dict[str, int]:
    """{name: bytes}."""
    return {name: int(kib) * 1024 for name, kib in re.findall(r"(?m)^(\w+):\s+(\d+) kB", text)}


def mount(mounts: str, path: str) -> tuple[str, str]:
    """(file system, options) of what a path is on, of the lines of /proc/self/mounts."""
    best, found = "", ("", "")
    for line in mounts.splitlines():
        _, point, kind, options, *_ = line.split()
        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), point)
        below = path == point or path.startswith(point.rstrip("/") + "/")
        if below and len(point) >= len(best):
            best, found = point, (kind, options)
    return found


def properties(shown: str) -> dict[str, dict[str, str]]:
    """{unit: its properties} of `systemctl show`, several units."""
    blocks = (
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for block in shown.split("\n\n")
    )
    return {row["Id"].removesuffix(".service"): row for row in blocks if "Id" in row}


def setting(text: str, name: str) -> str:
    """NAME="value" of /etc/os-release."""
    match = re.search(rf'(?m)^{name}="?([^"\n]*)', text)
    return match[1] if match else ""


def limit(limits: str, name: str) -> str:
    """The soft limit of that name in /proc/PID/limits."""
    match = re.search(rf"(?m)^{name}\s+(\S+)", limits)
    return match[1] if match else ""


def version(installed: list[str], name: str) -> str:
    """Of a distribution among NAME-VERSION; empty when it is not there."""
    for row in installed:
        found, _, number = row.rpartition("-")
        if found.lower().replace("_", "-").replace(".", "-") == name:
            return number
    return ""


def size(number: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
