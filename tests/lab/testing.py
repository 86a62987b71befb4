"""What the lab's tests do to it: run playbooks as a user would, ask, look, compare."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from .cluster import Lab
from .node import Node

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

#: Greedy decoding of these is compared between one process and every split.
PROMPTS = ("The capital of France is", "1 2 3 4 5", "Once upon a time, in a rack far away,")
TOKENS = 16


@dataclass(frozen=True)
class Outcome:
    """One run of a playbook: exit code, what changed where, and what was said."""

    code: int
    said: str
    changed: dict[str, list[str]] = field(default_factory=dict)


def pyinfra(deploy: str, *options: str, inventory: str = "inventories/lab.py", **data: Any) -> Outcome:
    """`pyinfra INVENTORY deploys/DEPLOY.py` (or FILE.py), unwrapped; results are read from its JSON."""
    playbook = deploy if deploy.endswith(".py") else f"deploys/{deploy}.py"
    words = [inventory, playbook, "--json", *(options or ["-y"]), *_settings(data)]
    done = run(BIN / "pyinfra", *words)
    results = json.loads(done.stdout)["results"] if done.stdout else None
    operations = results["operations"] if results else []
    # An operation of an included deploy has that file's name before its own.
    changed = {
        re.sub(r"^deploys/\w+\.py \| ", "", op["name"]): op["success"] for op in operations if op["success"]
    }
    return Outcome(done.returncode, done.stderr, changed)


def rackserve(*words: str, **data: Any) -> Outcome:
    """`rackserve WORDS`; what it said is stdout and stderr together."""
    done = run(BIN / "rackserve", *words, *_settings(data))
    return Outcome(done.returncode, done.stdout + done.stderr)


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    return subprocess.run(
        words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
    )  # fmt: skip


def _settings(data: dict[str, Any]) -> list[str]:
    words = []
    for key, value in data.items():
        words += ["--data", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return words


def everywhere(nodes: list[Node], command: str) -> list[str]:
    """What a shell command prints as root on each node, run on all of them at once."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda node: node.sudo(command), nodes))


def executions(said: str) -> int:
    """Commands sent to lab nodes in a run of pyinfra with --debug."""
    return said.count("Running command on node")


def api_key(node: Node) -> str:
    return node.sudo("cat /etc/rackserve/replica-0/vllm.env").strip().split("=", 1)[1]


def greedy(node: Node, port: int = 8000) -> list[list[int]]:
    """The token ids that the server on `node` continues PROMPTS with, greedily."""
    base = f"http://{node.address}:{port}/v1"
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {api_key(node)}"
        model = session.get(f"{base}/models", timeout=10).json()["data"][0]["id"]
        body = {"model": model, "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
        answers = [
            session.post(f"{base}/completions", json={**body, "prompt": p}, timeout=120) for p in PROMPTS
        ]
        return [answer.json()["choices"][0]["token_ids"] for answer in answers]


def reference(node: Node, model_path: str) -> list[list[int]]:
    """The same from one vLLM process on `node`, without Ray, workers or a server."""
    script = (Path(__file__).parent / "reference.py").read_text()
    environment = node.sudo("ls -d /opt/rackserve/runtime/*").split()[-1]
    words = ["sudo", "-u", "rackserve", f"{environment}/bin/python", "-", model_path, str(TOKENS), *PROMPTS]
    command = " ".join(f"'{word}'" for word in words)
    done = subprocess.run(node.ssh(command), input=script, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def unit_started(node: Node, part: str) -> str:
    """When a unit's main process started; empty when it has none."""
    unit = f"rackserve-replica-0-{part}"
    return node.sudo(f"systemctl show -p ExecMainStartTimestampMonotonic --value {unit}").strip()


def belongings(node: Node) -> set[str]:
    """Every file, unit, user and package on a node that serving could leave something among."""
    listed = node.sudo(
        "find /etc /opt /usr/local /var/lib/rackserve -xdev -not -path *__pycache__* -not -type d"
        " -printf %p:%m:%u:%l:%s\\\\n;"
        " systemctl list-unit-files --no-legend; getent passwd; dpkg -l"
    )
    return set(listed.splitlines())


def nodes() -> list[Node]:
    return Lab().require_up()
