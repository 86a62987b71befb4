"""How Debian and Ubuntu get it: files and commands, as text. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from roles import debian

from .table import DRIVER, FINGERPRINT, KEYRING
from .want import Seen, Wanted, sources_file

KEY = f"/usr/share/keyrings/{KEYRING}"
PREFERENCES = "/etc/apt/preferences.d/rackserve-nvidia"


def files(its: Wanted, seen: Seen) -> dict[str, str]:
    """Where packages come from, {path: content}; the first is as NVIDIA's package cuda-keyring has it."""
    return {
        sources_file(its.row, seen): f"deb [signed-by={KEY}] {its.folder}/ /\n",
        PREFERENCES: preferences(its),
    }


def preferences(its: Wanted, release: str = "") -> str:
    """What apt may take from whom: the driver from one source, of one branch.

    + release: of that rather than of a newer one, also what the driver depends on, for `pins` of one command
    """
    version = (f"version {release}-*", 1001) if release else (f"version {its.pattern}", 1000)
    pins = [
        (" ".join(its.row.blocked), its.row.other, -1),
        # From 1000 on apt goes back to it, too; without, a daemon's newest branch is taken.
        (" ".join(DRIVER), *version),
    ]
    return f"# Rackserve: the driver is from {its.source}, and nothing of it from elsewhere.\n" + "".join(
        f"Package: {names}\nPin: {pin}\nPin-Priority: {priority}\n\n" for names, pin, priority in pins
    )


def key(its: Wanted) -> str:
    """Fetch the repository's key."""
    return debian.key(f"{its.folder}/{KEYRING}", KEY, FINGERPRINT)


def installed(names: Sequence[str], versions: Mapping[str, str], pins: str = "") -> str:
    """Install packages; `versions` are whole ones: a pattern is looked for also in what is pinned away.

    + pins: that count for this command, before those on the host
    """
    return _install(debian.APT, names, versions, pins)


def fetched(names: Sequence[str], versions: Mapping[str, str], pins: str = "") -> str:
    """All that `installed` would download; it says what cannot be installed together, too."""
    return debian.patiently(_install(f"{debian.APT} --download-only", names, versions, pins))


def left_to_fetch(names: Sequence[str], versions: Mapping[str, str], pins: str = "") -> str:
    """What of it is not here yet, a line each; fails where it could not be installed."""
    return _install("apt-get -y -qq --print-uris", names, versions, pins)


def unpacked(names: Sequence[str], versions: Mapping[str, str], pins: str = "") -> str:
    """How many KiB it takes, when it is unpacked."""
    return (
        f"{_install('LC_ALL=C apt-get -y -qq -s', names, versions, pins)} |"
        r" sed -n 's/^Inst \([^ ]*\) \(\[[^]]*\] \)\?(\([^ ]*\) .*/\1=\3/p' | xargs -r apt-cache show |"
        " awk '/^Installed-Size:/ {size += $2} END {print size + 0}'"
    )


def _install(apt: str, names: Sequence[str], versions: Mapping[str, str], pins: str) -> str:
    words = [f"{name}={versions[name]}" if name in versions else name for name in names]
    options = "--no-install-recommends --allow-downgrades --allow-change-held-packages"
    install = f"install {options} {shlex.join(words)}"
    if not pins:
        return f"{apt} {install}"
    return (
        """( p=$(mktemp) && trap 'rm -f "$p"' EXIT && """
        f'{{ printf %s {shlex.quote(pins)}; cat /etc/apt/preferences 2>/dev/null; true; }} >"$p" && '
        f'{apt} -o Dir::Etc::Preferences="$p" {install} )'
    )


def held(names: Sequence[str]) -> str:
    """No upgrade replaces them."""
    return debian.patiently(f"apt-mark hold {shlex.join(names)}")


def why_not_built(its: Wanted) -> str:
    """Where to look when the running kernel has no module of the installed driver."""
    if its.row.holds_kernel:
        return "Ubuntu signs none for it: install a newer kernel, reboot, and provision again"
    return "see /var/lib/dkms/nvidia/*/build/make.log"


def initramfs() -> str:
    """What is loaded before the root file system knows what /etc/modprobe.d says.

    For all kernels: else it is the newest's, and we look at that of the one that runs.
    """
    return "update-initramfs -u -k all"
