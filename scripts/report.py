"""A plan in words, as JSON, as a chart, and beside what a running vLLM said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
from models import advice, fit, flags, kv, weights
from models.advice import Alternative, Suggestion
from models.errors import BadInput, DoesNotFit
from models.model import Model
from models.performance import OUTPUT, PROMPT, Estimate
from models.plan import Node, Plan, Replica, Request
from models.planner import choose, estimate, loaded, options

GIB = 2**30

#: That are shown one by one.
MOST_STAGES = 8

#: In the order of a table.
PARTS = [
    "embedding", "attention", "absorbed MLA", "mlp", "router", "experts", "shared experts", "norms", "head",
    "KV cache", "activations", "CUDA graphs", "communication", "free",
]  # fmt: skip

#: Lines of vLLM's log: v1/worker/gpu_worker.py:760, v1/core/kv_cache_utils.py:2326,
#: v1/worker/gpu_model_runner.py ("Model loading took").
CACHE = re.compile(
    r"(?:GPU|CPU) KV cache size: ([\d,]+) tokens, "
    r"Maximum concurrency for ([\d,]+) tokens per request: (\d+\.?\d*)x"
)
LOADED = re.compile(r"Model loading took (\d+\.?\d*) GiB")
AVAILABLE = re.compile(r"Available KV cache memory: (-?\d+\.?\d*) GiB")


@dataclass(frozen=True)
class Found:
    """What was planned: `plan`, or what is nearest to one and what would fit."""

    request: Request
    plan: Plan | None
    nearest: Plan
    guess: Estimate | None
    alternatives: Sequence[Alternative] = ()
    suggestions: Sequence[Suggestion] = ()

    @classmethod
    def of(cls, model: Model, nodes: Sequence[Node], request: Request) -> Found:
        """Plan it; BadInput when it cannot even be tried."""
        found = options(model, nodes, request)
        try:
            plan = choose(found, request)
        except DoesNotFit as refusal:
            nearest = refusal.nearest
            assert isinstance(nearest, Plan)
            smaller = [models.get(name) for name in model.smaller]
            return cls(request, None, nearest, None,
                       suggestions=advice.suggestions(model, nodes, request, smaller))  # fmt: skip
        guess = estimate(plan.replicas[0], model, loaded(plan, request))
        return cls(request, plan, plan, guess, alternatives=advice.alternatives(plan, nodes, request))

    @property
    def missing_bytes(self) -> int:
        found = self.nearest.replicas[0].fit
        return found.missing_bytes if found else 0

    def memory(self) -> list[dict[str, int]]:
        """The memory of a GPU of each stage, by part, in bytes."""
        first = self.nearest.replicas[0]
        assert first.fit is not None
        return [
            fit.memory_parts(self.nearest.model.architecture, first.split, first.fit, stage)
            for stage in range(first.split.pipeline)
        ]

    @property
    def fullest(self) -> int:
        """The stage whose GPUs have least room."""
        first = self.nearest.replicas[0]
        assert first.fit is not None
        stages = first.fit.stages
        return min(range(len(stages)), key=lambda stage: stages[stage].available)


def as_json(found: Found) -> dict[str, Any]:
    """For machines: sizes in bytes, times in seconds, vLLM's long flag names as keys."""
    model = found.nearest.model
    common = {
        "fits": found.plan is not None,
        "model": model.name,
        "repository": model.repository,
        "memory_per_gpu": found.memory()[found.fullest],
        "not_counted": flags.not_counted(model),
    }
    if found.plan is None:
        return {
            **common,
            "replicas": [],
            "missing_bytes": found.missing_bytes,
            "suggestions": [{"text": one.text, "change": one.change} for one in found.suggestions],
        }
    return {
        **common,
        "replicas": [_replica_json(replica, found) for replica in found.plan.replicas],
        "estimate": _estimate_json(found.guess),
        "alternatives": [_alternative_json(one) for one in found.alternatives],
    }


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
            lines += [f"  {_name(one.plan):34} {one.trades}" for one in found.alternatives]
    if explain:
        lines += ["", *_explain(found)]
    return "\n".join(lines)


def against(plan: Plan, log: str) -> str:
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
    lines = [f"{plan.model.name}, {_name(plan)}", "", f"{'':26}{'plan':>12}{'vLLM':>12}{'off by':>10}"]
    for what, ours, theirs in rows:
        off = f"{100 * (ours - theirs) / theirs:+.1f} %" if theirs else "-"
        lines.append(f"{what:26}{ours:>12}{theirs:>12}{off:>10}")
    return "\n".join(lines)


def entry(model: Model) -> dict[str, Any]:
    """A model of the catalogue, for machines."""
    return {
        "name": model.name,
        "repository": model.repository,
        "gated": model.gated,
        "parameters": weights.parameters(model.architecture),
        "weight_bytes": _size(model),
        "max_model_len": model.architecture.max_position_embeddings,
    }


def catalogue(listed: Iterable[Model]) -> str:
    lines = []
    for model in listed:
        count = weights.parameters(model.architecture)
        shown = f"{count / 1e9:.1f} B" if count > 1e9 else f"{count / 1e6:.1f} M"
        lines.append(
            f"{model.name:36} {shown:>8} {_gib(_size(model)):>10}  {model.repository}"
            f"{'  (gated)' if model.gated else ''}"
        )
    return "\n".join(lines)


def plot(found: Found, path: Path) -> None:
    """A bar for a GPU of each stage, its memory by part, as SVG or PNG."""
    try:
        import matplotlib
    except ImportError:
        raise BadInput("--plot needs matplotlib: pip install 'rackserve[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = found.memory()
    parts = sorted({part for stage in stages for part in stage}, key=PARTS.index)
    figure, axes = pyplot.subplots(figsize=(8, 2.4 + 0.4 * len(stages)), layout="constrained")
    left = [0.0] * len(stages)
    colors = pyplot.get_cmap("tab20")
    for index, part in enumerate(parts):
        sizes = [max(0, stage.get(part, 0)) / GIB for stage in stages]
        color = "white" if part == "free" else colors(index)
        axes.barh(range(len(stages)), sizes, left=left, label=part, color=color, edgecolor="grey")
        left = [begin + size for begin, size in zip(left, sizes, strict=True)]
    axes.set_yticks(range(len(stages)), [f"stage {stage}" for stage in range(len(stages))])
    axes.invert_yaxis()
    axes.set_xlabel("GiB of a GPU")
    axes.set_title(f"{found.nearest.model.name}, {_name(found.nearest)}")
    figure.legend(loc="outside lower center", ncol=5, fontsize="small")
    figure.savefig(path)
    pyplot.close(figure)


def _headline(found: Found) -> str:
    model, first = found.nearest.model, found.nearest.replicas[0]
    assert first.gpu is not None and first.fit is not None
    there = f"{first.split.gpus} {first.gpu.name}" + (
        f" on {len(first.nodes)} nodes" if len(first.nodes) > 1 else ""
    )
    if found.plan is None:
        lacks = _gib(found.missing_bytes)
        return f"{model.name} does not fit on {there} ({_split(first)}): each GPU lacks {lacks}"
    copies = f"{len(found.plan.replicas)} replicas, each " if len(found.plan.replicas) > 1 else ""
    return f"{model.name} fits: {copies}{_split(first)} on {there}"


def _name(plan: Plan) -> str:
    words, count = _split(plan.replicas[0]), len(plan.replicas)
    return f"{count} x ({words})" if count > 1 else words


def _split(replica: Replica) -> str:
    split = replica.split
    words = f"TP {split.tensor} x PP {split.pipeline}"
    words += f" x DP {split.data}" if split.data > 1 else ""
    words += ", EP" if split.expert else ""
    return words + (f", DCP {split.context}" if split.context > 1 else "")


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
        lines.append(f"  {part:20}" + "".join(f"{_gib(stages[stage].get(part, 0)):>12}" for stage in shown))
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


def _explain(found: Found) -> list[str]:
    """The arithmetic of the fullest GPU, line by line."""
    model, first = found.nearest.model, found.nearest.replicas[0]
    own, split, gpu = first.fit, first.split, first.gpu
    assert own is not None and gpu is not None
    stage = own.stages[found.fullest]
    number = own.cache.number
    token = kv.bytes_per_token(model.architecture, split, own.cache)
    layers = weights.stages(model.architecture.num_hidden_layers, split.pipeline)[found.fullest]
    blocks = own.capacity.blocks
    formula = (
        f"{model.architecture.latent.cached} x {number} (MLA: whole on every TP rank)"
        if model.architecture.latent
        else f"2 x {max(1, model.architecture.num_key_value_heads // split.tensor)} heads x "
        f"{model.architecture.head_dim} x {number}"
    )
    lines = [
        f"The arithmetic of a GPU of stage {found.fullest}, in bytes; paths are relative to vllm/",
        f"  total                 {stage.total}: {gpu.source}",
        f"  vLLM's share          {stage.requested} = ceil(total x utilization) (v1/worker/utils.py:724)",
        f"  weights               {stage.weight_bytes}: every parameter of this rank (models/weights.py)",
        f"  activations           {stage.activations}: upper estimate of a step (models/memory.py)",
        f"  CUDA graphs           {stage.graphs}: allowance of our own",
        f"  left for KV           {stage.available}",
        f"  a token in a layer    {token} = {formula} (v1/kv_cache_interface.py:545)",
        f"  a block               {own.cache.block_size} tokens of {layers} layers",
        f"  outside its share     {stage.communication}: CUDA context, NCCL's buffers",
    ]
    if found.plan is None:
        lines.append(f"  missing               {found.missing_bytes}")
    else:
        lines += [
            f"  blocks                {blocks}: the fewest of any stage (v1/core/kv_cache_utils.py:2665)",
            f"  tokens                {own.capacity.tokens} = {blocks} blocks / those of a request of "
            f"{own.max_model_len} tokens x {own.max_model_len} (v1/core/kv_cache_utils.py:1195)",
        ]
    lines += [f"  source, {what:13} {source}" for what, source in model.sources.items()]
    return lines


def _replica_json(replica: Replica, found: Found) -> dict[str, Any]:
    assert replica.fit is not None
    memory = found.memory()
    layers = weights.stages(found.nearest.model.architecture.num_hidden_layers, replica.split.pipeline)
    return {
        "name": replica.name,
        "hosts": list(replica.hosts),
        "gpus_per_host": replica.gpus_per_node,
        "executor": replica.executor,
        **{name.replace("-", "_"): value for name, value in replica.arguments.items()},
        "max_model_len": replica.fit.max_model_len,
        "kv_cache_tokens": replica.kv_cache_tokens,
        "max_concurrency": replica.max_concurrency,
        "stages": [
            {
                "gpus": replica.stage_gpus(stage),
                "layers": layers[stage],
                "memory_per_gpu": memory[stage],
            }
            for stage in range(replica.split.pipeline)
        ],
        "flags": {name: why for name, (_, why) in flags.reasons(replica, found.nearest.model).items()},
    }


def _estimate_json(guess: Estimate | None) -> dict[str, Any] | None:
    if guess is None:
        return None
    return {
        "prompt_tokens": PROMPT,
        "output_tokens": OUTPUT,
        "first_token_seconds": guess.first_token,
        "per_token_seconds": guess.per_token,
        "bound": guess.bound,
        "concurrency": guess.concurrency,
        "loaded_per_token_seconds": guess.loaded_per_token,
        "throughput_tokens_per_second": guess.throughput,
    }


def _alternative_json(one: Alternative) -> dict[str, Any]:
    first = one.plan.replicas[0]
    assert first.fit is not None
    return {
        "replicas": len(one.plan.replicas),
        **{name.replace("-", "_"): value for name, value in fit.arguments_of(first.split).items()},
        "max_model_len": first.fit.max_model_len,
        "kv_cache_tokens": first.kv_cache_tokens,
        "trades": one.trades,
        "estimate": _estimate_json(one.estimate),
    }


def _size(model: Model) -> int:
    return sum(tensor.bytes for tensor in weights.tensors(model.architecture, weights.Split()))


def _gib(size: float) -> str:
    if size == 0:
        return "-"
    return f"{size / GIB:.1f} GiB" if abs(size) >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
