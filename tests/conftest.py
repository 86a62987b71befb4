"""What tests share: for the fast ones a host of known facts, for the lab's its nodes.

A lab that cannot start fails the tests that need it; none is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyinfra.context import ctx_host, ctx_state
from pyinfra_testing.util import FakeState, get_command_string

from tests.lab import Lab
from tests.lab.node import Node
from tests.lab.testing import belongings, pyinfra
from tests.lab.two import INVENTORY, TWO


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lab-as-is", action="store_true", help="use the lab that is up, and leave it up")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs bare nodes runs before what provisions them."""
    items.sort(key=lambda item: not item.get_closest_marker("bare"))


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[list[Node]]:
    """Three bare nodes. One that is already up is replaced: the tests begin at bare OS."""
    there = Lab()
    if request.config.getoption("--lab-as-is"):
        yield there.require_up()
        return
    there.down()
    there.up(3)
    yield there.nodes()
    there.down()


@pytest.fixture(scope="session")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of an inventory: the lab's first node, with two GPUs."""
    path = tmp_path_factory.mktemp("inventory") / "one.py"
    path.write_text(INVENTORY)
    return str(path)


@pytest.fixture(scope="session")
def two(lab: list[Node], inventory: str) -> set[str]:
    """Two replicas that serve on the first node, behind a gateway; what the node had before."""
    for name in ("provision", "stage_weights"):
        done = pyinfra(name, inventory=inventory, **TWO)
        assert done.code == 0, done.said
    before = belongings(lab[0])
    done = pyinfra("serve", inventory=inventory, **TWO)
    assert done.code == 0, done.said
    return before


class KnownHost:
    """A host of which given facts are known; an operation's commands are asked of it.

    Facts are {fact class: value}, or {fact class: function of the fact's arguments}.
    """

    name, groups, data = "gpu1", [], {}

    def __init__(self, facts: dict, executing: bool) -> None:
        self.facts = facts
        self.state = FakeState()
        self.state.is_executing = executing
        self.noop_description: str | None = None
        self.said: list[str] = []

    def get_fact(self, fact, **arguments):
        known = self.facts[fact]
        return known(**arguments) if callable(known) else known

    def noop(self, description: str) -> None:
        self.noop_description = description

    def log(self, message: str, *_, **__) -> None:
        self.said.append(message)

    log_styled = log

    def yielded(self, operation, **arguments) -> list:
        with ctx_state.use(self.state), ctx_host.use(self):
            return list(operation._inner(**arguments))

    def commands(self, operation, **arguments) -> list[str]:
        """What the operation would run here; [] when it changes nothing."""
        return [
            command if isinstance(command, str) else get_command_string(command)
            for command in self.yielded(operation, **arguments)
        ]


@pytest.fixture
def on_host():
    """on_host({Fact: value}): a host with those facts; executing=True for while a run executes."""
    return lambda facts, executing=False: KnownHost(facts, executing)
