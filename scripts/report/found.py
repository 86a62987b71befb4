"""What was planned for a question: the answer that every report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import models
from models import advice, fit, weights
from models.advice import Alternative, Suggestion
from models.errors import DoesNotFit
from models.model import Model
from models.performance import Estimate
from models.plan import Node, Plan, Replica, Request
from models.planner import choose, estimate, loaded, options

GIB = 2**30

#: A plan is called slow beside one with so many times its throughput that is no slower alone.
MUCH = 2.0

#: In the order of a table.
PARTS = [
    "embedding", "attention", "absorbed MLA", "mlp", "router", "experts", "shared experts", "norms", "head",
    "KV cache", "activations", "CUDA graphs", "free", "communication", "beyond vLLM's share",
]  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What was planned: `plan`, or what is nearest to one and what would fit."""

    request: Request
    nodes: Sequence[Node]
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
            return cls(request, nodes, None, nearest, None,
                       suggestions=advice.suggestions(model, nodes, request, smaller))  # fmt: skip
        guess = estimate(plan.replicas[0], model, loaded(plan, request))
        return cls(request, nodes, plan, plan, guess, alternatives=advice.alternatives(plan, nodes, request))

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
        """The stage whose GPUs have least room, or lack most."""
        stages = self.memory()
        return min(range(len(stages)), key=lambda stage: stages[stage]["free"])


def remarks(found: Found) -> list[str]:
    """What who reads no further must know: it is not served, it leaves GPUs alone, it is slow."""
    first, lines = found.nearest.replicas[0], []
    if first.gpu is not None and first.gpu.vendor == "amd":  # deploys/cluster.py
        lines.append(f"Not served yet: `serve` refuses {first.gpu.name}, there is no ROCm runtime")
    if found.plan is None:
        return lines
    there = sum(node.gpus for node in found.nodes)
    unused = there - sum(replica.split.gpus for replica in found.plan.replicas)
    if unused:
        lines.append(f"Unused: {unused} of {there} GPUs")
    return lines + _slow(found)


def _slow(found: Found) -> list[str]:
    """Of one copy over many nodes: copies over fewer, split alike, are much quicker."""
    own, now = found.nearest.replicas[0], found.guess
    for one in found.alternatives:
        split, copies = one.plan.replicas[0].split, len(one.plan.replicas)
        if now is None or one.estimate is None or split != replace(own.split, pipeline=split.pipeline):
            continue
        throughput = one.estimate.throughput * copies / (now.throughput * len(found.nearest.replicas))
        alone = now.per_token / one.estimate.per_token
        if throughput >= MUCH and alone >= 1:
            flags = f"--replicas {copies} --tp {split.tensor} --pp {split.pipeline}"
            return [
                f"Slow: {flags} has {throughput:.1f} times the tokens/s, and "
                f"a token alone takes 1/{alone:.1f} of the time"
            ]
    return []


def name_of(plan: Plan) -> str:
    """Its split in words, and how many copies."""
    words, count = split_of(plan.replicas[0]), len(plan.replicas)
    return f"{count} x ({words})" if count > 1 else words


def split_of(replica: Replica) -> str:
    split = replica.split
    words = f"TP {split.tensor} x PP {split.pipeline}"
    words += f" x DP {split.data}" if split.data > 1 else ""
    words += ", EP" if split.expert else ""
    return words + (f", DCP {split.context}" if split.context > 1 else "")


def gib(size: float) -> str:
    if size == 0:
        return "-"
    return f"{size / GIB:.1f} GiB" if abs(size) >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def size_of(model: Model) -> int:
    """Bytes of the weights, unsplit."""
    return sum(tensor.bytes for tensor in weights.tensors(model.architecture, weights.Split()))
