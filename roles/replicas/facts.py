"""What of replicas is on a node."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from pyinfra.api import FactBase

from roles.service import HOME

SCRIPT = Path(__file__).with_name("look.py").read_text()


class ReplicaFolders(FactBase[list[str]]):
    """Every folder that belongs to a replica or a gateway, of this plan or an earlier one."""

    def command(self) -> str:
        places = f"/etc/rackserve {HOME}"
        names = "'(' -name '*replica-*' -o -name gateway ')'"
        return f"find {places} -maxdepth 1 -type d {names} 2>/dev/null || true"

    def process(self, output: list[str]) -> list[str]:
        return sorted(output)

    @staticmethod
    def default() -> list[str]:
        return []


class Units(FactBase[list[dict[str, Any]]]):
    """Each unit of a replica on this host: its state, and its endpoint if it has one."""

    def command(self) -> str:
        return f"python3 -c {shlex.quote(SCRIPT)}"

    def process(self, output: list[str]) -> list[dict[str, Any]]:
        return json.loads("".join(output))

    @staticmethod
    def default() -> list[dict[str, Any]]:
        return []


class Journal(FactBase[list[str]]):
    """The last lines of the journals of our units on this host."""

    def command(self, pattern: str, lines: int) -> str:
        unit = shlex.quote(pattern)
        return f"journalctl --no-pager --output=short-iso --unit={unit} --lines={lines} || true"

    def process(self, output: list[str]) -> list[str]:
        return output

    @staticmethod
    def default() -> list[str]:
        return []
