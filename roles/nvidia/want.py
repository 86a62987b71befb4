"""What a host is to get, of what was seen there. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch

from .table import (
    BRANCHES,
    DRIVER,
    FABRIC,
    MACHINES,
    MONITORING,
    REPOSITORIES,
    ROWS,
    SIGNED,
    SUBNET_MANAGER,
    TOOLKIT,
    USUAL,
    Row,
)

AUTO = "auto"

#: Of which only one source's may be there; the daemons beside them come from either.
_CORE = ("libnvidia-compute*", "libcuda1", "nvidia-driver-*", "nvidia-headless-*", "nvidia-dkms*",
         "nvidia-kernel-*", "nvidia-utils*", *SIGNED)  # fmt: skip


@dataclass(frozen=True)
class Package:
    """A package that is installed."""

    version: str
    held: bool = False

    @property
    def upstream(self) -> str:
        """580.95.05 of 580.95.05-0ubuntu1."""
        return self.version.rpartition("-")[0] or self.version


@dataclass(frozen=True)
class Seen:
    """A host as it is."""

    distribution: str = ""  # `ubuntu 24.04`
    machine: str = "x86_64"
    kernel: str = ""  # the one that runs
    secure_boot: bool = False
    gpus: int = 0
    switches: int = 0
    nvlink5: bool = False
    packages: Mapping[str, Package] = field(default_factory=dict)  # that have to do with it
    loaded: str = ""  # version of the module that is loaded
    module: str = ""  # of the one that would be
    run_file: bool = False  # the driver was installed by NVIDIA's .run file
    sources: tuple[str, ...] = ()  # apt's files that name NVIDIA's repository
    components: tuple[str, ...] = ()  # of the archive that apt knows, besides main and universe
    known: frozenset[str] = frozenset()  # packages for kernels that apt has; none: it is not known
    serving: tuple[str, ...] = ()  # replicas that are up
    interrupted: bool = False  # dpkg was cut off

    @property
    def flavours(self) -> list[str]:
        """Of the kernels' metapackages, as generic-hwe-24.04."""
        names = (
            name.removeprefix("linux-image-") for name in sorted(self.packages) if "linux-image-" in name
        )
        return [name for name in names if not re.match(r"\d|unsigned-|extra-", name)]


def flavour_of(kernel: str) -> str:
    """generic of 6.8.0-31-generic, cloud-amd64 of 6.12.117+deb12-cloud-amd64."""
    return re.sub(r"^\d[\d.]*(\+\w+)?(-\d+)?-", "", kernel)


@dataclass(frozen=True)
class Wanted:
    """What a host gets."""

    source: str
    row: Row
    branch: str
    pattern: str  # of the versions that will do
    folder: str  # NVIDIA's repository
    driver: tuple[str, ...]
    modules: tuple[str, ...]
    fabric: tuple[str, ...] = ()
    subnet_manager: tuple[str, ...] = ()
    monitoring: tuple[str, ...] = ()
    compiler: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()  # packages that are held, too

    @property
    def exact(self) -> tuple[str, ...]:
        """All that must be of one version."""
        return (*self.driver, *self.fabric)

    @property
    def others(self) -> tuple[str, ...]:
        return (*self.modules, *self.subnet_manager, *self.monitoring, *self.compiler)

    @property
    def services(self) -> tuple[str, ...]:
        """Units, besides the persistence daemon's."""
        return (*([FABRIC] if self.fabric else []), *MONITORING)

    def there(self, name: str, seen: Seen) -> bool:
        """That package is installed, in a version that will do."""
        package = seen.packages.get(name)
        return package is not None and (name not in self.exact or fnmatch(package.version, self.pattern))

    def version(self, seen: Seen) -> str:
        """Of the driver that is installed and will do."""
        library = self.driver[0]
        return seen.packages[library].upstream if self.there(library, seen) else ""

    def missing(self, seen: Seen) -> list[str]:
        """What has to be installed; Fabric Manager of another version than the driver is as good as none."""
        version = self.version(seen)
        return [
            name
            for name in (*self.exact, *self.others)
            if not self.there(name, seen)
            or (version and name in self.exact and seen.packages[name].upstream != version)
        ]

    def changes(self, seen: Seen) -> bool:
        """Something of the driver would be installed or replaced, and new processes would use it."""
        signed = self.modules if self.row.holds_kernel else ()
        return any(name in self.exact or name in signed for name in self.missing(seen))

    def waits(self, seen: Seen) -> bool:
        """The driver is to change under a replica that is up: a process that it starts then would fail."""
        return bool(seen.serving) and self.changes(seen)

    def loose(self, seen: Seen) -> list[str]:
        """What is installed and an upgrade could still replace."""
        return sorted(
            name
            for name, package in seen.packages.items()
            if not package.held and (_is_drivers(name, package, self.branch) or name in self.holds)
        )

    @property
    def holds(self) -> tuple[str, ...]:
        """What is held, besides what else is of the driver's."""
        return (*self.kernels, *self.exact, *self.monitoring)


def wanted(seen: Seen, driver: str, source: str) -> Wanted:
    """What that host gets; only where there are no `problems`."""
    chosen, driver = chosen_of(seen, source), usual(driver)
    row, branch = rows_of(seen)[chosen], branch_of(driver)
    words = {"branch": branch, "kernel": seen.kernel, "cuda": BRANCHES[branch], "toolkit": TOOLKIT}
    fabric = seen.switches or seen.nvlink5
    flavours = seen.flavours if row.flavour else []
    return Wanted(
        source=chosen,
        row=row,
        branch=branch,
        pattern=f"{driver}.*" if driver == branch else f"{driver}-*",
        folder=f"{REPOSITORIES}/{row.repository}/{MACHINES[seen.machine]}",
        driver=tuple(name.format(**words) for name in row.driver[branch]),
        modules=(
            *(name.format(**words) for name in row.modules),
            *(row.flavour.format(**words, flavour=flavour) for flavour in flavours),
        ),
        fabric=(row.fabric.format(**words),) if fabric else (),
        subnet_manager=SUBNET_MANAGER if seen.nvlink5 else (),
        monitoring=tuple(name.format(**words) for name in row.monitoring),
        compiler=tuple(name.format(**words) for name in row.compiler),
        kernels=tuple(_kernels(seen)) if row.holds_kernel else (),
    )


def sources_file(row: Row | None, seen: Seen) -> str:
    """Where apt is told of NVIDIA's repository: the file of NVIDIA's own package cuda-keyring."""
    machine = MACHINES.get(seen.machine, seen.machine)
    return f"/etc/apt/sources.list.d/cuda-{row.repository}-{machine}.list" if row else ""


def rows_of(seen: Seen) -> Mapping[str, Row]:
    name, _, number = seen.distribution.partition(" ")
    return ROWS.get(seen.distribution) or ROWS.get(f"{name} {number.partition('.')[0]}", {})


def usual(driver: str) -> str:
    return USUAL if driver == AUTO else driver


def branch_of(driver: str) -> str:
    return driver.partition(".")[0]


def chosen_of(seen: Seen, source: str) -> str:
    """Unless it is asked for: what is there already, or what this host can load."""
    if source != "auto":
        return source
    there = set(origins_of(seen).values())
    if len(there) == 1 and there <= set(rows_of(seen)):
        return there.pop()
    return "ubuntu" if seen.secure_boot and "ubuntu" in rows_of(seen) else "nvidia"


def origins_of(seen: Seen) -> dict[str, str]:
    """{package of the driver: who built it}, of what is installed."""
    return {
        name: _origin(name, package.version)
        for name, package in seen.packages.items()
        if any(fnmatch(name, glob) for glob in _CORE)
    }


def _origin(name: str, version: str) -> str:
    """Updates of a released Ubuntu or Debian name it; its server packages and modules only Ubuntu has."""
    if re.search(r"ubuntu\d+\.\d\d\.\d\d", version) or "-server" in name or name.startswith("linux-"):
        return "ubuntu"
    return "debian" if "~deb" in version else "nvidia"


def named(source: str) -> str:
    return {"nvidia": "NVIDIA"}.get(source, source.capitalize())


def _is_drivers(name: str, package: Package, branch: str) -> bool:
    globs = (*SIGNED, *(DRIVER if package.version.startswith(f"{branch}.") else ()))
    return any(fnmatch(name, glob) for glob in globs)


def _kernels(seen: Seen) -> Iterator[str]:
    for flavour in seen.flavours:
        yield from (f"linux-{flavour}", f"linux-image-{flavour}", f"linux-headers-{flavour}")
