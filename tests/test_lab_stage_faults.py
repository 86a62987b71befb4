"""Staging on real nodes from a hub that goes, forgets a token, sends what is wrong, or moves on."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.cluster import READER
from tests.lab.hub_faults import MIB, Answer, line, spoiled
from tests.lab.hub_testing import RunningHub, running_hub
from tests.lab.node import Node
from tests.lab.paths import GATEWAY, HUB_PORT, MODELS, TOKENS
from tests.lab.testing import BIN, REPOSITORY, everywhere, pyinfra

pytestmark = pytest.mark.lab

WEIGHTS = "/var/lib/rackserve/weights"
TP3 = {"tensor_parallel": 3, "pipeline_parallel": 1}
SHARD = "model-00002-of-00004.safetensors"
LIMIT = 40 * MIB  # of a connection, before it stalls: half a shard


@pytest.fixture(scope="module", autouse=True)
def provisioned(lab: list[Node]) -> None:
    assert pyinfra("provision").code == 0


def digests(nodes: list[Node], folder: str) -> set[str]:
    """One entry when the nodes have the same snapshot, with the same manifest."""
    files = "find . -path ./commits -prune -o -type f -not -name *.pieces -print0 | sort -z"
    return {*everywhere(nodes, f"cd {WEIGHTS}/{folder} && {files} | xargs -0 openssl sha256 -r")}


@contextmanager
def staging(**data: object) -> Iterator[subprocess.Popen]:
    settings = [word for key, value in data.items() for word in ("--data", f"{key}={value}")]
    command: list[str | Path] = [BIN / "rackserve", "deploy", "stage_weights", "-i", "lab"]
    with subprocess.Popen(
        [*command, *settings], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        try:
            yield run
        finally:
            run.kill()


SAID = {
    "hub": "node1: .*download broke off: .*; run it again",
    "token": "node1: .*the hub at .* does not know this token: correct HF_TOKEN",
    "disk": "node1: .*the disk is full; .* does not fit",
}


@pytest.mark.parametrize("harm", SAID)
def test_a_download_that_breaks_off_on_a_node_goes_on_where_it_was(lab: list[Node], harm: str) -> None:
    folder, data = "HuggingFaceTB--SmolLM2-135M-Instruct", {**TP3, "hf_token": READER}
    everywhere(lab, f"rm -rf {WEIGHTS}/{folder}")
    tokens = TOKENS.read_text()
    try:
        with (
            line(HUB_PORT, LIMIT, host=str(GATEWAY)) as stalls,
            staging(**data, hf_endpoint=stalls.url) as run,
        ):
            stalls.wait(3)  # of the four shards the last is small
            assert lab[0].sudo(f"ls {WEIGHTS}/{folder} | grep -v commits || true") == ""
            if harm == "hub":
                second = pyinfra("stage_weights", **data)
                assert second.code == 1 and f"(pid {run.pid})" in second.said, second.said
                stalls.down()
            elif harm == "token":
                shown = lab[0].sudo("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr -d \\\\0")
                assert "stage.py" in shown and READER not in shown
                TOKENS.write_text(tokens.replace(READER, "hf_another"))
            else:
                lab[0].fill_disk(leave_mib=64, for_root=True)
            stalls.release()
            said, _ = run.communicate(timeout=120)
    finally:
        TOKENS.write_text(tokens)
        lab[0].heal()
    (refused,) = [row for row in said.splitlines() if row.startswith("rackserve: ")]
    assert run.returncode == 1 and re.fullmatch(f"rackserve: {SAID[harm]}", refused), said
    assert READER not in said
    with line(HUB_PORT, host=str(GATEWAY)) as counts:
        outcome = pyinfra("stage_weights", **data, hf_endpoint=counts.url)
    assert outcome.code == 0, outcome.said
    size = sum(file.stat().st_size for file in (MODELS / folder.replace("--", "/")).iterdir())
    assert counts.sent < size - 3 * LIMIT + 3 * 11 * MIB  # the client writes 10 MiB at a time
    assert len(digests(lab, folder)) == 1


class Spoiling:
    """A hub's shards: first some wrong bytes, then an answer that ends early, then what they are."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def __call__(self, path: str, answer: Answer) -> None:
        if answer.status not in (200, 206) or "/resolve/" not in path or not path.endswith(".safetensors"):
            return
        if len(answer.body) < MIB:
            return
        self.asked[path] += 1
        if self.asked[path] == 1:
            answer.body = b"wrong" + answer.body[5:]
        elif self.asked[path] == 2:
            answer.headers["Content-Length"] = str(len(answer.body))
            answer.body = answer.body[: len(answer.body) // 2]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """In its repository are names of many kinds, beside a model."""
    base = tmp_path_factory.mktemp("hub")
    model = base / "root/lab/awkward"
    (model / "weights with spaces").mkdir(parents=True)
    for file in (MODELS / "rackserve-lab/tiny-llama").glob("[!.]*"):
        (model / file.name).write_bytes(file.read_bytes())
    (model / "größe und form.txt").write_text("ä")
    (model / "weights with spaces/日本 'x' $y.txt").write_text("z")
    with running_hub(base) as running:
        yield running


@pytest.fixture
def awkward(lab: list[Node]) -> Iterator[dict[str, object]]:
    """What is said of it."""
    yield {"model": "lab/awkward", "pipeline_parallel": 3, "tensor_parallel": 1}
    everywhere(lab, f"rm -rf {WEIGHTS}/lab--awkward")


def test_wrong_bytes_awkward_names_and_a_revision_that_moves(
    lab: list[Node], hub: RunningHub, awkward: dict[str, object]
) -> None:
    folder, spoil = "lab--awkward", Spoiling()
    with spoiled(hub.port, spoil, host=str(GATEWAY)) as url:
        outcome = pyinfra("stage_weights", **awkward, hf_endpoint=url, uplink=True)
        assert outcome.code == 0, outcome.said
        assert set(spoil.asked.values()) == {3}, spoil.asked
        assert len(digests(lab, folder)) == 1
        first = lab[2].sudo(f"readlink {WEIGHTS}/{folder}/main")
        (hub.root / "lab/awkward/größe und form.txt").write_text("anders")
        # A branch means what it meant, until a commit is said.
        assert pyinfra("stage_weights", **awkward, hf_endpoint=url).changed == {}
        assert lab[2].sudo(f"readlink {WEIGHTS}/{folder}/main") == first
        newest = hub.api.model_info("lab/awkward").sha
        outcome = pyinfra("stage_weights", **awkward, revision=newest, hf_endpoint=url)
        assert outcome.code == 0, outcome.said
        assert set(spoil.asked.values()) == {3}  # what did not change is not asked for again
    assert len(digests(lab, folder)) == 1
    assert lab[2].sudo(f"cat {WEIGHTS}/{folder}/{newest}/größe*") == "anders"


def test_thousands_of_small_files(lab: list[Node]) -> None:
    """From a folder: the hub's client takes 5 ms for each, which says nothing of us."""
    folder, source = f"{WEIGHTS}/rackserve-lab--tiny-llama", lab[0].root / "srv/many"
    ours = shutil.ignore_patterns(".revisions")  # of the lab's hub, and none of the model's
    shutil.copytree(MODELS / "rackserve-lab/tiny-llama", source, ignore=ours)
    for number in range(5000):
        (source / f"parts/{number % 50}").mkdir(parents=True, exist_ok=True)
        (source / f"parts/{number % 50}/{number}.bin").write_text(f"part {number}")
    try:
        for node in lab:
            node.sudo(f"rm -rf {folder}")
        outcome = pyinfra("stage_weights", model="tiny-llama", pipeline_parallel=3, mirror="/srv/many")
        assert outcome.code == 0, outcome.said
        assert len(digests(lab, "rackserve-lab--tiny-llama")) == 1
        lab[0].sudo(f"diff -r /srv/many {folder}/main/")
        assert int(lab[2].sudo(f"find {folder}/main/ -name *.bin | wc -l")) == 5000
    finally:
        for node in lab:
            node.sudo(f"rm -rf {folder} /srv/many")
