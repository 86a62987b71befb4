"""A plan, and the catalogue, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from models import flags, weights
from models.model import Model
from models.performance import OUTPUT, PROMPT
from models.plan import Replica

from .explain import arithmetic
from .found import PARTS, Found, gib, name_of, size_of, split_of

#: That are shown one by one.
MOST_STAGES = 8


def as_text(found: Found, explain: bool = False) -> str:
    lines, model = [_headline(found), ""], found.nearest.model
    if found.plan is None:
        lines += _table(found)
        lines += ["", "What would fit:" if found.suggestions else "Nothing near it fits."]
        lines += [f"  {one.text}" for one in found.suggestions]
    else:
        lines += [_where(replica, found) for replica in found.plan.replicas]
        lines += ["", *_table(found), "", *_serves(found), "", *_flags(found.plan.replicas[0], model)]
        if uncounted := flags.not_counted(model):
            lines += ["", f"Not counted in this plan: {', '.join(uncounted)}"]
        lines += [
            "",
            "Beside it:" if found.alternatives else "Nothing beside it is better in anything.",
        ]
        if found.alternatives:
            lines += [f"  {name_of(one.plan):34} {one.trades}" for one in found.alternatives]
    if explain:
        lines += ["", *arithmetic(found)]
    return "\n".join(lines)


def catalogue(listed: Iterable[Model]) -> str:
    lines = []
    for model in listed:
        count = weights.parameters(model.architecture)
        shown = f"{count / 1e9:.1f} B" if count > 1e9 else f"{count / 1e6:.1f} M"
        lines.append(
            f"{model.name:36} {shown:>8} {gib(size_of(model)):>10}  {model.repository}"
            f"{'  (gated)' if model.gated else ''}"
        )
    return "\n".join(lines)


def _headline(found: Found) -> str:
    model, first = found.nearest.model, found.nearest.replicas[0]
    assert first.gpu is not None and first.fit is not None
    there = f"{first.split.gpus} {first.gpu.name}" + (
        f" on {len(first.nodes)} nodes" if len(first.nodes) > 1 else ""
    )
    if found.plan is None:
        lacks = gib(found.missing_bytes)
        return f"{model.name} does not fit on {there} ({split_of(first)}): each GPU lacks {lacks}"
    copies = f"{len(found.plan.replicas)} replicas, each " if len(found.plan.replicas) > 1 else ""
    return f"{model.name} fits: {copies}{split_of(first)} on {there}"


def _where(replica: Replica, found: Found) -> str:
    """Which hosts and GPUs, in rank order."""
    across = f", through {replica.executor}" if replica.executor != "local" else ""
    layers = weights.stages(found.nearest.model.architecture.num_hidden_layers, replica.split.pipeline)
    stages = [_gpus(replica.stage_gpus(stage)) for stage in range(replica.split.pipeline)]
    if len(stages) == 1:
        return f"  {replica.name}: {stages[0]}{across}"
    if len(stages) > MOST_STAGES:
        shown = f"{stages[0]} to {stages[-1]}, {min(layers)} to {max(layers)} layers each"
        return f"  {replica.name}: {shown}{across}"
    shown = "; ".join(f"{gpus}: {count} layers" for gpus, count in zip(stages, layers, strict=True))
    return f"  {replica.name}: {shown}{across}"


def _gpus(there: Mapping[str, Sequence[int]]) -> str:
    names = (
        f"{host} GPU {gpus[0]}" + (f"-{gpus[-1]}" if len(gpus) > 1 else "") for host, gpus in there.items()
    )
    return ", ".join(names)


def _table(found: Found) -> list[str]:
    """The memory of the fullest GPU; and of the others where they differ."""
    stages = found.memory()
    shown = list(dict.fromkeys([found.fullest, 0, len(stages) - 1]))
    parts = sorted({part for stage in shown for part in stages[stage]}, key=PARTS.index)
    heads = [f"stage {stage}" if len(stages) > 1 else "each GPU" for stage in shown]
    lines = ["Memory of a GPU".ljust(22) + "".join(f"{head:>12}" for head in heads)]
    for part in parts:
        lines.append(f"  {part:20}" + "".join(f"{gib(stages[stage].get(part, 0)):>12}" for stage in shown))
    return lines


def _serves(found: Found) -> list[str]:
    assert found.plan is not None
    first = found.plan.replicas[0]
    assert first.fit is not None
    lines = [
        f"Context                 {first.fit.max_model_len} tokens",
        f"KV cache                {first.kv_cache_tokens} tokens: {first.max_concurrency:.1f} of that length",
    ]
    if found.guess and first.gpu and first.gpu.vendor != "cpu":
        guess = found.guess
        lines += [
            f"About, for prompts of {PROMPT} and answers of {OUTPUT} tokens (docs/performance.md)",
            f"  first token           {guess.first_token * 1e3:.0f} ms on an idle server",
            f"  each token            {guess.per_token * 1e3:.1f} ms alone, bound by {guess.bound}",
            f"  {guess.concurrency} at once".ljust(24)
            + f"{guess.loaded_per_token * 1e3:.0f} ms a token, {guess.throughput:.0f} tokens/s a replica",
        ]
    return lines


def _flags(replica: Replica, model: Model) -> list[str]:
    lines = ["vLLM is told"]
    for name, (value, why) in flags.reasons(replica, model).items():
        lines += [f"  {name}: {value if isinstance(value, str) else _plain(value)}", f"      {why}"]
    return lines


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
