"""DOCA-OFED, NVIDIA's modules and libraries for its network cards, in place of the distribution's.

Nothing here loads or unloads a module: the cards may carry the connection. A reboot does (base.RebootDue).
"""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO

from pyinfra import host
from pyinfra.api import StringCommand, deploy, operation
from pyinfra.operations import files

from roles import debian

from .choice import INITRAMFS, KEY, KEY_ID, REPOSITORY, SOURCES, installed
from .choice import Seen as Seen
from .choice import Wanted as Wanted
from .choice import problems as problems
from .choice import wanted as wanted
from .facts import Fingerprints
from .facts import Look as Look


@deploy("OFED")
def ofed(its: Wanted) -> None:
    """A release of DOCA-OFED, installed."""
    key(name="Trust who signs DOCA's packages")
    files.put(name="Take DOCA's packages from NVIDIA", src=StringIO(its.sources), dest=SOURCES, mode="644")
    packages(name=f"Install DOCA-OFED {its.release}", its=its)


@operation()
def key() -> Iterator[StringCommand]:
    """apt has the key."""
    if any(its.endswith(KEY_ID) for its in host.get_fact(Fingerprints)):
        host.noop("apt has the key")
        return
    yield StringCommand(debian.key(f"{REPOSITORY}/GPG-KEY-Mellanox.pub", KEY, KEY_ID))


@operation()
def packages(its: Wanted) -> Iterator[StringCommand]:
    """The release is installed, and the initramfs has it; what was loaded before stays loaded."""
    seen = host.get_fact(Look) or Seen()
    if seen.interrupted:
        yield StringCommand(debian.repaired())
    there = its.is_there(seen)
    if there and not seen.stale:
        host.noop(f"doca-ofed {seen.version} is installed")
        return
    if not there:
        yield StringCommand(debian.refreshed())
        yield StringCommand(debian.patiently(installed(its, seen)))
    yield StringCommand(INITRAMFS)
    host.log("its modules are loaded by a reboot: rackserve rollout --reboot due")
