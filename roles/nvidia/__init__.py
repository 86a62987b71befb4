"""NVIDIA's driver, from the installer's system to one that serves, but for the reboot that loads it.

Open kernel modules, of one branch and from one source; Fabric Manager where NVSwitches were found;
persistence, DCGM and its exporter. Nothing here loads or unloads a module.
"""

from __future__ import annotations

from io import StringIO

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import files

from .facts import Look as Look
from .operations import built, held, initramfs, packages, repository, running, said, staged
from .operations import loaded as loaded
from .problems import absent as absent
from .problems import problems as problems
from .problems import yours as yours
from .table import PERSISTENCE
from .want import Seen as Seen
from .want import Wanted as Wanted
from .want import wanted as wanted

NOUVEAU = "/etc/modprobe.d/rackserve-nouveau.conf"
BLACKLIST = "# Rackserve: it would hold the GPUs.\nblacklist nouveau\noptions nouveau modeset=0\n"

DROP_IN = f"/etc/systemd/system/{PERSISTENCE}.d/rackserve.conf"
PERSISTENT = """\
# Rackserve: Ubuntu's unit keeps no GPU initialised, and is started by udev only.
[Unit]
StopWhenUnneeded=no

[Service]
ExecStart=
ExecStart=/usr/bin/nvidia-persistenced --persistence-mode --verbose

[Install]
WantedBy=multi-user.target
"""

MODULES = "/etc/modules-load.d/rackserve-nvlink.conf"
NVLINK = "# Rackserve: the NVLink subnet manager speaks through it.\nib_umad\n"


@deploy("NVIDIA")
def ahead(its: Wanted) -> None:
    """All but the driver itself, where a replica is up that the new one would keep from starting anew."""
    repository(name="Take the driver from one source", its=its)
    staged(name="Have the driver at hand", its=its)


@deploy("NVIDIA")
def driver(its: Wanted, staged: bool = False) -> None:
    """The driver installed, held, and its services there; loaded it is by a reboot.

    + staged: it is what `ahead` has brought
    """
    repository(name="Take the driver from one source", its=its)
    off = files.put(name="Keep nouveau off", src=StringIO(BLACKLIST), dest=NOUVEAU, mode="644")
    packages(name="Install the driver", its=its, staged=staged)
    held(name="Hold the driver", its=its)
    built(name="The kernel has its module", its=its)
    initramfs(name="Tell the initramfs of it", path=NOUVEAU, changed=[off])
    for path in host.loop([MODULES] if its.subnet_manager else []):
        files.put(name="Load what NVLink needs", src=StringIO(NVLINK), dest=path, mode="644")
    on = files.put(name="Keep the GPUs initialised", src=StringIO(PERSISTENT), dest=DROP_IN, mode="644")
    running(name="Enable persistence", units=[PERSISTENCE], drop_ins=[DROP_IN], changed=[on])
    running(name="Enable its services", units=its.services)
    said(name="Say whether a reboot is due for it")
