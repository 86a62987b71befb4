"""What the user says twice, and differently: of a plan, and to vLLM. One of the two would be ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import arguments
from .errors import PlanError
from .model import Model

if TYPE_CHECKING:
    from .plan import Request

#: What a plan says of its own, and which setting changes it.
PLANNED = {
    "model": "model",
    "tensor-parallel-size": "tensor_parallel",
    "pipeline-parallel-size": "pipeline_parallel",
    "distributed-executor-backend": "executor",
    "nnodes": "executor",
    "node-rank": "executor",
    "headless": "executor",
    "master-addr": "executor",
    "master-port": "executor",
    "port": "port",
}

#: Requests at once cannot be more than these.
ROOM = ("max-num-seqs", "max-num-active-seqs", "max-num-batched-tokens")


def check(model: Model, request: Request) -> None:
    """Raise PlanError where vLLM's arguments contradict what else is asked of the plan.

    A preset, and the model's own file, give way to what the user asks for; the user's own arguments
    do not.
    """
    for flag, setting in PLANNED.items():
        if flag in model.arguments:
            raise PlanError(f"{flag} is the plan's: leave it out of vLLM's arguments and set {setting}")
    for flag in arguments.groups()["refused"]:
        if flag in model.arguments:
            raise PlanError(f"{flag} is not planned: leave it out of vLLM's arguments")
    wanted = request.targets
    for flag in ROOM:
        room = model.arguments.get(flag)
        if flag in model.said and isinstance(room, int) and room < wanted.concurrency:
            raise PlanError(f"{flag} is {room}, and concurrency {wanted.concurrency}: make one fit the other")
    length = model.arguments.get("max-model-len")
    if "max-model-len" in model.said and wanted.context not in (None, length):
        raise PlanError(f"max-model-len is {length}, and context {wanted.context}: leave one of them out")


def check_flags(model: Model, flags: Mapping[str, Any]) -> None:
    """Raise PlanError for flags with which vLLM does not start (config/scheduler.py:319)."""
    if (
        flags.get("enable-chunked-prefill") is False
        and flags["max-num-batched-tokens"] < flags["max-model-len"]
    ):
        raise PlanError(
            f"{model.name}: without chunked prefill max-num-batched-tokens must be at least max-model-len: "
            f"{flags['max-num-batched-tokens']} and {flags['max-model-len']}"
        )
