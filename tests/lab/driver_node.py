"""A node with GPUs, as far as a driver is concerned: a PCI bus, and a module that a boot loads.

The packages are tests/lab/drivers.py's, from a server on the lab's bridge; apt, dpkg, kmod and systemd are
the node's own. Nothing of it is in a kernel.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from roles.nvidia import DROP_IN, NOUVEAU
from roles.nvidia.apt import KEY, PREFERENCES
from roles.nvidia.table import FABRIC, MACHINES, MONITORING, PERSISTENCE

from .drivers import Empty, Repository
from .node import Node
from .paths import GATEWAY

KERNEL = os.uname().release
#: {address on the bus: (vendor, class)}: two GPUs and an NVSwitch.
DEVICES = {
    "0000:10:00.0": ("0x10de", "0x030200"),
    "0000:20:00.0": ("0x10de", "0x030200"),
    "0000:30:00.0": ("0x10de", "0x068000"),
}

FOLDER = "/opt/rackserve-lab-gpus"
UNIT = "lab-gpus.service"  # serve removes units of our name that it does not plan
_UNIT = f"""\
[Unit]
Before=ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh {FOLDER}/boot
ExecStop=/bin/sh {FOLDER}/off
[Install]
WantedBy=multi-user.target
"""
# A container's /sys has a bus, and no modules.
_BOOT = f"""\
set -e
if ! test -d /sys/module; then
  mount -o remount,bind,rw /sys
  mkdir /sys/module
  mount -o remount,bind,ro /sys
fi
mount -t tmpfs tmpfs /sys/module
mount --bind {FOLDER}/bus /sys/bus
if version=$(modinfo --field version nvidia 2>/dev/null); then
  mkdir /sys/module/nvidia
  echo "$version" > /sys/module/nvidia/version
fi
"""
_OFF = "umount /sys/bus /sys/module\n"


@contextmanager
def repository(folder: Path) -> Iterator[tuple[Repository, str]]:
    """NVIDIA's for Debian 12, and the address of the folder of all repositories."""
    made = Repository(folder / f"debian12/{MACHINES[os.uname().machine]}")
    made.add([Empty(f"linux-headers-{KERNEL}", "1")])
    with ThreadingHTTPServer((str(GATEWAY), 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield made, f"http://{GATEWAY}:{server.server_port}"
        finally:
            server.shutdown()


def lend(repositories: str, fingerprint: str, whose: Callable | None = None) -> None:
    """For an inventory: NVIDIA's repositories are there, signed by that key.

    + whose: of a host's settings, whether it gets a driver; of the lab's none has a CUDA runtime
    """
    from deploys import drivers
    from roles.nvidia import apt, operations, want

    want.REPOSITORIES = repositories
    apt.FINGERPRINT = operations.FINGERPRINT = fingerprint
    drivers._with_gpus = whose or drivers._with_gpus


@contextmanager
def gpus(node: Node) -> Iterator[Node]:
    """That node with GPUs; in the end without, and without all that a driver brought."""
    sources = node.root / "etc/apt/sources.list"
    archive, packages = sources.read_text(), _packages(node)
    try:
        sources.write_text(archive.replace(" main\n", " main contrib\n"))
        _write(node)
        node.sudo(f"systemctl daemon-reload && systemctl enable --quiet --now {UNIT}")
        yield node
    finally:
        sources.write_text(archive)
        _remove(node, packages)


def loaded(node: Node) -> str:
    """The version of the module that the last boot loaded."""
    return node.sudo("cat /sys/module/nvidia/version 2>/dev/null || true").strip()


def _write(node: Node) -> None:
    folder = node.root / FOLDER.lstrip("/")
    for address, (vendor, kind) in DEVICES.items():
        device = folder / "bus/pci/devices" / address
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
    (folder / "boot").write_text(_BOOT)
    (folder / "off").write_text(_OFF)
    (node.root / "etc/systemd/system" / UNIT).write_text(_UNIT)


def _remove(node: Node, packages: set[str]) -> None:
    for unit in (PERSISTENCE, FABRIC, *MONITORING, UNIT):
        node.sudo(f"systemctl disable --quiet --now {unit} 2>/dev/null || true")
    node.sudo("dpkg --configure -a")
    if more := sorted(_packages(node) - packages):
        node.sudo(f"apt-get -q -y --allow-change-held-packages purge {' '.join(more)}")
    files = (
        KEY, PREFERENCES, "/etc/apt/sources.list.d/cuda-debian12-*.list", NOUVEAU, str(Path(DROP_IN).parent),
        f"/lib/modules/{KERNEL}", f"/etc/systemd/system/{UNIT}",
    )  # fmt: skip
    node.sudo(f"rm -rf {' '.join(files)} && systemctl daemon-reload")
    shutil.rmtree(node.root / FOLDER.lstrip("/"))


def _packages(node: Node) -> set[str]:
    return {line.split()[0] for line in node.sudo("dpkg-query -W").splitlines()}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """pytest shows what a test prints."""
