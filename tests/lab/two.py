"""Two replicas of the tiny model on one lab node, behind a gateway."""

from __future__ import annotations

import json
from typing import Any

from .node import Node

PORT = 8080
INVENTORY = """
import importlib
_own = vars(importlib.import_module("inventories.group_data.lab"))
_data = {key: value for key, value in _own.items() if not key.startswith("_")}
_name, _node = importlib.import_module("inventories.lab").head[0]
head, workers = [(_name, {**_data, **_node, "_sudo": True, "gpus": 2})], []
"""
TWO = {
    "model": "tiny-llama", "replicas": 2, "tensor_parallel": 1, "pipeline_parallel": 1, "gateway": True,
    "hang_timeout": 25,
}  # fmt: skip


def gateway(node: Node, words: str) -> str:
    """Its runtime: see roles/gateway/admin.py."""
    return node.sudo(f"python3 /opt/rackserve/libexec/gateway.py {words}")


def states(node: Node) -> list[dict[str, Any]]:
    """How the gateway sees each replica."""
    return json.loads(gateway(node, "servers"))
