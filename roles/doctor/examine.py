"""All checks on all hosts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from . import checks  # noqa: F401  (fills the registry)
from .check import CHECKS, STATUSES, Check, Host, Status, Unclear, Verdict

#: What a check raises of output that is not as it knows it.
ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class Finding:
    """What one check says of one host."""

    host: str
    id: str
    title: str
    status: Status
    evidence: str
    fix: str
    reference: str

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def examine(hosts: Sequence[Host]) -> list[Finding]:
    """The findings, worst first, by check and in the hosts' order."""
    found = [finding for check in _checks() for finding in _findings(check, hosts)]
    return sorted(found, key=lambda finding: STATUSES.index(finding.status))


def _checks() -> list[Check]:
    return sorted(CHECKS.values(), key=lambda check: check.id)


def registry() -> list[dict[str, Any]]:
    """Every check: what `rackserve doctor --list` shows."""
    return [
        {
            "id": one.id, "title": one.title, "looks_at": one.looks_at,
            "fix": one.fix.replace("{{", "{").replace("}}", "}"), "reference": one.reference,
            "deep": one.deep,
        }
        for one in _checks()
    ]  # fmt: skip


def _findings(check: Check, hosts: Sequence[Host]) -> Iterator[Finding]:
    of = [host for host in hosts if host.expected.needs_gpus or not check.gpus_only]
    if check.id != "host.reach":
        of = [host for host in of if host.seen is not None]
    if check.deep:
        of = [host for host in of if host.measured is not None]
    if check.across:
        verdicts = judged_across(check, of)
        yield from (_finding(check, host, verdicts[host.name]) for host in of if host.name in verdicts)
        return
    for host in of:
        verdict = judged(check, host)
        if verdict is not None:
            yield _finding(check, host, verdict)


def judged(check: Check, host: Host) -> Verdict | None:
    """A check's verdict; unknown when what it looks at was not there or not as it knows it."""
    try:
        verdict: Verdict | None = check.judge(host)
    except Unclear as unclear:
        return Verdict("unknown", str(unclear))
    except ODD as error:
        return _odd(error)
    return verdict


def judged_across(check: Check, hosts: Sequence[Host]) -> Mapping[str, Verdict]:
    """The same of a check of all hosts; what it does not understand of one it says of all."""
    try:
        verdicts: Mapping[str, Verdict] = check.judge(hosts)
    except ODD as error:
        return {host.name: _odd(error) for host in hosts}
    return verdicts


def _odd(error: Exception) -> Verdict:
    return Verdict("unknown", f"not understood: {type(error).__name__}: {error}"[:160])


def _finding(check: Check, host: Host, verdict: Verdict) -> Finding:
    fix = "" if verdict.status == "pass" else _filled(verdict.fix or check.fix, host)
    return Finding(host.name, check.id, check.title, verdict.status, verdict.evidence, fix, check.reference)


def _filled(fix: str, host: Host) -> str:
    seen = host.seen or {}
    words = {
        "host": host.name, "address": host.expected.address,
        "hostname": (seen.get("host") or {}).get("name", host.name),
        "interface": (seen.get("net") or {}).get("name") or host.expected.interface or "INTERFACE",
    }  # fmt: skip
    for name, value in words.items():
        fix = fix.replace(f"{{{name}}}", value)
    return fix.replace("{{", "{").replace("}}", "}")
