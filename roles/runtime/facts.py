"""What is installed in a Python environment."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path, PurePosixPath
from typing import Any

from pyinfra.api import FactBase

SCRIPT = Path(__file__).with_name("look.py").read_text()


class Distributions(FactBase[dict[str, str]]):
    """{normalized name: version} of what is installed in a virtual environment."""

    def command(self, path: str) -> str:
        # INSTALLER is what pip and uv write last: a package without one is half there.
        packages = f"{shlex.quote(path)}/lib/python3*/site-packages"
        file = "-path '*.dist-info/INSTALLER' -printf '%h\\n'"
        return f"find {packages} -mindepth 2 -maxdepth 2 {file} 2>/dev/null || true"

    def process(self, output: list[str]) -> dict[str, str]:
        installed = (PurePosixPath(line).name.removesuffix(".dist-info").rsplit("-", 1) for line in output)
        return {normalized(name): version for name, version in installed}

    @staticmethod
    def default() -> dict[str, str]:
        return {}


class Environments(FactBase["list[dict[str, Any]]"]):
    """vLLM's environments on a node, and what unpacked to one: path, bytes, and what uses it."""

    def command(self) -> str:
        return f"python3 -c {shlex.quote(SCRIPT)}"

    def process(self, output: list[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads("".join(output) or "[]")
        return found

    @staticmethod
    def default() -> list[dict[str, Any]]:
        return []


def normalized(name: str) -> str:
    """A distribution's name as all its spellings compare (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
