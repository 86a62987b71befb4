"""What a node is before Rackserve touches it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pyinfra.api import FactBase

from roles import debian

from .boot import BOOTED, DROP_IN, MENU, SINCE

_CHECKS = {
    "python3": ("command -v python3", "no python3 (install it)"),
    "systemd": ("test -d /run/systemd/system", "systemd is not running"),
    "sudo": ("test $(id -u) = 0 || command -v sudo", "no sudo (install it)"),
    "password": (
        "test $(id -u) = 0 || ! command -v sudo || sudo -n true",
        "sudo asks for a password (allow NOPASSWD for the SSH user)",
    ),
    "umask": (
        "case $(umask) in *[02]) ;; *) false ;; esac",
        "the user who serves could not read what root installs (let root's umask be 022; for sudo:"
        " Defaults umask=0022, umask_override)",
    ),
    "apt": ("command -v apt-get", "no apt-get: only Debian and Ubuntu are supported so far"),
}


class Essentials(FactBase):
    """What this host lacks before anything of ours can work, as one clause each.

    None when it could not be asked, as by a sudo that is not there.
    """

    def command(self) -> str:
        checks = (f"{{ {test}; }} >/dev/null 2>&1 || echo {key}" for key, (test, _) in _CHECKS.items())
        return "; ".join((*checks, "echo asked"))

    def process(self, output: list[str]) -> list[str] | None:
        return [_CHECKS[line][1] for line in output if line in _CHECKS] if "asked" in output else None

    @staticmethod
    def default() -> None:
        return None


class Installed(FactBase[list[str]]):
    """Those of the Debian packages that are installed, also on hold. (DebPackages lists all there are.)"""

    def command(self, packages: Sequence[str]) -> str:
        format_ = "${db:Status-Abbrev} ${Package}\\n"
        return f"dpkg-query -W -f '{format_}' {shlex.join(packages)} 2>/dev/null || true"

    def process(self, output: list[str]) -> list[str]:
        return [line.split()[1] for line in output if line.startswith(("ii ", "hi "))]

    @staticmethod
    def default() -> list[str]:
        return []


class Interrupted(FactBase[bool]):
    """dpkg was cut off, and does nothing before that is finished."""

    def command(self) -> str:
        return debian.INTERRUPTED

    def process(self, output: list[str]) -> bool:
        return "interrupted" in output

    @staticmethod
    def default() -> bool:
        return False


#: Whether ConnectX cards' module is another than the loaded one, and a boot could bring it: one that is older
#: than the boot was there when the initramfs loaded that one.
_CARDS = (
    "test -d /sys/module/mlx5_core"
    ' && test "$(cd /sys/module/mlx5_core && cat version srcversion)"'
    ' != "$(modinfo --field version mlx5_core; modinfo --field srcversion mlx5_core)"'
    f' && test "$(stat -c %Y "$(modinfo --field filename mlx5_core)")" -gt "$({BOOTED})"'
)


class RebootDue(FactBase[str]):
    """Why a host should be rebooted; "" when nothing asks for it.

    What its packages say; a driver that is installed and not loaded, and GPUs that it is for; another module
    for network cards than is loaded; what GRUB tells the next kernel and this one was not told.
    """

    def command(self) -> str:
        return (
            "if test -e /run/reboot-required; then"
            " echo due: $(sort -u /run/reboot-required.pkgs 2>/dev/null | head -n 5); fi;"
            " grep -qs 0x10de /sys/bus/pci/devices/*/vendor && echo gpus: here;"
            " test -d /sys/module/nouveau && echo nouveau: loaded;"
            " echo loaded: $(cat /sys/module/nvidia/version 2>/dev/null);"
            " echo installed: $(modinfo --field version nvidia 2>/dev/null);"
            f" if {_CARDS}; then echo cards: other; fi 2>/dev/null;"
            f" word=$(sed -n 's/^GRUB_CMDLINE_LINUX=.* \\(.*\\)\"$/\\1/p' {DROP_IN} 2>/dev/null);"
            f' test -z "$word" || grep -qsFw -e "$word" /proc/cmdline || ! grep -qsFw -e "$word" {MENU}'
            f' || {SINCE} || echo "boots: $word"'
        )

    def process(self, output: list[str]) -> str:
        said = {key: rest.strip() for key, _, rest in (line.partition(":") for line in output)}
        if "due" in said:
            return f"packages ask for it: {said['due'] or 'they do not say which'}"
        loaded, installed = said.get("loaded"), said.get("installed")
        if loaded and installed and loaded != installed:
            return f"driver {installed} is installed, {loaded} is loaded"
        if installed and not loaded and "gpus" in said:
            return f"driver {installed} is installed, {'nouveau' if 'nouveau' in said else 'none'} is loaded"
        if "cards" in said:
            return "the network cards' mlx5_core was installed after it booted, and another is loaded"
        if "boots" in said:
            return f"it is to boot with {said['boots']}"
        return ""

    @staticmethod
    def default() -> str:
        return ""


class UserId(FactBase[str]):
    """The numeric id of a user, or the empty string."""

    def command(self, user: str) -> str:
        return f"id -u {shlex.quote(user)} 2>/dev/null || true"

    def process(self, output: list[str]) -> str:
        return "".join(output)

    @staticmethod
    def default() -> str:
        return ""


class KernelSettings(FactBase[dict[str, tuple[str, bool]]]):
    """Each setting's value, and whether it can be written here (not so in a container)."""

    def command(self, settings: Sequence[str]) -> str:
        return "; ".join(map(_read_setting, settings)) + "; true"

    def process(self, output: list[str]) -> dict[str, tuple[str, bool]]:
        rows = (line.split("\t") for line in output)
        return {name: (value, writable == "writable") for name, value, writable in rows}

    @staticmethod
    def default() -> dict[str, tuple[str, bool]]:
        return {}


def _read_setting(name: str) -> str:
    file = "/proc/sys/" + name.replace(".", "/")
    # test -w says yes to root even on a read-only mount; opening for append does not.
    return (
        f"test -e {file} && printf '%s\\t%s\\t%s\\n' {name} \"$(cat {file})\" "
        f'"$( (: >> {file}) 2>/dev/null && echo writable || echo readonly)"'
    )
