"""Folders of any kind, by the way that weights go: wheels, environments, compile caches."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pyinfra import host, state
from pyinfra.api import FactBase, Host, QuoteString, StringCommand, operation

from models.errors import InventoryError
from roles import remote

from .facts import PROGRAMS
from .where import ROOT, path

SCRIPT = f"{PROGRAMS}/tree.py"

#: Where folders are that only the system's packages should write to, or nobody.
KEPT = ("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "run", "sbin", "sys", "usr")


@dataclass(frozen=True)
class Payload:
    """A folder, in place of a model."""

    folder: str
    revision: str = "folder"
    numbers: Mapping[str, Any] = field(default_factory=dict, hash=False)
    ignore: Sequence[str] = ()

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.folder).parts
        if parts[:1] != ("/",) or len(parts) < 3 or ".." in parts:
            raise InventoryError(f"{self.folder}: name a folder by its whole path, and not one of the top")
        if parts[1] in KEPT:
            raise InventoryError(f"{self.folder}: /{parts[1]} is the system's; each host keeps its own")
        if PurePosixPath(self.folder) in (PurePosixPath(ROOT), *PurePosixPath(ROOT).parents):
            raise InventoryError(f"{self.folder} holds the weights: `rackserve stage` is for these")

    @property
    def repository(self) -> str:
        return f"folder{self.folder.rstrip('/')}"


class Tree(FactBase[str]):
    """The digest of what is in a folder; "" when there is none."""

    def command(self, python: str, folder: str) -> str:
        return f"test ! -e {SCRIPT} || {shlex.join((python, SCRIPT, 'digest', folder))}"

    def process(self, output: list[str]) -> str:
        return "".join(output).strip()

    @staticmethod
    def default() -> str:
        return ""


def differing(python: str, payload: Payload, origin: Host, names: Sequence[str]) -> list[str]:
    """The hosts whose folder is not as the origin's; all others where it is not known."""
    wanted = _tree(origin, python, payload)
    trees = {name: _tree(state.inventory.get_host(name), python, payload) for name in names}
    return [name for name, tree in trees.items() if name != origin.name and tree != (wanted or None)]


@operation()
def packed(python: str, payload: Payload) -> Iterator[StringCommand]:
    """The folder of this host, ready to go round."""
    if state.is_executing and not _tree(host, python, payload):
        yield remote.failure(host, f"{payload.folder}: there is no such folder to spread")
        return
    yield _script(python, "pack", payload, _tree(host, python, payload))


@operation()
def unpacked(python: str, payload: Payload, origin: Host) -> Iterator[StringCommand]:
    """The folder as the origin has it, in place of what was here."""
    if _tree(host, python, payload) == _tree(origin, python, payload) != "":
        host.noop(f"{payload.folder} is as on {origin.name}")
        return
    yield _script(python, "unpack", payload, _tree(origin, python, payload))


@operation()
def dropped(python: str, payload: Payload) -> Iterator[StringCommand]:
    """What went round is needed no more."""
    yield _script(python, "drop", payload)


def _tree(on: Host, python: str, payload: Payload) -> str:
    tree: str = on.get_fact(Tree, python=python, folder=payload.folder)
    return tree


def _script(python: str, action: str, payload: Payload, commit: str = "") -> StringCommand:
    words = [python, SCRIPT, action, payload.folder, "--path", path(payload)]
    words += ["--repository", payload.repository] if action == "pack" else []
    words += ["--commit", commit] if commit else []
    return StringCommand(*map(QuoteString, words))
