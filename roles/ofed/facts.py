"""What a node has of an OFED, and could have."""

from __future__ import annotations

import re

from pyinfra.api import FactBase

from roles import debian
from roles.service import PREFIX

from .choice import KEY, PACKAGE, SOURCES, Seen

# One row a line, `key value ...`. doca-ofed brings ofed_info, too.
_LOOK = rf"""
{debian.LOOK}
for d in /sys/bus/pci/devices/*; do
  read -r vendor <"$d/vendor" && read -r class <"$d/class" || continue
  case $vendor,$class in 0x15b3,0x02*) echo card ;; esac
done 2>/dev/null
{debian.SOURCES}
sources '[^#\n]*public/repo/doca/' | sed 's/^/source /'
dpkg-query -W -f 'package ${{db:Status-Abbrev}} ${{Version}}\n' {PACKAGE} 2>/dev/null
image="/boot/initrd.img-$(uname -r)"
test -e "$image" && test "$(modinfo --field filename mlx5_core 2>/dev/null)" -nt "$image" && echo stale
command -v ofed_info >/dev/null && echo other "$(ofed_info -n 2>/dev/null)"
systemctl list-units --plain --no-legend --state=active,activating,reloading '{PREFIX}replica-*' 2>/dev/null |
  sed -n 's/^{PREFIX}\(replica-[0-9]*\)-.*/serving \1/p' | sort -u
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
        package = re.fullmatch(r"[ih]i (\S+)", words.get("package", ""))
        version = package[1] if package else ""
        sources = tuple(row[1] for row in rows if row[:1] == ["source"])
        ours = version or SOURCES in sources  # also one that was cut off while it was installed
        return Seen(
            distribution=words.get("os", "").strip(),
            machine=words.get("machine", ""),
            kernel=words.get("kernel", ""),
            secure_boot=words.get("secure") == "1",
            cards=rows.count(["card"]),
            version=version,
            sources=sources,
            other="" if ours or "other" not in words else f"OFED {words['other']}".strip(),
            serving=tuple(row[1] for row in rows if row[:1] == ["serving"]),
            interrupted=["interrupted"] in rows,
            stale=["stale"] in rows,
        )

    @staticmethod
    def default() -> None:
        return None


class Fingerprints(FactBase[list[str]]):
    """Of the keys that apt has for it."""

    def command(self) -> str:
        return f"gpg --show-keys --with-colons {KEY} 2>/dev/null || true"

    def process(self, output: list[str]) -> list[str]:
        return [line.split(":")[9] for line in output if line.startswith("fpr:")]

    @staticmethod
    def default() -> list[str]:
        return []
