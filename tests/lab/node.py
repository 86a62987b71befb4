"""One machine of the lab: a disk, a systemd, an sshd, and the faults it can suffer."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from . import cgroups, network
from .base import base
from .paths import BRIDGE, CACHE, GATEWAY, KEY, KNOWN_HOSTS, STATE, SUBNET, USER
from .shell import inside, kill, processes, run, succeeds, wait_until

DISK_GIB = 24  # sparse: a node takes what it writes, about 4 GiB with the CPU runtime
NSPAWN = Path("/run/systemd/nspawn")
CA_BUNDLE = Path("etc/ssl/certs/ca-certificates.crt")

#: nspawn ends with this status when the node reboots itself; its end of the cable may still be there.
_AGAIN = 'while "$@"; [ $? = 133 ]; do ip link delete "$0" 2>/dev/null; sleep 1; done'


@dataclass(frozen=True)
class Node:
    """A lab machine by its number, from 1."""

    index: int

    @property
    def name(self) -> str:
        return f"node{self.index}"

    @property
    def address(self) -> IPv4Address:
        return SUBNET[10 + self.index]

    @property
    def folder(self) -> Path:
        return STATE / "nodes" / self.name

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def link(self) -> str:
        """The host's end of the node's cable (systemd-nspawn names it after the machine)."""
        return f"vb-rs-{self.name}"

    def create(self) -> None:
        """Give the node a disk over the base, and what its installer would have asked."""
        disk, layers = self.folder / "disk.img", self.folder / "disk"
        if not disk.exists():
            layers.mkdir(parents=True)
            run("truncate", "-s", f"{DISK_GIB}G", disk)
            run("mkfs.ext4", "-q", "-O", "^has_journal", disk)
        self._mount(disk, layers)
        if not (self.root / "etc/systemd/network/10-lab.network").exists():
            self._configure()

    def _mount(self, disk: Path, layers: Path) -> None:
        if not layers.is_mount():
            run("mount", "-o", "loop", disk, layers)
        for folder in (layers / "upper", layers / "work", self.root):
            folder.mkdir(exist_ok=True)
        if not self.root.is_mount():
            places = f"lowerdir={base()},upperdir={layers}/upper,workdir={layers}/work"
            run("mount", "-t", "overlay", "overlay", "-o", places, self.root)

    def _configure(self) -> None:
        self._write("etc/hostname", f"{self.name}\n")
        self._write("etc/hosts", f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        self._write("etc/resolv.conf", _resolv_conf())
        shutil.copy("/" / CA_BUNDLE, self.root / CA_BUNDLE)
        run("chroot", self.root, "ssh-keygen", "-A")
        run("chroot", self.root, "useradd", "--create-home", "--shell", "/bin/bash", USER)
        self._write(f"etc/sudoers.d/{USER}", f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
        keys = f"home/{USER}/.ssh/authorized_keys"
        self._write(keys, KEY.with_suffix(".pub").read_text())
        run("chroot", self.root, "chown", "-R", f"{USER}:", f"/home/{USER}/.ssh")
        self._write(
            "etc/systemd/network/10-lab.network",
            f"[Match]\nName=host0\n[Network]\nAddress={self.address}/{SUBNET.prefixlen}\n"
            f"Gateway={GATEWAY}\nLinkLocalAddressing=no\n",
        )

    def _write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(text)

    def known_host(self) -> str:
        key = (self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
        return f"{self.address} {key[0]} {key[1]}\n"

    def poweron(self) -> None:
        """Boot; returns once the lab's user can log in, which systemd allows after sshd is up."""
        if self.is_on():
            return
        with (self.folder / "console.log").open("ab") as console:
            subprocess.Popen(
                self._nspawn(), stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                start_new_session=True,
            )  # fmt: skip
        wait_until(self._lets_in, 60, f"a login on {self.name} (see {self.folder}/console.log)")

    def _nspawn(self) -> list[str]:
        caches = CACHE / "compile"
        caches.mkdir(parents=True, exist_ok=True)
        return [
            *cgroups.entering(self.name), "sh", "-c", _AGAIN, self.link,
            "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot",
            "--directory", str(self.root), "--machine", f"rs-{self.name}",
            "--hostname", self.name, "--network-bridge", BRIDGE,
            "--resolv-conf=off", "--timezone=off", "--link-journal=no",
            "--bind", f"{caches}:/var/cache/rackserve",
        ]  # fmt: skip

    def poweroff(self) -> None:
        """Pull the plug: nothing on the node gets to say goodbye."""
        kill(self._processes, self.name)
        cgroups.remove(self.name)
        # Its end of the cable goes with its namespace, but not at once, and blocks a reboot.
        succeeds("ip", "link", "delete", self.link)

    def is_on(self) -> bool:
        return any(self._processes())

    def _processes(self) -> Iterator[int]:
        yield from processes("systemd-nspawn", self.root)
        yield from inside(self.folder / "disk/upper")

    def answers(self) -> bool:
        try:
            with socket.create_connection((str(self.address), 22), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def _lets_in(self) -> bool:
        return self.answers() and succeeds(*self.ssh("true"))

    def ssh(self, *command: str) -> list[str]:
        """The argv of ssh to this node as the lab's user."""
        options = [
            "-i",
            str(KEY),
            "-o",
            f"UserKnownHostsFile={KNOWN_HOSTS}",
            "-o",
            "LogLevel=ERROR",
        ]
        return ["ssh", *options, f"{USER}@{self.address}", *command]

    def sudo(self, command: str) -> str:
        """Run a shell command as root on the node, over SSH, and return its stdout."""
        return run(*self.ssh("sudo", "sh", "-c", f"'{command}'"))

    def cut(self) -> None:
        network.cut(self.link)

    def heal(self) -> None:
        """Undo every fault but a power-off."""
        network.heal(self.link)
        self._ballast.unlink(missing_ok=True)

    def slow(self, mbit: int) -> None:
        network.slow(self.link, mbit)

    def fill_disk(self, leave_mib: int = 64, for_root: bool = False) -> None:
        """Fill the node's disk, leaving `leave_mib` MiB for everyone but root, or for root, too."""
        self._ballast.unlink(missing_ok=True)
        disk = os.statvfs(self.root)
        free = (disk.f_bfree if for_root else disk.f_bavail) * disk.f_frsize
        run("fallocate", "-l", str(free - leave_mib * 2**20), self._ballast)

    @property
    def _ballast(self) -> Path:
        return self.folder / "disk/ballast"

    def destroy(self) -> None:
        """Remove the node and its disk, in whatever state a crash left them."""
        self.poweroff()
        self._remove_nspawns_notes()
        for mount in (self.root, self.folder / "disk"):
            while mount.is_mount():
                run("umount", mount)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_nspawns_notes(self) -> None:
        """What a killed systemd-nspawn leaves under /run."""
        if self.root.exists():
            root = self.root.stat()
            (NSPAWN / f"locks/inode-{root.st_dev}:{root.st_ino}").unlink(missing_ok=True)
        shutil.rmtree(NSPAWN / f"propagate/rs-{self.name}", ignore_errors=True)


def _resolv_conf() -> str:
    """The outer machine's resolvers; behind systemd-resolved's stub, the real ones."""
    for path in ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"):
        if Path(path).exists():
            return Path(path).read_text()
    return ""
