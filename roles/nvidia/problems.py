"""What keeps a host from getting the driver that is wanted; or that it is to be left alone. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from .table import BRANCHES, MACHINES, ROWS, USUAL, Row
from .want import (
    AUTO,
    Seen,
    Wanted,
    branch_of,
    chosen_of,
    flavour_of,
    named,
    origins_of,
    rows_of,
    sources_file,
    usual,
    wanted,
)

LEAVE = "driver=False leaves the driver of the host to you"

_PURGE = "sudo apt-get purge 'nvidia-*' 'libnvidia-*' 'linux-modules-nvidia-*', and reboot"


def yours(seen: Seen, driver: str, source: str) -> bool:
    """A driver is loaded that the table would not have installed, and the inventory asks for none (auto)."""
    if driver != AUTO or not seen.loaded:
        return False
    rows = rows_of(seen)
    if not rows or seen.machine not in MACHINES:
        return True
    if source not in ("auto", *rows):
        return False
    return any(_there(seen, USUAL, source)) or not wanted(seen, driver, source).version(seen)


def problems(seen: Seen, driver: str, source: str, promised: int, reboots: bool = False) -> list[str]:
    """What keeps a host from getting that driver, each with its fix; nothing has been changed.

    + reboots: the run may reboot the host, while what serves there is out
    """
    found = [*absent(seen, promised), *_machine(seen)]
    if yours(seen, driver, source):
        return found
    driver, rows = usual(driver), rows_of(seen)
    if not rows:
        known = ", ".join(ROWS)
        found.append(f"{seen.distribution or 'a distribution'} is not one of {known}; {LEAVE}")
        return found
    found += [*_asked(seen, rows, driver, source), *_there(seen, driver, source)]
    if not found:
        its = wanted(seen, driver, source)
        found += [*(_archive(seen, its) or _kernels(seen, its)), *([] if reboots else _served(seen, its))]
    return found


def absent(seen: Seen, promised: int) -> list[str]:
    """GPUs that the inventory promises and the host does not have, whosever its driver is."""
    if seen.gpus >= promised:
        return []
    return [
        f"{promised} GPUs promised, {seen.gpus} on the PCI bus: correct `gpus` in the inventory, or look"
        " for the GPU: sudo dmesg | grep -i pci"
    ]


def _machine(seen: Seen) -> Iterator[str]:
    if seen.machine not in MACHINES:
        yield f"{seen.machine}: NVIDIA has drivers for {' and '.join(MACHINES)} only; {LEAVE}"


def _asked(seen: Seen, rows: Mapping[str, Row], driver: str, source: str) -> Iterator[str]:
    if branch_of(driver) not in BRANCHES:
        yield f"driver is {driver}: must be of branch {' or '.join(BRANCHES)}"
    if source not in ("auto", *rows):
        yield f"{seen.distribution} has no driver from {source}: driver_source can be {' or '.join(rows)}"
    elif source == "auto" and seen.secure_boot and not origins_of(seen) and "ubuntu" not in rows:
        yield (
            f"Secure Boot is on, and {seen.distribution} has no signed driver: turn it off, or enroll DKMS's"
            " key (sudo mokutil --import /var/lib/dkms/mok.pub) and say driver_source=nvidia"
        )


def _there(seen: Seen, driver: str, source: str) -> Iterator[str]:
    """What is installed already and stands in the way."""
    if seen.run_file:
        yield f"its driver is from NVIDIA's .run file: remove it (sudo nvidia-uninstall); {LEAVE}"
    origins, chosen = origins_of(seen), chosen_of(seen, source)
    if foreign := sorted(name for name, of in origins.items() if of != chosen):
        said = ", ".join(f"{name} from {named(origins[name])}" for name in foreign[:3])
        yield f"the driver is to come from {named(chosen)} alone, and there is {said}: {_PURGE}; {LEAVE}"
    desktop = [name for name in origins if "-server" not in name and not name.startswith("linux-")]
    if chosen == "ubuntu" and desktop and not foreign:
        yield f"{min(desktop)} is of Ubuntu's desktop driver, not of its server's: {_PURGE}; {LEAVE}"
    branches = {branch_of(seen.packages[name].version) for name in origins if not name.startswith("linux-")}
    if newer := max((branch for branch in branches if branch > branch_of(driver)), default=""):
        yield f"driver {newer} is installed, {driver} is older: set driver={newer}, or purge it; {LEAVE}"
    ours = sources_file(rows_of(seen).get(chosen), seen)
    if others := [file for file in seen.sources if file != ours]:
        yield (
            f"{', '.join(others)} names NVIDIA's repository, too, which apt refuses to read with two keys:"
            f" remove it; it is written to {ours}"
        )


def _archive(seen: Seen, its: Wanted) -> list[str]:
    unknown = [component for component in its.row.components if component not in seen.components]
    if not unknown or not its.missing(seen):
        return []
    return [
        f"apt does not know {' and '.join(unknown)} of {seen.distribution}, from which something comes: "
        + " && ".join(f"sudo add-apt-repository {component}" for component in unknown)
    ]


def _kernels(seen: Seen, its: Wanted) -> list[str]:
    """What its kernels need, and the archive has for others of their kind only.

    Where it has it for none, as of a kernel of one's own, another repository may: that shows later.
    """
    absent = [name for name in its.modules if not its.there(name, seen) and name not in seen.known]
    versions, flavours = _known(seen, its)
    beside = {name: versions if name.endswith(f"-{seen.kernel}") else flavours for name in absent}
    return [no_modules(seen, its, absent)] if any(beside.values()) else []


def no_modules(seen: Seen, its: Wanted, absent: Sequence[str]) -> str:
    """What to do on a host for whose kernels these packages are not to be had; "" where there are none."""
    _, flavours = _known(seen, its)
    stem = _stem(seen, its)
    for flavour in seen.flavours:
        if f"{stem}{flavour}" in absent:
            said = f"no {stem}{flavour} to be had" + (f", but for {', '.join(flavours)}" if flavours else "")
            usual = (re.sub("^[a-z]+", "generic", flavour), "generic", "amd64", "arm64")
            other = next((one for one in usual if one in flavours), "FLAVOUR")
            return (
                f"{said}: take a kernel of another flavour first: sudo apt-get update; sudo apt-get install"
                f" linux-image-{other} linux-headers-{other}; sudo apt-get purge linux-image-{flavour};"
                " sudo reboot"
            )
    if not absent:
        return ""
    how = "sudo apt-get update; sudo apt-get dist-upgrade; sudo reboot"
    return f"no {absent[0]} to be had: upgrade the kernel and reboot first: {how}"


def _known(seen: Seen, its: Wanted) -> tuple[list[str], list[str]]:
    """Kernels of the running one's flavour, and flavours, for which apt has what this host's own need."""
    stem = _stem(seen, its)
    kinds = sorted(name.removeprefix(stem) for name in seen.known if name.startswith(stem))
    kernels = [kind for kind in kinds if kind[0].isdigit() and flavour_of(kind) == flavour_of(seen.kernel)]
    return kernels, [kind for kind in kinds if not kind[0].isdigit()]


def _stem(seen: Seen, its: Wanted) -> str:
    """What the names of its packages for a kernel begin with, before the kernel or the flavour."""
    return its.modules[0].removesuffix(seen.kernel)


def _served(seen: Seen, its: Wanted) -> Iterator[str]:
    if its.waits(seen):
        yield (
            f"{', '.join(seen.serving)} serves with driver {seen.loaded or 'unknown'}; {its.pattern} from"
            f" {named(its.source)} is installed only while it is out, for then nothing new could start:"
            f" rackserve rollout --reboot due; {LEAVE}"
        )
