"""What a wheelhouse needs for a node that is another machine than this one: pip's words. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from packaging.markers import Environment, Marker, default_environment

#: From the glibc of the oldest wheels there are to that of Ubuntu 22.04 (PEP 600): pip takes what is named.
_GLIBC = range(5, 36)

_OLDER = ("manylinux2014", "manylinux2010", "manylinux1")

_ENTRY = re.compile(r"^(?P<pin>[A-Za-z0-9][\w.-]*==[^\s;\\]+)[ ]*(?:;(?P<marker>[^\\\n]*))?", re.MULTILINE)


def pinned(lock: str, python: str, machine: str) -> str:
    """A lock file's entries for that Python (3.12) on that machine (x86_64), without their markers.

    pip judges markers by the Python that it runs on.
    """
    entries = re.split(r"\n(?=[A-Za-z0-9])", lock)
    return "".join(f"{one}\n" for one in _chosen(entries, _environment(python, machine)))


def _chosen(entries: list[str], environment: Environment) -> Iterator[str]:
    for entry in entries:
        found = _ENTRY.match(entry)
        if found is None:
            continue
        marker = (found["marker"] or "").strip()
        if not marker or Marker(marker).evaluate(environment):
            yield found["pin"] + " " + entry[found.end() :].strip().removeprefix("\\").strip()


def _environment(python: str, machine: str) -> Environment:
    here = default_environment()
    return {
        **here,
        "python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine,
        "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip


def download(requirements: Path, folder: Path, python: str, machine: str) -> list[str]:
    """pip's words that fetch the wheels of a lock, hashes checked; what is there already is not fetched."""
    tag = "cp" + python.replace(".", "")
    names = [*(f"manylinux_2_{minor}" for minor in reversed(_GLIBC)), *_OLDER, "linux"]
    platforms = [f"{name}_{machine}" for name in names]
    return [
        "download", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--disable-pip-version-check",
        "--python-version", python, "--implementation", "cp", "--abi", tag, "--abi", "abi3", "--abi", "none",
        *(word for name in platforms for word in ("--platform", name)),
        "--requirement", str(requirements), "--dest", str(folder),
    ]  # fmt: skip
