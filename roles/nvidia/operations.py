"""Operations that bring a driver onto a node; none loads it, and none reboots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from io import StringIO

from pyinfra import host, state
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.api.operation import OperationMeta
from pyinfra.operations import files

from roles import debian, remote
from roles.units.facts import Unit

from . import apt
from .facts import Fingerprints, Initramfs, Look, Offered, Room, Staged
from .problems import no_modules
from .table import FINGERPRINT
from .want import Seen, Wanted


@operation()
def repository(its: Wanted) -> Iterator[StringCommand]:
    """apt knows NVIDIA's repository by its key, and takes the driver from one source alone."""
    if FINGERPRINT not in host.get_fact(Fingerprints):
        yield StringCommand(apt.key(its))
    for path, content in apt.files(its, _seen()).items():
        yield from files.put._inner(src=StringIO(content), dest=path, mode="644")


@operation()
def staged(its: Wanted) -> Iterator[StringCommand]:
    """A driver that waits for what serves here to be out: nothing will be in the way of it then.

    Its packages are here, they can be installed together, and there is room.
    """
    seen = _seen()
    missing = its.missing(seen)
    host.log(
        f"driver {its.pattern} waits until {', '.join(seen.serving)} is out: rackserve rollout --reboot due"
        " installs it then"
    )
    versions = _versions(its, seen, missing)
    if _is_here(its, missing, versions):
        host.noop(f"{its.pattern} is at hand")
    else:
        if seen.interrupted:
            yield StringCommand(debian.repaired())
        yield StringCommand(debian.refreshed())
        versions = _versions(its, seen, missing) if state.is_executing else {}
        if problem := _not_offered(its, seen, versions) or _no_modules(its, seen, missing):
            yield remote.failure(host, problem)
            return
        yield StringCommand(apt.fetched(missing, versions, _pins(its, versions)))
    if state.is_executing and (problem := _no_room(its, missing, versions)):
        yield remote.failure(host, problem)


@operation()
def packages(its: Wanted, staged: bool = False) -> Iterator[StringCommand]:
    """Driver, headers, monitoring; Fabric Manager of the driver's version, whatever is newest.

    What is installed and of the branch stays as it is. Of what a cut connection left, the rest follows.

    + staged: as long as all of it is here, nobody is asked for something newer
    """
    seen = _seen()
    if seen.interrupted:
        yield StringCommand(debian.repaired())
    if not (missing := its.missing(seen)):
        host.noop(f"driver {its.version(seen)} is installed")
        return
    if not (staged and _is_here(its, missing, _versions(its, seen, missing))):
        yield StringCommand(debian.refreshed())
    # A plan does not know them: it has not fetched the lists.
    versions = _versions(its, seen, missing) if state.is_executing else {}
    if problem := _not_offered(its, seen, versions) or _no_modules(its, seen, missing):
        yield remote.failure(host, problem)
        return
    yield StringCommand(debian.patiently(apt.installed(missing, versions, _pins(its, versions))))


def _is_here(its: Wanted, missing: Sequence[str], versions: Mapping[str, str]) -> bool:
    if not all(versions.values()):
        return False
    return host.get_fact(Staged, names=tuple(missing), versions=dict(versions), pins=_pins(its, versions))


def _pins(its: Wanted, versions: Mapping[str, str]) -> str:
    """Parts of a driver name each other's version, and apt would take the newest of those that we do not."""
    release = next((_release(version) for version in versions.values()), "")
    return apt.preferences(its, release) if release else ""


def _not_offered(its: Wanted, seen: Seen, versions: Mapping[str, str]) -> str:
    name = next((name for name, version in versions.items() if not version), "")
    version = its.version(seen) or its.pattern
    return f"{name} {version} is not to be had from {its.source}: apt-cache policy {name}" if name else ""


def _no_modules(its: Wanted, seen: Seen, missing: Sequence[str]) -> str:
    """Of a bare host, whose lists were not fetched, nobody could know it before."""
    names = [name for name in missing if name in its.modules] if state.is_executing else []
    offered = host.get_fact(Offered, names=tuple(names)) if names else {}
    return no_modules(seen, its, [name for name in names if name not in offered])


def _no_room(its: Wanted, missing: Sequence[str], versions: Mapping[str, str]) -> str:
    pins = _pins(its, versions)
    room = host.get_fact(Room, names=tuple(missing), versions=dict(versions), pins=pins)
    if room.free >= room.needed:
        return ""
    return (
        f"the driver needs {room.needed / 2**20:.1f} GiB in /usr and /var, {room.free / 2**20:.1f} GiB are"
        " free there: make room (sudo apt-get autoremove removes kernels that are not used any more)"
    )


def _versions(its: Wanted, seen: Seen, names: Sequence[str]) -> dict[str, str]:
    """Of what must be of one version; "" for what is not to be had in it."""
    exact = [name for name in names if name in its.exact]
    library = its.driver[0]
    offered = host.get_fact(Offered, names=(*exact, library)) if exact else {}
    releases = {  # {package: {release: its newest version of it}}
        name: {_release(version): version for version in reversed(offered.get(name, ()))} for name in exact
    }
    newest = [_release(v) for v in offered.get(library, ()) if fnmatch(v, its.pattern)]
    # Fabric Manager may come later to the repository than the driver: then that waits for it.
    whole = [release for release in newest if all(release in its_own for its_own in releases.values())]
    release = its.version(seen) or next(iter((*whole, *newest)), "")
    return {name: versions.get(release, "") for name, versions in releases.items()}


def _release(version: str) -> str:
    """580.95.05 of 580.95.05-0ubuntu1."""
    return version.rpartition("-")[0]


@operation()
def held(its: Wanted) -> Iterator[StringCommand]:
    """No upgrade replaces what belongs to the driver, by itself or with a kernel that has none."""
    seen = _seen()
    loose = its.loose(seen)
    if not state.is_executing:  # what will have been installed
        loose += [name for name in its.missing(seen) if name in its.holds]
    if not loose:
        host.noop("the driver is held")
        return
    yield StringCommand(apt.held(loose))


@operation()
def built(its: Wanted) -> Iterator[StringCommand]:
    """Nothing, where the kernel that runs has the driver's module; others fail, and say where to look."""
    seen = _seen()
    version = its.version(seen)
    if state.is_executing and (not version or seen.module != version):
        why = f"no nvidia module {version} for kernel {seen.kernel}: {apt.why_not_built(its)}"
        yield remote.failure(host, why)
        return
    host.noop("the running kernel has the module")


@operation()
def initramfs(path: str, changed: Sequence[OperationMeta] = ()) -> Iterator[StringCommand]:
    """It knows a file of /etc/modprobe.d, so that nouveau is not loaded before there is a root.

    + changed: the operations that write it, so that a plan foretells this
    """
    foretold = [op for op in changed if op.will_change] if not state.is_executing else []
    now = host.get_fact(Initramfs, path=path)
    if now == "stale" or (foretold and now != "none"):
        yield StringCommand(apt.initramfs())
        return
    host.noop(f"the initramfs knows {path}")


@operation()
def running(
    units: Sequence[str], drop_ins: Sequence[str] = (), changed: Sequence[OperationMeta] = ()
) -> Iterator[StringCommand]:
    """Units enabled, and started where the installed driver is the loaded one; else the reboot starts them.

    + drop_ins: files of ours that the first of them reads
    """
    seen = _seen()
    foretold = [op for op in changed if op.will_change] if not state.is_executing else []
    now = {unit: host.get_fact(Unit, unit=unit, files=tuple(drop_ins)) for unit in units}
    if foretold or any(its.needs_reload for its in now.values()):
        yield StringCommand("systemctl", "daemon-reload")
    if absent := [unit for unit, its in now.items() if not its.enabled]:
        yield StringCommand("systemctl", "enable", "--quiet", *map(QuoteString, absent))
    down = [unit for unit, its in now.items() if not its.active]
    stale = [units[0]] if drop_ins and (now[units[0]].stale or foretold) else []
    if seen.loaded and seen.loaded == seen.module and (todo := list(dict.fromkeys((*stale, *down)))):
        yield StringCommand("systemctl", "restart", *map(QuoteString, todo))
    elif not absent:
        host.noop(f"{', '.join(units)} are enabled")


@operation()
def loaded() -> Iterator[StringCommand]:
    """Nothing, where a driver is loaded and no other is installed; others fail, and say what loads it."""
    if state.is_executing and (why := _unfit(_seen())):
        yield remote.failure(host, f"{why}, so nothing could start: --data reboot=due reboots for one that is"
                                   " installed; rackserve doctor says more")  # fmt: skip
        return
    host.noop("a driver is loaded")


def _unfit(seen: Seen) -> str:
    if not seen.loaded:
        return "no NVIDIA driver is loaded"
    if seen.module and seen.module != seen.loaded and not seen.serving:
        return f"driver {seen.module} is installed, and {seen.loaded} is loaded"
    return ""


@operation()
def said() -> Iterator[StringCommand]:
    """Nothing; where the installed driver is not the loaded one, what is to be done about it."""
    seen = _seen()
    if seen.module and seen.module != seen.loaded:
        now = f"{seen.loaded or 'none'} is loaded"
        host.log(f"driver {seen.module} is installed, {now}: rackserve rollout --reboot due reboots for it")
    host.noop("said")
    return
    yield


def _seen() -> Seen:
    return host.get_fact(Look) or Seen()
