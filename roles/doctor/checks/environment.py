"""vLLM's environment on a node."""

from __future__ import annotations

from ..check import Host, Unclear, Verdict, check, failed, passed, warned
from ..parse import version


@check(
    "env.there",
    "vLLM's environment is that of the lock file",
    looks_at="/opt/rackserve/runtime",
    fix="rackserve deploy provision",
    reference="gpustack#2691",
)
def there(host: Host) -> Verdict | None:
    if not host.expected.environment:
        return None
    installed = host.get("installed")
    if not installed:
        raise Unclear("not provisioned yet")
    lacking = [name for name in ("ray", "torch") if not version(installed, name)]
    said = f"{len(installed)} packages in {host.expected.environment}"
    return failed(f"no {' and no '.join(lacking)} among {said}") if lacking else passed(said)


@check(
    "plan.made",
    "The inventory's model fits its hosts",
    looks_at="rackserve plan",
    fix="rackserve plan MODEL",
    reference="docs/planning.md",
)
def plan(host: Host) -> Verdict | None:
    if host.expected.no_plan:
        return warned(host.expected.no_plan)
    return passed(host.expected.plan) if host.expected.plan else None
