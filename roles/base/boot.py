"""What a host's kernel is told as it boots, by GRUB: from the next boot on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO

from pyinfra import host, state
from pyinfra.api import FactBase, QuoteString, StringCommand, deploy, operation
from pyinfra.api.operation import OperationMeta
from pyinfra.operations import files

#: $1 the parameter, which a file of a later name could take away again.
_UPDATE = (
    'update-grub && { grep -qFw -e "$1" /boot/grub/grub.cfg || { echo "update-grub left $1 out: look for'
    ' GRUB_CMDLINE_LINUX in /etc/default/grub.d" >&2; false; }; }'
)
DROP_IN = "/etc/default/grub.d/rackserve.cfg"
MENU = "/boot/grub/grub.cfg"

BOOTED = "sed -n 's/^btime //p' /proc/stat"  # when, in seconds of the clock on the wall

#: Whether a host was booted after its menu was made, so that booting it again brings no more of it.
SINCE = f'test "$(stat -c %Y {MENU})" -lt "$({BOOTED})"'

#: Devices that are not given away reach memory as it is (the kernel's admin-guide/kernel-parameters.txt; on
#: x86 by the word of vendors' guides). What else these name is left out: intel_iommu=on turns on what does no
#: harm off, and amd_iommu knows no `on`.
PASSED_THROUGH = {"x86_64": "iommu=pt", "aarch64": "iommu.passthrough=1"}


@dataclass(frozen=True)
class Booted:
    """How a host boots: by GRUB or not, with which words now, and with which words the next time."""

    machine: str = ""
    grub: bool = False
    now: frozenset[str] = frozenset()
    menu: frozenset[str] = frozenset()
    since: bool = False  # it was booted after that menu was made

    @property
    def parameter(self) -> str:
        """What tells its kernel that the IOMMU is to pass through."""
        return PASSED_THROUGH.get(self.machine, "")


class Boot(FactBase["Booted | None"]):
    """All of it, in one round; None when the host could not be asked."""

    def command(self) -> str:
        return (
            'echo "machine $(uname -m)"; echo "now $(cat /proc/cmdline)";'
            f" command -v update-grub >/dev/null && test -e {MENU} && echo grub && {SINCE} && echo since;"
            f" sed -n 's/^[[:space:]]*linux[[:space:]]/menu /p' {MENU} 2>/dev/null; echo booted"
        )

    def process(self, output: list[str]) -> Booted | None:
        rows = [line.split() for line in output]
        if ["booted"] not in rows:
            return None
        said = {
            key: frozenset(word for row in rows if row[:1] == [key] for word in row[1:])
            for key in ("now", "menu")
        }
        machine = next((row[1] for row in rows if row[:1] == ["machine"]), "")
        return Booted(machine, ["grub"] in rows, said["now"], said["menu"], ["since"] in rows)

    @staticmethod
    def default() -> None:
        return None


def cannot_boot(seen: Booted) -> str:
    """Why a host cannot be made to boot so; "" when it can, or does already."""
    if not seen.parameter:
        return f"iommu is pt: not known how a kernel of {seen.machine} is told so; leave `iommu` out"
    by_hand = f"put {seen.parameter} on its kernel's command line, and reboot it"
    if seen.parameter in seen.now:
        return ""
    if not seen.grub:
        return f"iommu is pt, and it is not GRUB that boots it (update-grub, {MENU}): {by_hand}"
    if seen.parameter in seen.menu and seen.since:
        booted = f"it booted without {seen.parameter}, which {MENU} has"
        return f"iommu is pt, and {booted}: something else boots it; {by_hand}"
    return ""


@deploy("Base")
def passed_through(seen: Booted) -> None:
    """The IOMMU translates nothing for the host itself, from the next boot on."""
    for parameter in host.loop([seen.parameter] if seen.grub else []):
        put = files.put(
            name="Pass the IOMMU through at boot", src=StringIO(drop_in(parameter)), dest=DROP_IN, mode="644"
        )
        menu(name="Tell GRUB of it", parameter=parameter, changed=[put])


@operation()
def menu(parameter: str, changed: Sequence[OperationMeta] = ()) -> Iterator[StringCommand]:
    """GRUB's menu boots with that; what a cut connection left undone is seen in the menu itself.

    + changed: the operation that writes the file it is made from, so that a plan foretells this
    """
    foretold = [op for op in changed if op.will_change] if not state.is_executing else []
    seen = host.get_fact(Boot) or Booted()
    if parameter not in seen.now:
        host.log(f"it runs without {parameter}: rackserve rollout --reboot due reboots for it")
    if parameter not in seen.menu or foretold:
        yield StringCommand("sh", "-c", QuoteString(_UPDATE), "sh", parameter)
        return
    host.noop(f"GRUB boots it with {parameter}")


def drop_in(parameter: str) -> str:
    """What update-grub reads, after what the distribution and others say there."""
    return f'# Rackserve: `iommu` of the inventory.\nGRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {parameter}"\n'
