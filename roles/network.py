"""Which interface of a node has its cluster address."""

from __future__ import annotations

import shlex

from pyinfra.api import FactBase


class Interface(FactBase[str]):
    """The name of the interface that has an address, or the empty string."""

    def command(self, address: str) -> str:
        return f"ip -oneline address show to {shlex.quote(address)}"

    def process(self, output: list[str]) -> str:
        # 2: host0    inet 10.0.0.11/24 brd ...
        return output[0].split()[1] if output else ""

    @staticmethod
    def default() -> str:
        return ""
