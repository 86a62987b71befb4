"""What a node has of a driver, and could have."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyinfra.api import FactBase

from roles import debian
from roles.service import PREFIX

from .apt import KEY, left_to_fetch, unpacked
from .table import BRANCHES, DRIVER, SIGNED
from .want import Package, Seen

PACKAGES = (*DRIVER, *SIGNED, "linux-*", "datacenter-gpu-manager-*", "nvlsm", "infiniband-diags",
            "cuda-*", "libcublas-dev-*", "libcurand-dev-*")  # fmt: skip

#: What packages for kernels begin with, of those that a driver needs.
FOR_KERNELS = f"^linux-(headers|modules-nvidia-({'|'.join(BRANCHES)})-server-open)-"

BUILD = 2**20  # KiB that DKMS may take to build a module, and the initramfs

# What apt has for kernels of the running one's flavour, and for flavours. It takes time: not where there is a
# module already. Where no lists were fetched yet apt would name what is installed.
_KNOWN = rf"""
! modinfo nvidia >/dev/null 2>&1 && ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1 &&
apt-cache pkgnames linux- 2>/dev/null | grep -E '{FOR_KERNELS}' | awk -v "k=$(uname -r)" '
  BEGIN {{ sub(/^[0-9][0-9.]*([+][a-z0-9]+)?(-[0-9]+)?-/, "-", k) }}
  substr($0, length($0) - length(k) + 1) == k || !/-[0-9]+[.][0-9]+[.][0-9]/ {{ print "known", $0 }}'
""".strip()

# One row a line, `key value ...`. B200's switches are no devices of NVIDIA's; what manages them says so in
# its vital product data (NVIDIA/gpu-driver-container: _assert_nvlink5_system).
_LOOK = rf"""
{debian.LOOK}
for d in /sys/bus/pci/devices/*; do
  read -r vendor <"$d/vendor" && read -r class <"$d/class" || continue
  case $vendor in
    0x10de) echo pci "$class" ;;
    0x15b3) timeout 5 grep -qa SW_MNG "$d/vpd" && echo nvlink5 ;;
  esac
done 2>/dev/null
echo loaded "$(cat /sys/module/nvidia/version 2>/dev/null)"
echo module "$(modinfo --field version nvidia 2>/dev/null)"
test -e /usr/bin/nvidia-uninstall && echo run_file
{debian.SOURCES}
sources '[^#\n]*compute/cuda/repos/' | sed 's/^/source /'
for c in contrib restricted multiverse; do
  sources "(deb|Components:)[ \t][^#\n]*$c([ \t\n]|\$)" | grep -q . && echo component $c
done
dpkg-query -W -f 'package ${{db:Status-Abbrev}} ${{Package}} ${{Version}}\n' \
  {shlex.join(PACKAGES)} 2>/dev/null
{_KNOWN}
systemctl list-units --plain --no-legend --state=active,activating,reloading '{PREFIX}replica-*' 2>/dev/null |
  sed 's/^/unit /'
echo asked"""


class Look(FactBase["Seen | None"]):
    """All of it, in one round; None when the host could not be asked."""

    def command(self) -> str:
        return _LOOK.strip()

    def process(self, output: list[str]) -> Seen | None:
        rows = [line.split() for line in output]
        if ["asked"] not in rows:
            return None
        words = {row[0]: " ".join(row[1:]) for row in rows if row}
        said = [row[0] for row in rows if row]
        pci = [row[1] for row in rows if row[:1] == ["pci"]]
        return Seen(
            distribution=words.get("os", "").strip(),
            machine=words.get("machine", ""),
            kernel=words.get("kernel", ""),
            secure_boot=words.get("secure") == "1",
            gpus=sum(kind.startswith(("0x0300", "0x0302")) for kind in pci),
            switches=sum(kind.startswith("0x0680") for kind in pci),
            nvlink5="nvlink5" in said,
            packages={
                row[2]: Package(row[3], held=row[1][0] == "h")
                for row in rows
                if row[:1] == ["package"] and len(row) == 4 and row[1] in ("ii", "hi")
            },
            loaded=words.get("loaded", ""),
            module=words.get("module", ""),
            run_file="run_file" in said,
            sources=tuple(row[1] for row in rows if row[:1] == ["source"]),
            components=tuple(row[1] for row in rows if row[:1] == ["component"]),
            known=frozenset(row[1] for row in rows if row[:1] == ["known"]),
            serving=tuple(
                dict.fromkeys(_replica(row[1]) for row in rows if row[:1] == ["unit"] and len(row) > 1)
            ),
            interrupted="interrupted" in said,
        )

    @staticmethod
    def default() -> None:
        return None


def _replica(unit: str) -> str:
    """replica-0 of rackserve-replica-0-vllm.service."""
    match = re.match(rf"{PREFIX}(.+)-\w+\.service", unit)
    return match[1] if match else unit


class Offered(FactBase["dict[str, list[str]]"]):
    """{package: versions that apt would install, the newest first}; what a pin keeps out is none."""

    def command(self, names: Sequence[str]) -> str:
        return f"apt-cache policy {shlex.join(names)}"

    def process(self, output: list[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        name = ""
        for line in output:
            if match := re.match(r"(\S+):$", line):
                name = match[1]
            # The installed version's row has stars; those of its origins are indented deeper.
            elif (match := re.match(r" (?:\*\*\*|   ) (\S+) (-?\d+)$", line)) and int(match[2]) > 0:
                found.setdefault(name, []).append(match[1])
        return found

    @staticmethod
    def default() -> dict[str, list[str]]:
        return {}


class Staged(FactBase[bool]):
    """Packages could be installed from what is on this host."""

    def command(self, names: Sequence[str], versions: Mapping[str, str], pins: str = "") -> str:
        left = left_to_fetch(names, versions, pins)
        return f'left=$( {left} 2>/dev/null) && test -z "$left" && echo staged || true'

    def process(self, output: list[str]) -> bool:
        return "staged" in output

    @staticmethod
    def default() -> bool:
        return False


@dataclass(frozen=True)
class Space:
    """In KiB."""

    needed: int
    free: int


class Room(FactBase[Space]):
    """What packages need when they are installed, and the module that is built of them; and what is free."""

    def command(self, names: Sequence[str], versions: Mapping[str, str], pins: str = "") -> str:
        return f"{unpacked(names, versions, pins)}; df --output=avail --block-size=1K /usr /var | tail -n 2"

    def process(self, output: list[str]) -> Space:
        packages, *free = map(int, output)
        return Space(packages + BUILD, min(free))

    @staticmethod
    def default() -> Space:
        return Space(0, 0)


class Fingerprints(FactBase[list[str]]):
    """Whose keys are in apt's keyring for NVIDIA."""

    def command(self) -> str:
        return f"gpg --show-keys --with-colons {KEY} 2>/dev/null || true"

    def process(self, output: list[str]) -> list[str]:
        return [line.split(":")[9] for line in output if line.startswith("fpr:")]

    @staticmethod
    def default() -> list[str]:
        return []


class Initramfs(FactBase[str]):
    """`stale` when the running kernel's is older than a file that it should know, `fresh` or `none` else."""

    def command(self, path: str) -> str:
        image = '"/boot/initrd.img-$(uname -r)"'
        newer = f"if test {shlex.quote(path)} -nt {image}; then echo stale; else echo fresh; fi"
        return f"if test -e {image}; then {newer}; else echo none; fi"

    def process(self, output: list[str]) -> str:
        return "".join(output)

    @staticmethod
    def default() -> str:
        return "none"
