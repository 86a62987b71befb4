"""A plan beside what a running vLLM reported."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from models.errors import BadInput
from models.plan import Plan

from .found import GIB, name_of

#: Lines of vLLM's log: v1/worker/gpu_worker.py:773, v1/core/kv_cache_utils.py:1148,
#: v1/worker/gpu_model_runner.py ("Model loading took").
CACHE = re.compile(
    r"(?:GPU|CPU) KV cache size: ([\d,]+) tokens, "
    r"Maximum concurrency for ([\d,]+) tokens per request: (\d+\.?\d*)x"
)

LOADED = re.compile(r"Model loading took (\d+\.?\d*) GiB")

AVAILABLE = re.compile(r"Available KV cache memory: (-?\d+\.?\d*) GiB")


@dataclass(frozen=True)
class Row:
    """A number of the plan's and the same of vLLM's; bytes are shown as GiB."""

    key: str
    label: str
    planned: float
    reported: float

    @property
    def off_by(self) -> float | None:
        """As a share of what vLLM reported."""
        return (self.planned - self.reported) / self.reported if self.reported else None

    def shown(self, value: float) -> str:
        value = value / GIB if self.key.endswith("bytes_per_gpu") else value
        return str(value) if isinstance(value, int) else f"{value:.2f}"


def compare(plan: Plan, log: str) -> list[Row]:
    """The plan beside what a running vLLM reported; BadInput when the log has none of it."""
    reported = list(CACHE.finditer(log))
    if not reported:
        raise BadInput(
            'the log has no line "KV cache size: ... tokens": is it a vLLM server\'s, until it is ready?'
        )
    replica = plan.replicas[0]
    assert replica.fit is not None
    tokens, length, concurrency = (text.replace(",", "") for text in reported[-1].groups())
    own, stages = replica.fit.capacity, replica.fit.stages
    rows = [
        Row("kv_cache_tokens", "KV cache, tokens", own.tokens, int(tokens)),
        Row("max_model_len", "max_model_len", replica.fit.max_model_len, int(length)),
        Row("max_concurrency", "max concurrency", own.concurrency, float(concurrency)),
    ]
    if seen := [float(value) * GIB for value in LOADED.findall(log)]:
        most = max(stage.weight_bytes for stage in stages)
        rows.append(Row("weight_bytes_per_gpu", "weights of a GPU, GiB", most, max(seen)))
    if seen := [float(value) * GIB for value in AVAILABLE.findall(log)]:
        least = min(stage.available for stage in stages)
        rows.append(Row("kv_cache_bytes_per_gpu", "KV memory of a GPU, GiB", least, min(seen)))
    return rows


def as_text(plan: Plan, rows: Iterable[Row]) -> str:
    lines = [f"{plan.model.name}, {name_of(plan)}", "", f"{'':26}{'plan':>12}{'vLLM':>12}{'off by':>10}"]
    for row in rows:
        off = "-" if row.off_by is None else f"{100 * row.off_by:+.1f} %"
        lines.append(f"{row.label:26}{row.shown(row.planned):>12}{row.shown(row.reported):>12}{off:>10}")
    return "\n".join(lines)


def as_json(plan: Plan, rows: Iterable[Row]) -> dict[str, Any]:
    compared = {row.key: {"plan": row.planned, "vllm": row.reported, "off_by": row.off_by} for row in rows}
    return {"model": plan.model.name, "plan": name_of(plan), "compared": compared}
