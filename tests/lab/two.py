"""Two replicas of the tiny model on one lab node, behind a gateway."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from typing import Any

import requests

from .node import Node
from .shell import LabError
from .testing import api_key

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
#: The second node serves the same weights by another name.
OTHER = "tiny-other"
SEVERAL = f"""
import importlib
_own = vars(importlib.import_module("inventories.group_data.lab"))
_data = {{key: value for key, value in _own.items() if not key.startswith("_")}}
_data |= {{"_sudo": True, **importlib.import_module("tests.lab.two").TWO}}
_tiny = importlib.import_module("models").get("tiny-llama")
_args = {{**_tiny.arguments, "served-model-name": "{OTHER}"}}
_other = {{"model": _tiny.repository, "vllm_args": _args, "vllm_env": dict(_tiny.environment)}}
_lab = importlib.import_module("inventories.lab")
(_name, _node), (_next, _second) = _lab.head[0], _lab.workers[0]
head = [(_name, {{**_data, **_node, "gpus": 2}})]
workers = [(_next, {{**_data, **_second, "gpus": 1, "replicas": 1, **_other}})]
"""


def gateway(node: Node, words: str) -> str:
    """Its runtime: see roles/gateway/admin.py."""
    return node.sudo(f"python3 /opt/rackserve/libexec/gateway.py {words}")


def states(node: Node) -> list[dict[str, Any]]:
    """How the gateway sees each replica; one that is just being loaded anew is asked again, as a run does."""
    for _ in range(4):
        with suppress(LabError):
            return json.loads(gateway(node, "servers"))
        time.sleep(1)
    return json.loads(gateway(node, "servers"))


class streams:
    """So many long answers through the gateway at once; at the end each is whole."""

    def __init__(self, node: Node, count: int) -> None:
        self.url, self.key = f"http://{node.address}:{PORT}/v1/completions", api_key(node)
        self.answers = [""] * count
        self.threads = [threading.Thread(target=self.ask, args=(index,)) for index in range(count)]

    def __enter__(self) -> list[str]:
        for thread in self.threads:
            thread.start()
        return self.answers

    def __exit__(self, *_: object) -> None:
        for thread in self.threads:
            thread.join()

    def ask(self, index: int) -> None:
        body = {
            "model": "tiny-llama",
            "prompt": "Once",
            "max_tokens": 1000,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"Authorization": f"Bearer {self.key}"}
        with requests.post(self.url, json=body, headers=headers, stream=True, timeout=300) as answer:
            answer.raise_for_status()
            self.answers[index] = answer.text
