"""Files as values, and files with secrets in them: never shown by --diff, never readable on the way."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from pyinfra import host
from pyinfra.api import FactBase, QuoteString, StringCommand, operation

#: The content comes by stdin, and lands whole or not at all. $1 path, $2 owner, $3 mode.
_WRITE = " && ".join(
    (
        'mkdir -p "$(dirname "$1")"',
        'umask 077 && cat > "$1.new"',
        'chown "$2" "$1.new" && chmod "$3" "$1.new"',
        'mv "$1.new" "$1"',
    )
)


@dataclass(frozen=True)
class File:
    """A file that a node is to have; `owner` is USER:GROUP. The content of a secret one is shown nowhere."""

    path: str
    content: str = field(repr=False)
    owner: str = "root:root"
    mode: str = "644"
    secret: bool = False


class SecretFile(FactBase[tuple[str, str, str]]):
    """(sha256 of the content, owner:group, mode) of a file, or empty strings."""

    def command(self, path: str) -> str:
        file = shlex.quote(path)
        return f"sha256sum < {file} 2>/dev/null && stat -c '%U:%G %a' {file} || true"

    def process(self, output: list[str]) -> tuple[str, str, str]:
        if len(output) != 2:
            return ("", "", "")
        owner, mode = output[1].split()
        return (output[0].split()[0], owner, mode)

    @staticmethod
    def default() -> tuple[str, str, str]:
        return ("", "", "")


@operation()
def secret(path: str, content: str, owner: str = "root:root", mode: str = "600") -> Iterator:
    """A file of exactly this content, owner and mode; the content is never printed."""
    wanted = (hashlib.sha256(content.encode()).hexdigest(), owner, mode)
    if host.get_fact(SecretFile, path=path) == wanted:
        host.noop(f"{path} is as wanted")
        return
    yield from write_secret(path, content, owner, mode)


def write_secret(
    path: str, content: str, owner: str = "root:root", mode: str = "600"
) -> Iterator[StringCommand]:
    """The command that writes such a file; `content` must end in a newline."""
    words = ("sh", "-c", QuoteString(_WRITE), "sh", QuoteString(path), owner, mode)
    yield StringCommand(*words, _stdin=content)
