"""What the doctor asks of a node."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyinfra.api import FactBase

NODE = Path(__file__).with_name("node")

#: In the order in which they import each other.
MODULES = ("reading", "network", "hardware", "system")

#: Makes modules of sources, for a node on which nothing is installed.
_BEGIN = """\
import json, sys, types
for name, source in json.loads({sources!r}).items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), vars(module))
"""


def program(main: str = "look", imports: Sequence[str] = MODULES) -> str:
    """A program of node/ and what it imports, as one script."""
    sources = {name: (NODE / f"{name}.py").read_text() for name in imports}
    return _BEGIN.format(sources=json.dumps(sources)) + (NODE / f"{main}.py").read_text()


class Look(FactBase["dict[str, Any] | None"]):
    """All that the checks look at on a host, in one round; None when it could not be asked."""

    def command(self, asked: str) -> str:
        return f"python3 -I -c {shlex.quote(program())} {shlex.quote(asked)}"

    def process(self, output: list[str]) -> dict[str, Any] | None:
        # Before it may stand what the host says to everyone who logs in.
        with suppress(ValueError, IndexError):
            seen = json.loads(output[-1])
            return seen if isinstance(seen, dict) else None
        return None

    @staticmethod
    def default() -> None:
        return None
