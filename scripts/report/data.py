"""A plan, and the catalogue, for machines: sizes in bytes, times in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
from models import fit, flags, weights
from models.advice import Alternative
from models.model import Model
from models.performance import OUTPUT, PROMPT, Estimate
from models.plan import Replica

from .found import Found, remarks, size_of


def as_json(found: Found) -> dict[str, Any]:
    """For machines: sizes in bytes, times in seconds, vLLM's long flag names as keys."""
    model = found.nearest.model
    common = {
        "fits": found.plan is not None,
        "model": model.name,
        "repository": model.repository,
        "revision": model.revision,
        "environment": dict(model.environment),
        "memory_per_gpu": found.memory()[found.fullest],
        "remarks": remarks(found),
        "not_counted": flags.not_counted(found.nearest.replicas[0], model),
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


def entry(model: Model) -> dict[str, Any]:
    """A model of the catalogue, for machines."""
    return {
        "name": model.name,
        "repository": model.repository,
        "gated": model.gated,
        "parameters": weights.parameters(model.architecture),
        "weight_bytes": size_of(model),
        "max_model_len": model.architecture.max_position_embeddings,
    }


def _replica_json(replica: Replica, found: Found) -> dict[str, Any]:
    """`flags` names those of its keys that are vLLM's, so that they make a file for `--config`."""
    assert replica.fit is not None
    memory, model = found.memory(), found.nearest.model
    vllm = flags.told(replica, model)
    if model.template and "chat-template" not in replica.arguments:
        vllm["chat-template"] = str(Path(models.__file__).parents[1] / vllm["chat-template"])
    layers = weights.stages(model.architecture.num_hidden_layers, replica.split.pipeline)
    return {
        "name": replica.name,
        "hosts": list(replica.hosts),
        "gpus_per_host": replica.gpus_per_node,
        "executor": replica.executor,
        "port": replica.ports.api,
        **{name.replace("-", "_"): value for name, value in vllm.items()},
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
        "flags": {name: why for name, (_, why) in flags.reasons(replica, model).items()},
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
