"""What says what a model is, in the place of its weights for the time of a trial."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from pyinfra import host, state
from pyinfra.api import FactBase, QuoteString, StringCommand, operation

from .where import DESCRIBED, ROOT, Description, Staged, path

# Another host that shares the folder may be at it, too.
_UNDESCRIBED = (
    f'for link in {ROOT}/*/*; do case $(readlink "$link") in {DESCRIBED}/*)'
    f' rm -f "$link"; rmdir "$(dirname "$link")" 2>/dev/null ;; esac; done; rm -rf {DESCRIBED}'
)


class Target(FactBase[str]):
    """What a path that leads somewhere is a link to, or itself; "" for one that leads nowhere."""

    def command(self, path: str) -> str:
        path = shlex.quote(path)
        return f"test ! -e {path} || readlink {path} || echo {path}"

    def process(self, output: list[str]) -> str:
        return "".join(output).strip()

    @staticmethod
    def default() -> str:
        return ""


class Described(FactBase[bool]):
    """There are descriptions, or links that lead to one."""

    def command(self) -> str:
        links = f"readlink {ROOT}/*/* 2>/dev/null | grep {DESCRIBED}/"
        return f"test ! -e {DESCRIBED} || echo there; {links} || true"

    def process(self, output: list[str]) -> bool:
        return bool(output)

    @staticmethod
    def default() -> bool:
        return False


def lacking(names: Sequence[str], model: Staged) -> list[str]:
    """Those of the hosts on which nothing is where a model's weights will be, or only its description."""
    hosts = {name: state.inventory.get_host(name) for name in names}
    targets = {name: on.get_fact(Target, path=path(model)) for name, on in hosts.items()}
    return [name for name, target in targets.items() if not target or target.startswith(f"{DESCRIBED}/")]


@operation()
def stood_in(description: Description) -> Iterator[StringCommand]:
    """vLLM finds a model's description where its weights will be, as long as they are not there."""
    link, folder = path(description.model), path(description)
    if host.get_fact(Target, path=link) not in ("", folder):
        host.noop(f"{link} is there")
        return
    # Of hosts that share the folder one comes first.
    script = 'mkdir -p "$(dirname "$1")" && { ln -sfn "$2" "$1" || test -e "$1"; }'
    yield StringCommand("sh", "-c", QuoteString(script), "sh", *map(QuoteString, (link, folder)))


@operation()
def undescribed() -> Iterator[StringCommand]:
    """No description is left, and nothing that stands in for weights."""
    if not host.get_fact(Described):
        host.noop("there is no description")
        return
    yield StringCommand(_UNDESCRIBED)
