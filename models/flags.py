"""Why a plan says each of vLLM's flags: one line for a person, with its source."""

from __future__ import annotations

from typing import Any

from . import arguments
from .model import Model
from .plan import Replica

#: By vLLM's long name. Paths are relative to vllm/, lines are 0.33's.
WHY = {
    "tensor-parallel-size": "layers are cut over GPUs of a node, where links are fast",
    "pipeline-parallel-size": "nodes hold layers one after another: little traffic between them, and "
    "key-value heads need no copies",
    "data-parallel-size": "attention runs whole on each rank, experts are shared",
    "enable-expert-parallel": "experts stay whole, spread over the ranks, instead of cut",
    "decode-context-parallel-size": "ranks share the KV cache instead of each keeping all of it",
    "max-model-len": "what fits beside the weights, or what was asked for; vLLM does not start when it "
    "is more (v1/core/kv_cache_planning.py:78)",
    "gpu-memory-utilization": "vLLM's share of a GPU; the rest is for CUDA and NCCL (config/cache.py:215)",
    "max-num-seqs": "said, since vLLM's own depends on the GPU, which a Ray driver does not see "
    "(engine/arg_utils.py:2970)",
    "max-num-batched-tokens": "said for the same reason; a step's memory grows with it",
    "distributed-executor-backend": "a replica over several nodes needs one, and vLLM chooses none "
    "(config/parallel.py:1071)",
    "nnodes": "hosts of the replica; each is told its own node-rank, and all but the first headless",
    "master-addr": "the first host, where the others meet",
    "master-port": "below Linux's ephemeral ports, which others take by chance",
    "enable-auto-tool-choice": "tool calls need it beside the parser",
    "tool-call-parser": "the model's own form of tool calls",
    "reasoning-parser": "the model's thinking comes apart from its answer",
    "chat-template": "vLLM's wheel has none for this model's tool calls; Rackserve ships it",
    "override-generation-config": "the model's own sampling defaults",
    "allow-deprecated-quantization": "its format is on vLLM's deprecated list; it does not start without",
    "kv-cache-dtype": "how large a cached number is",
    "dtype": "how large a number is",
    "compilation-config": "the lab's CPUs need none of torch.compile",
}

#: For sizes of 1.
NOT_CUT = {"tensor-parallel-size": "one GPU holds a layer", "pipeline-parallel-size": "one stage holds all"}

OWN = "asked for, or the model's own file"


def told(replica: Replica, model: Model) -> dict[str, Any]:
    """vLLM's flags that are the same on every host of a replica, but for paths on the hosts and its API."""
    flags = dict(replica.arguments)
    if replica.executor != "local":
        flags["distributed-executor-backend"] = replica.executor
    if replica.executor == "mp":
        flags |= {"nnodes": len(replica.nodes), "master-addr": replica.head.address,
                  "master-port": replica.ports.master}  # fmt: skip
    if model.template:
        flags.setdefault("chat-template", f"models/templates/{model.template}.jinja")
    return flags


def reasons(replica: Replica, model: Model) -> dict[str, tuple[object, str]]:
    """{flag: (its value, why)} for a replica."""
    flags = told(replica, model)
    whys = {
        name: NOT_CUT[name] if name in NOT_CUT and flags[name] == 1 else WHY.get(name, OWN) for name in flags
    }
    return {name: (value, whys[name]) for name, value in flags.items()}


def not_counted(replica: Replica, model: Model) -> dict[str, str]:
    """{flag: what it changes} of a replica's flags that a plan does not know what to make of."""
    named = arguments.groups()["not counted"]
    found = {
        flag: named[flag.partition(".")[0]]
        for flag, value in replica.arguments.items()
        if flag.partition(".")[0] in named and value not in (None, False, 0, "", "auto", {}, [])
    }
    if model.architecture.quantization.method == replica.arguments.get("quantization"):
        found.pop("quantization", None)
    graphs = not replica.arguments.get("enforce-eager") and not (replica.gpu and replica.gpu.vendor == "cpu")
    return {flag: what for flag, what in found.items() if graphs or what != "CUDA graphs"}
