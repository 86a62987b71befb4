"""What a host gets of DOCA-OFED, of what was seen there, and what keeps it from it. Pure.

Names and addresses are those of NVIDIA's documentation of DOCA-Host (docs.nvidia.com/doca/sdk: DOCA-Host
Installation and Upgrade, DOCA Profiles; 3.2.1) and of who installs it so (Azure/AgentBaker#8240,
NVIDIA/hpc-container-maker#507).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from roles import debian

#: NVIDIA's repositories: a folder for each release, in it one for each distribution and machine.
REPOSITORY = "https://linux.mellanox.com/public/repo/doca"
MACHINES = {"x86_64": "x86_64", "aarch64": "arm64-sbsa"}
FOLDERS = {"ubuntu 22.04": "ubuntu22.04", "ubuntu 24.04": "ubuntu24.04"}

#: Who signs them: "Mellanox Technologies - Signing Key v2", by its long id.
KEY_ID = "A024F6F0E6D6A281"
KEY = "/usr/share/keyrings/rackserve-doca.asc"
SOURCES = "/etc/apt/sources.list.d/rackserve-doca.list"

#: The profile that is MLNX_OFED's successor: modules by DKMS, rdma-core, tools, firmware's updater.
PACKAGE = "doca-ofed"

LEAVE = "without doca_ofed the distribution's modules and libraries serve"


@dataclass(frozen=True)
class Seen:
    """A host as it is."""

    distribution: str = ""  # `ubuntu 24.04`
    machine: str = "x86_64"
    kernel: str = ""  # the one that runs
    secure_boot: bool = False
    cards: int = 0  # of NVIDIA's (Mellanox's)
    version: str = ""  # of the package that is installed
    sources: tuple[str, ...] = ()  # apt's files that name NVIDIA's repository
    other: str = ""  # an OFED that came by its own installer
    serving: tuple[str, ...] = ()  # replicas that are up
    interrupted: bool = False  # dpkg was cut off
    stale: bool = False  # the initramfs is older than the cards' module


@dataclass(frozen=True)
class Wanted:
    """A release of DOCA for a host."""

    release: str
    folder: str  # the host's repository

    @property
    def sources(self) -> str:
        """What apt is told."""
        return f"deb [signed-by={KEY}] {self.folder} ./\n"

    def is_there(self, seen: Seen) -> bool:
        """A package's version is its release's, and more: 3.2.1-044000."""
        return seen.version.startswith(f"{self.release}-")


def wanted(seen: Seen, release: str) -> Wanted:
    """What that host gets; only where there are no `problems`."""
    folder = f"{REPOSITORY}/{release}/{FOLDERS[seen.distribution]}/{MACHINES[seen.machine]}/"
    return Wanted(release, folder)


def problems(seen: Seen, release: str) -> list[str]:
    """What keeps a host from getting that release, each with its fix; nothing has been changed."""
    return [f"doca_ofed is {release}: {problem}; {LEAVE}" for problem in _problems(seen, release)]


def _problems(seen: Seen, release: str) -> Iterator[str]:
    known = seen.distribution in FOLDERS and seen.machine in MACHINES
    if not known:
        yield f"known for {' and '.join(FOLDERS)} only, not for {seen.distribution} on {seen.machine}"
    if not seen.cards:
        yield "there is no network card of NVIDIA's on the PCI bus"
    if seen.other:
        yield f"{seen.other} came by its own installer: sudo ofed_uninstall.sh --force"
    if others := [file for file in seen.sources if file != SOURCES]:
        yield f"{', '.join(others)} names its repository, too: remove it; it is written to {SOURCES}"
    if not known or wanted(seen, release).is_there(seen):
        return
    if _number(seen.version) > _number(release):
        yield f"{PACKAGE} {seen.version} is newer: set doca_ofed to that, or purge it (docs/fabric.md)"
    if seen.secure_boot:
        yield "Secure Boot is on, and its modules are built on the host, signed by nobody: turn it off"
    if seen.serving:
        named = ", ".join(seen.serving)
        yield f"{named} serves, and its libraries and modules would change: rackserve deploy teardown first"


def installed(its: Wanted, seen: Seen) -> str:
    """Install it, with what its modules are built against."""
    return f"{debian.APT} install linux-headers-{seen.kernel} '{PACKAGE}={its.release}-*'"


#: What is loaded before there is a root is of the same release; for all kernels, also one not booted yet.
INITRAMFS = "if command -v update-initramfs >/dev/null; then update-initramfs -u -k all; fi"


def _number(version: str) -> tuple[int, ...]:
    """Of a release, or of its package."""
    return tuple(int(word) for word in version.partition("-")[0].split(".") if word.isdigit())
