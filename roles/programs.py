"""A folder of programs that run on the node, side by side as they import each other."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pyinfra import host
from pyinfra.api import FactBase, FileUploadCommand, QuoteString, StringCommand, operation


class Programs(FactBase["dict[str, str]"]):
    """{name: sha256} of what is installed in a folder."""

    def command(self, folder: str) -> str:
        return f"sha256sum {shlex.quote(folder)}/*.py 2>/dev/null || true"

    def process(self, output: list[str]) -> dict[str, str]:
        return {PurePosixPath(path).name: digest for digest, path in map(str.split, output)}

    @staticmethod
    def default() -> dict[str, str]:
        return {}


@operation()
def installed(source: Path, folder: str) -> Iterator[StringCommand | FileUploadCommand]:
    """The programs of `source`, and no others. What runs goes on with those that it began with."""
    there = host.get_fact(Programs, folder=folder)
    ours = {path.name: path for path in sorted(source.glob("*.py"))}
    differing = [name for name, path in ours.items() if there.get(name) != _sha256(path)]
    strays = sorted(there.keys() - ours.keys())
    if not differing and not strays:
        host.noop(f"{folder} is as it should be")
        return
    host.log(f"{folder}: {', '.join((*differing, *strays))}")
    yield StringCommand("mkdir", "-p", folder)
    for name in differing:
        yield FileUploadCommand(str(ours[name]), f"{folder}/{name}")
    for name in strays:
        yield StringCommand("rm", QuoteString(f"{folder}/{name}"))
    yield StringCommand("chmod", "-R", "u=rwX,go=rX", folder)


@operation()
def removed(folder: str) -> Iterator[StringCommand]:
    """The node without them."""
    if not host.get_fact(Programs, folder=folder):
        host.noop(f"{folder} is not there")
        return
    yield StringCommand("rm", "-rf", folder)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
