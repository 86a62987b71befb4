"""A plan beside what a running vLLM reported."""

from __future__ import annotations

import re

from models.errors import BadInput
from models.plan import Plan

from .found import GIB, name_of

#: Lines of vLLM's log: v1/worker/gpu_worker.py:760, v1/core/kv_cache_utils.py:2326,
#: v1/worker/gpu_model_runner.py ("Model loading took").
CACHE = re.compile(
    r"(?:GPU|CPU) KV cache size: ([\d,]+) tokens, "
    r"Maximum concurrency for ([\d,]+) tokens per request: (\d+\.?\d*)x"
)

LOADED = re.compile(r"Model loading took (\d+\.?\d*) GiB")

AVAILABLE = re.compile(r"Available KV cache memory: (-?\d+\.?\d*) GiB")


def as_text(plan: Plan, log: str) -> str:
    """The plan beside what a running vLLM reported; BadInput when the log has none of it."""
    reported = list(CACHE.finditer(log))
    if not reported:
        raise BadInput(
            'the log has no line "KV cache size: ... tokens": is it a vLLM server\'s, until it is ready?'
        )
    replica = plan.replicas[0]
    assert replica.fit is not None
    tokens, length, concurrency = (text.replace(",", "") for text in reported[-1].groups())
    rows = [
        ("KV cache, tokens", replica.fit.capacity.tokens, int(tokens)),
        ("max_model_len", replica.fit.max_model_len, int(length)),
        ("max concurrency", round(replica.fit.capacity.concurrency, 2), float(concurrency)),
    ]
    stages = replica.fit.stages
    for what, pattern, planned in (
        ("weights of a GPU, GiB", LOADED, max(stage.weight_bytes for stage in stages)),
        ("KV memory of a GPU, GiB", AVAILABLE, min(stage.available for stage in stages)),
    ):
        if seen := [float(value) for value in pattern.findall(log)]:
            extreme = max(seen) if pattern is LOADED else min(seen)
            rows.append((what, round(planned / GIB, 2), extreme))
    lines = [f"{plan.model.name}, {name_of(plan)}", "", f"{'':26}{'plan':>12}{'vLLM':>12}{'off by':>10}"]
    for what, ours, theirs in rows:
        off = f"{100 * (ours - theirs) / theirs:+.1f} %" if theirs else "-"
        lines.append(f"{what:26}{ours:>12}{theirs:>12}{off:>10}")
    return "\n".join(lines)
