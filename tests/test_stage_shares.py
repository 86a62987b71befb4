"""A commit dealt to several hosts, each of which fetches its share by its own uplink."""

import importlib
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.hub_faults import MIB, line
from tests.lab.hub_testing import running_hub, sha256
from tests.staging import SCRIPT, Node

WIDE, SHARDS = "lab/wide", [f"model-{number}.safetensors" for number in range(3)]
SMALL = ["config.json", "extra/tokenizer.json"]
DEALT = [[*SMALL, SHARDS[0]], [SHARDS[2]], [SHARDS[1]]]  # to three
SIZES = {name: (16 + number) * MIB for number, name in enumerate(SHARDS)}


@pytest.fixture(scope="module")
def deal():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        yield importlib.import_module("sources").shares


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        (hub.root / WIDE / "extra").mkdir(parents=True)
        for name in SMALL:
            (hub.root / WIDE / name).write_text('{"num_hidden_layers": 2}')
        for name, size in SIZES.items():
            (hub.root / WIDE / name).write_bytes(os.urandom(MIB) * (size // MIB))
        yield hub


@pytest.fixture
def node(hub, tmp_path):
    return Node(hub, tmp_path).at(WIDE)


def share(number, of=3, **mirror):
    return {"repository": WIDE, "said": {"share": [number, of], **mirror}}


def recorded(node):
    return json.loads((node.model / f".partial-{node.commit(WIDE)}.json").read_text())


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=9), st.integers(0, 10**8), max_size=50), st.integers(1, 8))
def test_every_file_is_dealt_once_and_evenly(deal, sizes, count):
    dealt = deal(sizes, count)
    assert len(dealt) == count and sorted(name for one in dealt for name in one) == sorted(sizes)
    assert deal(dict(reversed(sizes.items())), count) == dealt
    assert all(sizes[name] >= 16 * MIB for one in dealt[1:] for name in one)
    large = [[sizes[name] for name in one if sizes[name] >= 16 * MIB] for one in dealt]
    loads = [sum(sizes[name] for name in one) for one in dealt]
    for one, load in zip(large, loads, strict=True):
        assert not one or load - min(one) <= min(loads)


def test_the_shares_of_a_model(deal):
    sizes = {**SIZES, **dict.fromkeys(SMALL, 24)}
    assert deal(sizes, 3) == DEALT
    assert deal(sizes, 1) == [[*SMALL, *reversed(SHARDS)]]
    assert deal({"a": 20 * MIB}, 3) == [["a"], [], []]


def test_each_host_fetches_its_share_verified_and_publishes_nothing(hub, tmp_path):
    for number, names in enumerate(DEALT):
        node = Node(hub, tmp_path / str(number)).at(WIDE)
        with node.fetched() as asked:
            node.staged(**share(number))
        assert sorted(asked) == sorted(names)
        files = recorded(node)["files"]
        assert files == {
            name: {"size": (hub.root / WIDE / name).stat().st_size, "sha256": sha256(hub.root / WIDE / name)}
            for name in names
        }
        partial = node.model / f".partial-{node.commit(WIDE)}"
        assert all(sha256(partial / name) == files[name]["sha256"] for name in names)
        assert node.shown() == [] and node.problem(repository=WIDE) == "not staged yet"


def test_a_share_that_is_there_is_not_fetched_again_and_a_wrong_file_of_it_is(node):
    node.staged(**share(0))
    first = recorded(node)
    with node.fetched() as asked:
        node.staged(**share(0))
    assert asked == [] and recorded(node) == first
    os.truncate(node.model / f".partial-{node.commit(WIDE)}" / SHARDS[0], 5)
    with node.fetched() as asked:
        node.staged(**share(0))
    assert asked == [SHARDS[0]] and recorded(node) == first


def test_a_share_that_broke_off_is_not_recorded_as_there(node, hub):
    node.staged(**share(2))
    os.truncate(node.model / f".partial-{node.commit(WIDE)}" / SHARDS[1], 5)
    with (
        line(hub.port, 11 * MIB) as stalls,
        node.running("fetch", endpoint=stalls.url, **share(2)) as fetching,
    ):
        stalls.wait()
        fetching.kill()
    assert not list(node.model.glob(".partial-*.json"))


def test_all_of_it_may_be_one_hosts_after_a_share_was(node):
    node.staged(**share(1))
    with node.fetched() as asked:
        node.staged(**share(0, of=1))
    assert sorted(asked) == sorted({*SMALL, *SHARDS} - {*DEALT[1]})
    assert node.problem(repository=WIDE) is None and list(node.model.glob(".*")) == []


def test_a_mirror_gives_shares_too_and_only_the_first_looks_at_the_config(hub, tmp_path):
    node = Node(hub, tmp_path / "origin").at(WIDE)
    node.staged(repository=WIDE)
    mirror = {"mirror": str(node.folder)}
    hosts = [Node(hub, tmp_path / str(number)).at(WIDE) for number in range(3)]
    wrong = {"num_hidden_layers": 3}
    assert "contradicts the catalogue" in hosts[0].refused("fetch", expected=wrong, **share(0, **mirror))
    assert not list(hosts[0].model.glob(".partial-*.json"))
    for number in (1, 2):
        hosts[number].staged(expected=wrong, **share(number, **mirror))
        assert list(recorded(hosts[number])["files"]) == DEALT[number]


def test_room_is_needed_for_the_share_alone(node, tmp_path):
    node.folder.mkdir(exist_ok=True)
    own = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    small = 'mount -t tmpfs -o size=20M none "$0"; "$@"'
    within = [*own, "sh", "-c", small, node.folder]
    node.staged(within=within, **share(1))
    assert "needed" in node.refused("fetch", within=within, **share(0, of=2))
