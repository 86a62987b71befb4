"""A node's ground: what every other role stands on.

The packages vLLM needs from the system, the unprivileged user that serves, its folders
and limits, and kernel settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import files

from roles.service import CACHE, HOME, USER

from .boot import Boot as Boot
from .boot import Booted as Booted
from .boot import cannot_boot as cannot_boot
from .boot import passed_through as passed_through
from .clocks import clocks as clocks
from .facts import RebootDue as RebootDue
from .operations import kernel_settings, system_packages, system_user
from .operations import lacks as lacks
from .operations import rebooted as rebooted

#: venv for our tools, libnuma and libgomp for vLLM's C extension, g++ and Python's
#: headers for the kernels that Triton and torch inductor compile at start.
PACKAGES = ("ca-certificates", "g++", "libgomp1", "libnuma1", "python3-dev", "python3-venv")

#: NUMA balancing migrates pages under pinned GPU buffers and costs tail latency;
#: the listen backlog is what a burst of clients waits in.
KERNEL = {"kernel.numa_balancing": "0", "net.core.somaxconn": "8192"}

LIMITS = f"""\
# Rackserve: for shells of the serving user; units carry limits of their own.
{USER} - nofile 1048576
{USER} - memlock unlimited
"""


@deploy("Base")
def base(also: Sequence[str] = ()) -> None:
    """Packages, user, folders, limits and kernel settings.

    + also: further packages, for what this host does besides serving
    """
    system_packages(name="Install system packages", packages=(*PACKAGES, *also))
    system_user(name=f"Create the user {USER}", user=USER, home=HOME)
    for path in host.loop((HOME, CACHE)):
        files.directory(name=f"Own {path}", path=path, user=USER, group=USER, mode="755")
    files.put(
        name="Raise the limits of the serving user",
        src=StringIO(LIMITS),
        dest="/etc/security/limits.d/60-rackserve.conf",
        mode="644",
    )
    files.put(
        name="Keep kernel settings over a boot",
        src=StringIO("".join(f"{name} = {value}\n" for name, value in KERNEL.items())),
        dest="/etc/sysctl.d/60-rackserve.conf",
        mode="644",
    )
    kernel_settings(name="Set kernel settings", settings=KERNEL)
