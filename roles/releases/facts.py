"""What of releases is on a node, and what ran when."""

from __future__ import annotations

import json
import shlex
from typing import Any

from pyinfra.api import FactBase

from models.release import TRIAL

INSTALLED = "/opt/rackserve/libexec/release.py"
KEPT = "/etc/rackserve/releases"
HISTORY = "/var/log/rackserve/history.jsonl"


class Kept(FactBase["dict[str, dict[str, Any]]"]):
    """{replica: what release.py's `look` says of it on this host}; of a trial nothing is gone back to."""

    def command(self) -> str:
        return f"test ! -e {INSTALLED} || python3 {INSTALLED} look"

    def process(self, output: list[str]) -> dict[str, dict[str, Any]]:
        seen: dict[str, dict[str, Any]] = json.loads("".join(output) or "{}")
        return {name: its for name, its in seen.items() if not name.startswith(TRIAL)}

    @staticmethod
    def default() -> dict[str, dict[str, Any]]:
        return {}


class Trials(FactBase[list[str]]):
    """Folders of releases that are kept of trials."""

    def command(self) -> str:
        return f"ls -d {KEPT}/{TRIAL}* 2>/dev/null || true"

    def process(self, output: list[str]) -> list[str]:
        return output

    @staticmethod
    def default() -> list[str]:
        return []


class InPlace(FactBase["dict[str, str]"]):
    """{path: content} of a replica's files that hold no secret."""

    def command(self, replica: str) -> str:
        return f"test ! -e {INSTALLED} || python3 {INSTALLED} show {shlex.quote(replica)}"

    def process(self, output: list[str]) -> dict[str, str]:
        files: dict[str, str] = json.loads("".join(output) or "{}")
        return files

    @staticmethod
    def default() -> dict[str, str]:
        return {}


class History(FactBase["list[dict[str, Any]]"]):
    """What changed what is served, the oldest first: a run's `Entry`, and how it ended."""

    def command(self, last: int) -> str:
        return f"tail -n {last} {HISTORY} 2>/dev/null || true"

    def process(self, output: list[str]) -> list[dict[str, Any]]:
        runs: dict[str, dict[str, Any]] = {}
        for line in output:
            try:
                said = json.loads(line)
            except ValueError:
                continue  # of a host that lost its power
            if isinstance(said, dict) and "run" in said:
                runs.setdefault(said["run"], {}).update(said)
        return [run for run in runs.values() if "replicas" in run]

    @staticmethod
    def default() -> list[dict[str, Any]]:
        return []
