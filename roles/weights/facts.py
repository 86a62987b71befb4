"""What of a model is on a node."""

from __future__ import annotations

import json
import shlex
from pathlib import PurePosixPath

from pyinfra.api import FactBase

INSTALLED = "/opt/rackserve/libexec/stage.py"


class Commit(FactBase[str]):
    """The commit that this host recorded for the revision of a model's path."""

    def command(self, path: str) -> str:
        link = PurePosixPath(path)
        return f"cat {shlex.quote(str(link.parent / 'commits' / link.name))} 2>/dev/null || true"

    def process(self, output: list[str]) -> str:
        return "".join(output).strip()

    @staticmethod
    def default() -> str:
        return ""


class Snapshot(FactBase["str | None"]):
    """Why that commit is not in place at a path; None when it is, whole and unchanged."""

    def command(self, python: str, path: str, commit: str) -> str:
        words = (python, INSTALLED, "status", "--path", path, "--commit", commit)
        return f"test ! -e {python} -o ! -e {INSTALLED} || {shlex.join(words)}"

    def process(self, output: list[str]) -> str | None:
        return json.loads("".join(output))["problem"]

    @staticmethod
    def default() -> str:
        return "not staged yet"


class FolderProblem(FactBase[str]):
    """What is wrong with a folder as this model; empty when nothing is."""

    def command(self, python: str, folder: str, expected: str) -> str:
        words = (python, INSTALLED, "folder", "--path", folder, "--expected", expected)
        return f"{shlex.join(words)} 2>&1 || true"

    def process(self, output: list[str]) -> str:
        return " ".join(output)

    @staticmethod
    def default() -> str:
        return ""
