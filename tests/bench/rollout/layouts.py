"""What is served in the lab under the load: on how many nodes, in how many replicas, and how it is asked."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from tests.bench.report import FOLDER
from tests.lab import Lab
from tests.lab.node import Node
from tests.lab.shell import LabError, wait_until
from tests.lab.testing import BIN, REPOSITORY, Outcome, api_key, rackserve
from tests.load import expected
from tests.load.client import Client
from tests.load.driver import LONG
from tests.load.judge import OK, judge

MODEL, PORT = "tiny-llama", 8080
NODES = 4  # enough for every layout
WAIT = 300  # seconds for all replicas to be up
LIMIT = 1800  # seconds for a rollout

#: vLLM's flags of all versions; max-num-seqs is what they differ in.
ARGUMENTS = {"max-model-len": 2048}
VERSIONS = (64, 63)
TRIED = 16  # tokens by which a replica is seen to answer as it should

_INVENTORY = """
import importlib
_own = vars(importlib.import_module("inventories.group_data.lab"))
_data = {{key: value for key, value in _own.items() if not key.startswith("_")}}
_lab = importlib.import_module("inventories.lab")
_all = [(name, {{**_data, **node, "_sudo": True, "gpus": {gpus}}}) for name, node in _lab.head + _lab.workers]
head, workers = _all[:1], _all[1:{nodes}]
"""


@dataclass(frozen=True)
class Layout:
    """`places` are each replica's nodes, by their numbers; two that share one are told apart by `slots`."""

    name: str
    places: Sequence[Sequence[int]]
    gpus: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def nodes(self) -> int:
        return max(number for place in self.places for number in place)

    @property
    def data(self) -> dict[str, Any]:
        return {
            "model": MODEL, "replicas": len(self.places), "tensor_parallel": 1,
            "pipeline_parallel": len(self.places[0]), "gateway": True, "ready_timeout": WAIT, **self.settings,
        }  # fmt: skip


SHARED = Layout("shared", [[1], [1]], gpus=2)
THREE = Layout("three", [[1], [2], [3]])
#: Two gateways, so that one is left when a node of the other's replica is hurt.
PAIRS = Layout("pairs", [[1, 2], [3, 4]], settings={"gateway": "node1,node3"})


class Served:
    """A layout in the lab."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.lab = layout, Lab()
        folder = FOLDER / "rollout"
        folder.mkdir(parents=True, exist_ok=True)
        self.inventory = folder / f"{layout.name}.py"
        self.inventory.write_text(_INVENTORY.format(gpus=layout.gpus, nodes=layout.nodes))
        self.expected = folder / f"expected-pp{len(layout.places[0])}.json"

    @property
    def names(self) -> list[str]:
        return [f"replica-{number}" for number in range(len(self.layout.places))]

    def members(self, replica: str) -> list[Node]:
        """Its nodes, the first one first."""
        return [Node(number) for number in self.layout.places[self.names.index(replica)]]

    def url(self, replica: str) -> str:
        """Of the replica itself."""
        place = self.names.index(replica)
        slot = self.layout.places[:place].count(self.layout.places[place])
        return f"http://{self.members(replica)[0].address}:{8000 + slot}"

    @property
    def key(self) -> str:
        return api_key(Node(1))

    def start(self) -> None:
        """Nothing else in the lab, and what is to be expected of it recorded."""
        self.lab.up(len(self.lab.nodes()) or NODES)
        if len(self.lab.nodes()) < self.layout.nodes:
            raise LabError(f"this needs a lab of {self.layout.nodes} nodes: run `rackserve lab down` first")
        _must(rackserve("deploy", "teardown", "-i", "lab"))
        for deploy in ("provision", "stage_weights"):
            _must(rackserve("deploy", deploy, "-i", str(self.inventory), **self.layout.data))
        self._serve()
        if not self.expected.exists():
            expected.record(self.expected, self.url("replica-0"), self.key, MODEL, LONG[1])
        self.settle()

    def _serve(self) -> None:
        _must(self.run("deploy", "serve", **self.version(VERSIONS[0])))

    def settle(self) -> None:
        """Every replica is in every gateway, and answers as it should."""
        for gateway in self.gateways:
            wait_until(lambda gateway=gateway: all(up(gateway)), WAIT, f"all replicas on {gateway.name}")
        for name in self.names:
            if trouble := self.trouble(name):
                raise LabError(f"{name}: {trouble}")

    def version(self, sequences: int, **arguments: Any) -> dict[str, Any]:
        return {"vllm_args": {**ARGUMENTS, "max-num-seqs": sequences, **arguments}}

    @property
    def versions(self) -> dict[str, Any]:
        """{replica: its max-num-seqs, and its load-format if it has one}, as its file says."""
        return {name: self._version(self.members(name)[0], name) for name in self.names}

    def _version(self, node: Node, replica: str) -> tuple[int, str | None]:
        said = yaml.safe_load(node.sudo(f"cat /etc/rackserve/{replica}/vllm.yaml"))
        return said["max-num-seqs"], said.get("load-format")

    def uniform(self) -> int:
        """The version that all have: served anew where it is none of ours, or they have several."""
        if set(self.versions.values()) not in [{(version, None)} for version in VERSIONS]:
            self._serve()
            self.settle()
        now, _ = self.versions["replica-0"]
        return now

    def other(self) -> int:
        """The version that is not there now."""
        return VERSIONS[1 - VERSIONS.index(self.uniform())]

    @property
    def gateways(self) -> list[Node]:
        named = re.findall(r"\d+", str(self.layout.settings.get("gateway", "node1")))
        return [Node(int(number)) for number in named]

    def trouble(self, replica: str) -> str:
        """What is wrong with the beginning of one answer, asked of the replica itself; "" when nothing is."""
        prompt, tokens = next(iter(json.loads(self.expected.read_text()).items()))
        body = {
            "model": MODEL, "prompt": prompt, "max_tokens": TRIED, "temperature": 0, "ignore_eos": True,
            "return_token_ids": True,
        }  # fmt: skip
        outcome, why = judge(tokens[:TRIED], Client(self.url(replica), self.key).ask(body).answer)
        return "" if outcome == OK else f"{outcome}: {why}"

    def run(self, *words: str, **changes: Any) -> Outcome:
        """`rackserve WORDS` on the inventory with its settings; a rollout may take longer than most."""
        done = subprocess.run(
            self.command(*words, **changes), cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT
        )
        return Outcome(done.returncode, done.stdout + done.stderr)

    def command(self, *words: str, **changes: Any) -> list[str]:
        data = [
            word
            for key, value in {**self.layout.data, **changes}.items()
            for word in ("--data", f"{key}={value if isinstance(value, str) else json.dumps(value)}")
        ]
        return [str(BIN / "rackserve"), *words, "-i", str(self.inventory), *data]


def up(gateway: Node) -> list[bool]:
    """Of each of its servers, whether requests are sent there."""
    servers = json.loads(gateway.sudo("python3 /opt/rackserve/libexec/gateway.py servers"))
    return [one["status"].startswith("UP") for one in servers] or [False]


def _must(outcome: Outcome) -> None:
    if outcome.code:
        raise LabError(outcome.said[-2000:])
