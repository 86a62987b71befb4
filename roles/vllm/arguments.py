"""vLLM's arguments for a plan. Pure: names are vLLM's long flags, without dashes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from models.model import Model
from models.plan import Replica

#: Seconds vLLM may take from start to ready; its own 600 is too short for a cold 800 GB.
READY_TIMEOUT = 7200

#: Seconds for requests in flight when the unit is stopped; vLLM's own 0 aborts them.
#: The unit's TimeoutStopSec is longer.
SHUTDOWN_TIMEOUT = 30

#: {variable: its folder}: where kernels are kept. Node-local, so that no two hosts write one cache and
#: restarts find it warm. Ray's workers must have them as they start: when vLLM hands them its own, torch has
#: chosen /tmp already (torch/_inductor/runtime/cache_dir_utils.py), and FlashInfer its home.
CACHES = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
}


def arguments(
    model: Model, replica: Replica, host_name: str, model_path: str, template: str | None = None
) -> dict[str, Any]:
    """Everything `vllm serve` is told on one host of a replica; `template` is a file there."""
    return {
        "model": model_path,
        "served-model-name": model.name,
        "host": "0.0.0.0",
        "port": replica.ports.api,
        "shutdown-timeout": SHUTDOWN_TIMEOUT,
        **_executor(replica, host_name),
        **({"chat-template": template} if template else {}),
        **replica.arguments,
    }


def requests(replica: Replica) -> int:
    """How many a replica works on at once; more would wait in vLLM. Its own default where none is said."""
    return int(replica.arguments.get("max-num-seqs", 1024)) * replica.split.data


def names(model: Model, replica: Replica) -> tuple[str, ...]:
    """By which clients may ask for what a replica serves, its own first: also those of its adapters."""
    said = replica.arguments.get("served-model-name", model.name)
    own = [said] if isinstance(said, str) else list(said)
    adapters = replica.arguments.get("lora-modules", ())
    return tuple(dict.fromkeys([*own, *map(_adapter, [adapters] if isinstance(adapters, str) else adapters)]))


def _adapter(said: Any) -> str:
    """As vLLM takes it (entrypoints/openai/cli_args.py, LoRAParserAction): NAME=PATH, or an object."""
    if isinstance(said, str) and "=" in said and not said.lstrip().startswith("{"):
        return said.partition("=")[0]
    return str((yaml.safe_load(said) if isinstance(said, str) else said)["name"])


def variables(model: Model, cache: str) -> dict[str, str]:
    """The environment of the vLLM process, the same on each host."""
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(READY_TIMEOUT),
        # What was measured of the memory is kept for the next start (v1/worker/startup_plan.py).
        "VLLM_ENABLE_STARTUP_PLAN": "1",
        **{name: f"{cache}/{folder}" for name, folder in CACHES.items()},
        **model.environment,
    }


def render(arguments: Mapping[str, Any]) -> str:
    """The file for `vllm serve --config` (vllm/utils/argparse_utils.py says what it takes)."""
    return yaml.safe_dump(dict(arguments), sort_keys=False)


def _executor(replica: Replica, host_name: str) -> dict[str, Any]:
    if replica.executor == "ray":
        return {"distributed-executor-backend": "ray"}
    if replica.executor == "local":
        return {}
    rank = replica.rank(host_name)
    return {
        "distributed-executor-backend": "mp",
        "nnodes": len(replica.nodes),
        "node-rank": rank,
        "master-addr": replica.head.address,
        "master-port": replica.ports.master,
        **({"headless": True} if rank else {}),
    }
