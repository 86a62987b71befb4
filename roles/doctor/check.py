"""What a check is, and what it says of a host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["fail", "warn", "unknown", "pass"]

#: Worst first.
STATUSES: tuple[Status, ...] = ("fail", "warn", "unknown", "pass")


@dataclass(frozen=True)
class Verdict:
    """What a check found, and how to mend it where that is not what its row says."""

    status: Status
    evidence: str
    fix: str = ""


class Unclear(Exception):
    """What a check needs to know could not be read; says what."""


def passed(evidence: str) -> Verdict:
    return Verdict("pass", evidence)


def failed(evidence: str, fix: str = "") -> Verdict:
    return Verdict("fail", evidence, fix)


def warned(evidence: str, fix: str = "") -> Verdict:
    return Verdict("warn", evidence, fix)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """A replica of several GPUs: what reduces together, and where it meets."""

    replica: str
    slot: int  # replicas of the same slot have no host in common
    hosts: Sequence[str]  # in the order of their ranks
    address: str  # of the first
    port: int
    gpus: int  # on each
    backend: str  # nccl or gloo


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the inventory and its plan say of a host."""

    address: str
    interface: str | None = None
    gpus: int = 0
    gpu: str | None = None
    cuda: str = ""  # that vLLM's environment brings
    environment: str = ""
    ports: Sequence[tuple[int, int]] = ()  # from, to
    weights: str = ""
    weights_bytes: int = 0
    peers: Mapping[str, str] = field(default_factory=dict)  # {name: address} of hosts to say hello to
    replicas: Sequence[str] = ()
    nccl: str = ""  # what is to be in /etc/nccl.conf, as the node is now
    no_nccl: str = ""  # or why nothing can be
    plan: str = ""  # of the whole cluster; said once, of its control host
    no_plan: str = ""  # or why there is none
    loads: int = 0  # bytes of the weights that are read here when a replica starts
    ranks: Sequence[Ranks] = ()  # it is among
    reaches: Mapping[str, Sequence[int]] = field(default_factory=dict)  # {host: its ports} for serving
    listens: Sequence[int] = ()  # those of its own that others must reach
    environment_of: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # {replica: its ranks'}
    names_hcas: bool = False  # the inventory does, not only /etc/nccl.conf

    @property
    def needs_gpus(self) -> bool:
        return self.gpus > 0 and self.gpu != "cpu"


@dataclass(frozen=True, kw_only=True)
class Host:
    """One host: what is expected of it and what was seen there (node/look.py)."""

    name: str
    expected: Expected
    seen: Mapping[str, Any] | None = None
    lacks: str = ""  # why nothing was seen
    offset: float = 0.0  # seconds that its clock is away from ours, beyond what asking took
    measured: Mapping[str, Any] | None = None  # by --deep, see measure.py

    def get(self, key: str) -> Any:
        """What was seen; Unclear when that could not be read."""
        value = (self.seen or {}).get(key)
        if value is None:
            raise Unclear(f"{key} could not be read")
        return value

    def measure(self, key: str) -> Any:
        """What was measured; Unclear says why it was not."""
        value = (self.measured or {}).get(key)
        if value is None:
            raise Unclear("it was not measured")
        if "error" in value:
            raise Unclear(value["error"])
        return value


Judge = Callable[[Host], "Verdict | None"]
JudgeAcross = Callable[[Sequence[Host]], "Mapping[str, Verdict]"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the registry; `fix` may name {host}, {address} and {interface}."""

    id: str
    title: str
    looks_at: str
    fix: str
    reference: str
    judge: Callable[..., Any]
    across: bool = False
    gpus_only: bool = False
    deep: bool = False  # it judges what only --deep measures


#: Every check there is, by id.
CHECKS: dict[str, Check] = {}


def check(id: str, title: str, **row: Any) -> Callable[[Judge], Judge]:
    """Put a function of one host into the registry; None from it: does not apply there."""

    def register(judge: Judge) -> Judge:
        assert id not in CHECKS, id
        CHECKS[id] = Check(id=id, title=title, judge=judge, **row)
        return judge

    return register


def check_across(id: str, title: str, **row: Any) -> Callable[[JudgeAcross], JudgeAcross]:
    """The same of a function of all hosts that were seen: {host: verdict} of those it speaks of."""
    return check(id, title, across=True, **row)  # type: ignore[return-value]
