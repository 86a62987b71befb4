"""The processes of a replica on one of its nodes, told apart by what they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from tests.lab.node import Node

#: Runs on the node; of each process a line for parsed().
_LIST = (
    "cd /proc; for pid in [0-9]*; do"
    " unit=$(grep -o -m 1 rackserve-{replica}-[a-z]*.service $pid/cgroup 2>/dev/null) || continue;"
    ' printf "%s %s %s\\n" $pid $unit "$(tr "\\0\\n" "\\t " < $pid/cmdline)"; done'
)

ENGINE = "vllm: VLLM::EngineCore"

#: Names of programs that say nothing without their folder's.
_PLAIN = {"agent.py", "main.py", "default_worker.py"}


@dataclass(frozen=True)
class Process:
    """`part` is its unit's: gang, ray, vllm; `name` what it is."""

    pid: int
    part: str
    name: str


def processes(node: Node, replica: str) -> list[Process]:
    return list(parsed(node.sudo(_LIST.format(replica=replica)), replica))


def parsed(listed: str, replica: str) -> Iterator[Process]:
    """Of lines `PID UNIT WORD<tab>WORD...`; kernel threads and the dying have no words."""
    for line in listed.splitlines():
        pid, unit, *rest = line.split(" ", 2)
        if words := [word for word in "".join(rest).split("\t") if word.strip()]:
            part = unit.removeprefix(f"rackserve-{replica}-").removesuffix(".service")
            yield Process(int(pid), part, named(words))


def named(words: Sequence[str]) -> str:
    """What a command line runs: a title that it gave itself, a module, a program."""
    if "::" in words[0]:
        return words[0].split(".")[0].split()[0]
    for before, word in zip(["", *words], words, strict=False):
        if before == "-m":
            return word
        if before == "-c":  # Python's own helpers, told the number of a pipe
            return word.removeprefix("from ").split()[0]
        path = PurePath(word)
        if not word.startswith("-") and not path.name.startswith(("python", "env")):
            return "/".join(path.parts[-2:]) if path.name in _PLAIN else path.name
    return PurePath(words[0]).name


def kinds(found: Sequence[Process]) -> list[str]:
    """One name for each kind, in order."""
    return list(dict.fromkeys(f"{one.part}: {one.name}" for one in found))


def pid_of(node: Node, replica: str, kind: str) -> int | None:
    """The first of that kind now."""
    found = processes(node, replica)
    return next((one.pid for one in found if kinds([one]) == [kind]), None)
