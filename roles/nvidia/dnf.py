"""How Rocky would get it: files and commands, as text. Pure; nothing calls it yet but tests."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from .table import RPM_KEY
from .want import Seen, Wanted


def files(its: Wanted, seen: Seen) -> dict[str, str]:
    """Where packages come from, {path: content}."""
    name = f"cuda-{its.row.repository}-{seen.machine}"
    lines = (f"[{name}]", f"name={name}", f"baseurl={its.folder}", "enabled=1", "gpgcheck=1",
             f"gpgkey={its.folder}/{RPM_KEY}", "")  # fmt: skip
    return {f"/etc/yum.repos.d/cuda-{its.row.repository}.repo": "\n".join(lines)}


def refreshed(its: Wanted) -> str:
    """dkms is in EPEL, what it needs in CRB, and the branch is a stream of a module."""
    return (
        "dnf -y install epel-release 'dnf-command(versionlock)' && dnf config-manager --set-enabled crb"
        f" && dnf -y module enable nvidia-driver:{its.branch}-open"
    )


def installed(names: Sequence[str], versions: Mapping[str, str]) -> str:
    """Install packages; dnf takes patterns."""
    words = [f"{name}-{versions[name]}" if name in versions else name for name in names]
    return f"dnf -y install {shlex.join(words)}"


def held(names: Sequence[str]) -> str:
    """No upgrade replaces them."""
    return f"dnf versionlock add {shlex.join(names)}"


def initramfs() -> str:
    """What is loaded before the root file system knows what /etc/modprobe.d says."""
    return "dracut -f"
