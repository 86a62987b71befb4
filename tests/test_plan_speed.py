"""How long planning takes, and what it imports."""

import json
import subprocess
import sys

import models

QUICK = """
import json, sys, time
import models
from models import fit, kv, limits, performance, weights
from models.plan import Node, Request
from scripts.report.found import Found

nodes = [Node(f"n{i}", f"10.0.0.{i}", 8, "H100") for i in range(64)]

def seconds(name, request):
    \"""Of processor time; the quickest of three, none of which knows what another found.\"""
    taken = []
    for _ in range(3):
        for module in (fit, kv, limits, performance, weights):
            for kept in vars(module).values():
                getattr(kept, "cache_clear", lambda: None)()
        start = time.process_time()
        Found.of(models.get(name), nodes, request)
        taken.append(time.process_time() - start)
    return min(taken)

requests = Request(), Request(replicas=None, optimize="throughput")
taken = {name: max(seconds(name, request) for request in requests) for name in models.names()}
print(json.dumps([taken, list(sys.modules)]))
"""


def test_planning_for_64_nodes_is_quick_for_every_model_and_imports_neither_pyinfra_nor_torch():
    """With the estimates and the alternatives: all that `rackserve plan` prints."""
    done = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, check=True)
    taken, loaded = json.loads(done.stdout)
    assert list(taken) == models.names()
    assert {name: seconds for name, seconds in taken.items() if seconds >= 0.1} == {}
    assert not {"pyinfra", "gevent", "torch", "vllm", "numpy", "matplotlib", "click"} & set(loaded)
