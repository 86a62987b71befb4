"""A plan, and the catalogue, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from models import flags, weights
from models.model import Model
from models.performance import OUTPUT, PROMPT
from models.plan import Replica

from .found import PARTS, Found, gib, name_of, remarks, size_of, split_of

#: That are shown one by one.
MOST_STAGES = 8


def as_text(found: Found) -> str:
    lines, model = [_headline(found), *remarks(found), ""], found.nearest.model
    if found.plan is None:
        lines += [*_table(found), *_uncounted(found)]
        lines += ["", "What would fit:" if found.suggestions else "Nothing near it fits."]
        lines += [f"  {one.text}" for one in found.suggestions]
    else:
        lines += [_where(replica, found) for replica in found.plan.replicas]
        lines += ["", *_table(found), "", *_serves(found), "", *_flags(found.plan.replicas[0], model)]
        lines += _uncounted(found)
        lines += [
            "",
            "Beside it:" if found.alternatives else "Nothing beside it is better in anything.",
        ]
        if found.alternatives:
            lines += [f"  {name_of(one.plan):34} {one.trades}" for one in found.alternatives]
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
        counts = " to ".join(str(count) for count in sorted({min(layers), max(layers)}))
        shown = f"{stages[0]} to {stages[-1]}, layers each: {counts}"
        return f"  {replica.name}: {shown}{across}"
    shown = "; ".join(f"{gpus}: {count} layers" for gpus, count in zip(stages, layers, strict=True))
    return f"  {replica.name}: {shown}{across}"


def _gpus(there: Mapping[str, Sequence[int]]) -> str:
    names = (
        f"{host} GPU {gpus[0]}" + (f"-{gpus[-1]}" if len(gpus) > 1 else "") for host, gpus in there.items()
    )
    return ", ".join(names)


def _table(found: Found) -> list[str]:
    """The memory of a GPU of the first stage, of the last and of the fullest, which add up to all of it."""
    stages, first = found.memory(), found.nearest.replicas[0]
    assert first.fit is not None
    shown = sorted({0, found.fullest, len(stages) - 1})
    parts = sorted({part for stage in shown for part in stages[stage]}, key=PARTS.index)
    columns = [
        [*_heads(found, stage), *(gib(stages[stage].get(part, 0)) for part in parts)] for stage in shown
    ]
    for column, stage in zip(columns, shown, strict=True):
        column.append(gib(sum(stages[stage].values())))
    names = {} if first.fit.fits else {"KV cache": "KV cache wanted"}
    labels = ["Memory of a GPU", *[""] * (len(_heads(found, 0)) - 1)]
    labels += [*(f"  {names.get(part, part)}" for part in parts), "  in all"]
    widths = [max(12, *(len(cell) + 2 for cell in column)) for column in columns]
    lines = [
        label.ljust(22) + "".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for label, *row in zip(labels, *columns, strict=True)
    ]
    return [*lines, *_notes(found)]


def _notes(found: Found) -> list[str]:
    """What the table's "free" is of, and its "KV cache wanted" for."""
    first = found.nearest.replicas[0]
    assert first.fit is not None
    notes = []
    if not first.fit.fits:
        notes.append(f"KV cache wanted: for {found.request.targets.concurrency} x {first.fit.least} tokens")
    if "kv-cache-memory-bytes" in first.arguments:
        notes.append("free: of what kv-cache-memory-bytes leaves vLLM")
    elif "gpu-memory-utilization" in first.arguments:
        share = 100 * float(first.arguments["gpu-memory-utilization"])
        notes.append(f"free: of vLLM's share, {share:g} % of a GPU (gpu-memory-utilization)")
    return [f"  ({note})" for note in notes]


def _heads(found: Found, stage: int) -> list[str]:
    """What a column of the table is of: the stage, its hosts, its ranks."""
    first = found.nearest.replicas[0]
    if first.split.pipeline == 1:
        return ["each GPU"]
    hosts, width = first.stage_hosts(stage), first.split.gpus // first.split.pipeline
    return [
        f"stage {stage}" + (", fullest" if stage == found.fullest else ""),
        hosts[0] if len(hosts) == 1 else f"{hosts[0]} to {hosts[-1]}",
        f"ranks {stage * width}-{(stage + 1) * width - 1}" if width > 1 else f"rank {stage}",
    ]


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


def _uncounted(found: Found) -> list[str]:
    uncounted = flags.not_counted(found.nearest.replicas[0], found.nearest.model)
    named = ", ".join(f"{flag} ({what})" for flag, what in uncounted.items())
    return ["", f"Not counted in this plan: {named}"] if uncounted else []


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
