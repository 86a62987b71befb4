"""Repositories of empty packages with the names and versions of NVIDIA's driver, signed, as apt takes them.

What apt makes of pins, holds, upgrades and mixed sources is apt's own; only what is in the packages is not.
"""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from tempfile import TemporaryDirectory

from roles.nvidia.table import COMPILER, KEYRING, TOOLKIT

NVIDIA = {"Origin": "NVIDIA", "Label": "NVIDIA CUDA"}
UBUNTU = {"Origin": "Ubuntu", "Label": "Ubuntu"}
DEBIAN = {"Origin": "Debian", "Label": "Debian"}

#: Where this file is, a release's apt and dpkg are killed while they install it, once.
CUT = "/run/rackserve-lab-cut"
_CUT = f'if test -e {CUT}; then rm {CUT}; kill -KILL "$(cut -d " " -f 4 "/proc/$PPID/stat")" "$PPID"; fi'


@dataclass(frozen=True)
class Empty:
    """A package without content, but for files that something looks at."""

    name: str
    version: str
    fields: Mapping[str, str] = field(default_factory=dict)  # Depends, Conflicts
    files: Mapping[str, bytes] = field(default_factory=dict)
    postinst: str = ""  # shell

    def build(self, folder: Path) -> Path:
        tree = folder / f".{self.name}"
        control = tree / "DEBIAN/control"
        control.parent.mkdir(parents=True)
        fields = {"Package": self.name, "Version": self.version, "Architecture": "all",
                  "Maintainer": "Rackserve's lab <lab@rackserve.invalid>", "Description": "empty",
                  **self.fields}  # fmt: skip
        control.write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
        if self.postinst:
            script = tree / "DEBIAN/postinst"
            script.write_text(f"#!/bin/sh\nset -e\n{self.postinst}\n")
            script.chmod(0o755)
        for path, content in self.files.items():
            file = tree / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(0o755 if "/bin/" in path else 0o644)
        target = folder / f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"
        _run("dpkg-deb", "--root-owner-group", "--build", "-Znone", tree, target)
        _run("rm", "-r", tree)
        return target


def release(version: str, kernel: str) -> list[Empty]:
    """A release of the driver for Debian, of which a node sees what it would see of a real one.

    `modinfo nvidia` knows its version, and its units can be enabled; nothing is ever loaded.
    """
    folder = f"/lib/modules/{kernel}/updates/dkms"
    built = Empty("nvidia-kernel-open-dkms", f"{version}-1", {"Depends": "kmod"},
                  {f"{folder}/nvidia.ko": module(version)}, f"depmod {kernel}")  # fmt: skip
    return [
        built,
        Empty("nvidia-driver-cuda", f"{version}-1", postinst=_CUT),
        Empty("nvidia-persistenced", f"{version}-1", files=_daemon("nvidia-persistenced", install=False)),
        Empty("nvidia-fabricmanager", f"{version}-1", files=_daemon("nvidia-fabricmanager")),
    ]


def monitoring(version: str = "4.5.2") -> list[Empty]:
    """DCGM and its exporter."""
    return [
        Empty("datacenter-gpu-manager-4-cuda13", f"1:{version}-1", files=_daemon("nvidia-dcgm")),
        Empty("datacenter-gpu-manager-exporter", f"{version}-1", files=_daemon("nvidia-dcgm-exporter")),
    ]


def compiler() -> list[Empty]:
    """What compiles kernels at start."""
    return [Empty(name.format(toolkit=TOOLKIT), "13.0.88-1") for name in COMPILER]


def module(version: str) -> bytes:
    """A kernel module as kmod reads it: an ELF file with two sections, and no code."""
    info = b"".join(f"{row}\0".encode() for row in (f"version={version}", "license=GPL", "name=nvidia"))
    names = b"\0.modinfo\0.shstrtab\0"
    after = 64 + len(info) + len(names)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0, after, 0, 64, 0, 0, 64, 3, 2
    )
    sections = [
        struct.pack("<IIQQQQIIQQ", name, kind, flags, 0, at, size, 0, 0, 1, 0)
        for name, kind, flags, at, size in (
            (0, 0, 0, 0, 0), (1, 1, 2, 64, len(info)), (10, 3, 0, 64 + len(info), len(names)),
        )
    ]  # fmt: skip
    return header + info + names + b"".join(sections)


def _daemon(name: str, install: bool = True) -> dict[str, bytes]:
    """A program that stays, and its unit; without [Install] it is what Ubuntu's persistence daemon is."""
    wanted = "[Install]\nWantedBy=multi-user.target\n" if install else ""
    unit = f"[Service]\nType=forking\nExecStart=/usr/bin/{name}\n{wanted}"
    return {
        f"/usr/bin/{name}": b"#!/bin/sh\nsleep infinity &\n",
        f"/lib/systemd/system/{name}.service": unit.encode(),
    }


class Repository:
    """A folder that apt reads as `deb URL /`, and the key that signs it."""

    def __init__(self, folder: Path, says: Mapping[str, str] = NVIDIA) -> None:
        self.folder, self.says = folder, says
        folder.mkdir(parents=True)
        self.home = TemporaryDirectory(prefix="gnupg-")  # the path of a socket in it must be short
        self._gpg("--quick-generate-key", "rackserve-lab", "ed25519", "sign", "never")
        (folder / KEYRING).write_bytes(self._gpg("--export"))

    @property
    def fingerprint(self) -> str:
        rows = self._gpg("--list-keys", "--with-colons").decode().splitlines()
        return next(row.split(":")[9] for row in rows if row.startswith("fpr:"))

    def add(self, packages: Sequence[Empty]) -> None:
        """Build packages, and write what apt reads anew."""
        for package in packages:
            package.build(self.folder)
        stanzas = [_stanza(deb) for deb in sorted(self.folder.glob("*.deb"))]
        (self.folder / "Packages").write_text("\n".join(stanzas))
        index = (self.folder / "Packages").read_bytes()
        release = {**self.says, "Date": formatdate(usegmt=True)}
        lines = [f"{key}: {value}" for key, value in release.items()]
        lines += ["SHA256:", f" {hashlib.sha256(index).hexdigest()} {len(index)} Packages", ""]
        (self.folder / "Release").write_text("\n".join(lines))
        (self.folder / "InRelease").write_bytes(
            self._gpg("--clearsign", "--output", "-", str(self.folder / "Release"))
        )

    def _gpg(self, *words: str) -> bytes:
        batch = ("--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "")
        try:
            return _run("gpg", "--homedir", self.home.name, *batch, *words)
        finally:  # its agent would outlive us
            _run("gpgconf", "--homedir", self.home.name, "--kill", "gpg-agent")


class Apt:
    """apt and dpkg with a system of their own in a folder; nothing of this machine's is read or changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("etc/preferences.d", "etc/sources.list.d", "etc/apt.conf.d", "state/lists/partial",
                     "cache/archives/partial", "dpkg/info", "dpkg/updates", "root"):  # fmt: skip
            (folder / name).mkdir(parents=True)
        (folder / "dpkg/status").touch()
        options = {
            "Dir::State": "state", "Dir::State::status": "dpkg/status", "Dir::Cache": "cache",
            "Dir::Etc": "etc", "Dir::Etc::parts": "etc/apt.conf.d", "Dir::Log": "cache",
        }  # fmt: skip
        lines = [f'{key} "{folder / value}";' for key, value in options.items()]
        lines += [f'DPkg::Options:: "{option}";' for option in self.dpkg_options]
        lines += ['APT::Sandbox::User "";', 'Acquire::Languages "none";', 'APT::Architecture "amd64";']
        (folder / "apt.conf").write_text("\n".join(lines) + "\n")

    @property
    def dpkg_options(self) -> list[str]:
        return [f"--admindir={self.folder / 'dpkg'}", f"--instdir={self.folder / 'root'}", "--force-not-root",
                "--force-bad-path", f"--log={self.folder / 'dpkg.log'}"]  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "APT_CONFIG": f"{self.folder}/apt.conf", "DPKG_ADMINDIR": f"{self.folder}/dpkg",
                "LC_ALL": "C"}  # fmt: skip

    def knows(self, name: str, repository: Repository, how: str = "file") -> None:
        """+ how: `copy` fetches packages, as from a server; `file` takes them from where they are."""
        keyring = repository.folder / KEYRING
        line = f"deb [signed-by={keyring}] {how}://{repository.folder}/ /\n"
        (self.folder / f"etc/sources.list.d/{name}.list").write_text(line)
        self.run("apt-get -q update")

    def run(self, command: str) -> str:
        """What a command prints, in a shell."""
        done = subprocess.run(
            ["sh", "-c", command], env=self.environment, capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    @property
    def installed(self) -> dict[str, str]:
        """{package: `ii` or `hi`, and its version}."""
        rows = self.run("dpkg-query -W -f '${Package} ${db:Status-Abbrev} ${Version}\\n' || true")
        return dict(row.split(" ", 1) for row in rows.replace("  ", " ").splitlines())


def _stanza(deb: Path) -> str:
    content = deb.read_bytes()
    fields = _run("dpkg-deb", "--field", deb).decode()
    digest = hashlib.sha256(content).hexdigest()
    return f"{fields}Filename: ./{deb.name}\nSize: {len(content)}\nSHA256: {digest}\n"


def _run(*words: str | Path) -> bytes:
    done = subprocess.run(list(map(str, words)), capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{words[0]}: {done.stderr.decode()}")
    return done.stdout
