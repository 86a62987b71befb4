"""What a trial leaves where weights will be, and takes away: the commands, run here on a test's folders."""

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from roles import health
from roles.weights import Description, Payload, descriptions, path
from roles.weights.descriptions import Described, Target
from roles.weights.where import DESCRIBED, ROOT

MODEL = Payload("/srv/model")
DESCRIPTION = Description(MODEL)


class Node:
    """A node's folders of weights and of descriptions, below another."""

    def __init__(self, folder, on_host):
        self.weights, self.described, self.on_host = folder / "weights", folder / "described", on_host

    def __getitem__(self, place):
        return self.weights.parent / place.removeprefix("/var/lib/rackserve/")

    def run(self, command):
        text = command.replace(ROOT, str(self.weights)).replace(DESCRIBED, str(self.described))
        done = subprocess.run(["sh", "-c", text], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def fact(self, fact, *words):
        return fact().process(self.run(fact().command(*words)))

    def stand_in(self):
        self[path(DESCRIPTION)].mkdir(parents=True, exist_ok=True)
        target = self.fact(Target, path(MODEL)).replace(str(self.described), DESCRIBED)
        host = self.on_host({Target: target})
        for command in host.commands(descriptions.stood_in, description=DESCRIPTION):
            self.run(command)

    def clean(self):
        host = self.on_host({Described: self.fact(Described)})
        commands = host.commands(descriptions.undescribed)
        for command in commands:
            self.run(command)
        return commands


@pytest.fixture
def node(tmp_path, on_host):
    return Node(tmp_path, on_host)


def test_a_description_stands_in_until_it_is_gone_and_nothing_is_left(node):
    for _ in range(2):  # also where one stood in before
        node.stand_in()
        assert node[path(MODEL)].resolve() == node[path(DESCRIPTION)]
    assert node.clean()
    assert list(node.weights.iterdir()) == [] and not node.described.exists()
    assert not node.clean()


def test_weights_that_are_there_stay_and_so_does_all_beside_them(node):
    snapshot = node[path(MODEL)].with_name("snapshot-1")
    snapshot.mkdir(parents=True)
    node[path(MODEL)].symlink_to(snapshot.name)
    node.stand_in()
    node.clean()
    assert node[path(MODEL)].resolve() == snapshot and not node.described.exists()


def test_a_link_whose_weights_are_gone_is_stood_in_for(node):
    node[path(MODEL)].parent.mkdir(parents=True)
    node[path(MODEL)].symlink_to("snapshot-gone")
    node.stand_in()
    assert node[path(MODEL)].resolve() == node[path(DESCRIPTION)]


def test_a_node_that_has_only_what_was_resolved_is_cleaned_too(node):
    (node.described / "org--m/commits").mkdir(parents=True)
    node.clean()
    assert not node.described.exists()


def test_a_folder_of_weights_that_is_a_link_is_cleaned(node):
    (node.weights.parent / "disk").mkdir()
    node.weights.symlink_to("disk")
    node.stand_in()
    node.clean()
    assert list((node.weights.parent / "disk").iterdir()) == []


def test_hosts_that_share_the_folder_may_be_at_it_at_once(node):
    for _ in range(10):
        node.stand_in()
        (command,) = node.on_host({Described: True}).commands(descriptions.undescribed)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(node.run, [command] * 4))
        assert list(node.weights.iterdir()) == []


def test_a_replica_that_did_not_generate_fails_its_host(on_host):
    host = on_host({}, executing=True)
    assert host.commands(health.judged, problem=lambda: "") == []
    assert host.commands(health.judged, problem=lambda: "no token") == ["false"]
    assert host.said == ["no token"]
