"""What becomes of a replica: decided without a clock, a node or an engine."""

import json

import pytest
from gang import TIMES
from replica import Replica


class Engine:
    """What is known of one, said outright."""

    generates, death, stuck = True, None, None

    def dead(self):
        return self.death

    def hangs(self):
        return self.stuck


class World:
    """A replica, and nodes that do at once what it says, but for those in `mute`."""

    def __init__(self, hosts=("node1", "node2")):
        self.now, self.engine, self.mute, self.hosts = 1000.0, Engine(), set(), hosts
        self.replica = Replica(hosts, TIMES, self.now)

    def pass_(self, seconds=1.0, **said):
        """Time, and what nodes say besides what they were told."""
        until = self.now + seconds
        while self.now < until:
            self.now += min(1.0, until - self.now)
            order = dict(self.replica.order)
            for host in self.hosts:
                if host not in self.mute:
                    self.replica.heard(host, {**self.obedient(order), **said.get(host, {})}, self.now)
            self.replica.tick(self.now, self.engine)
        return self.replica.state

    def obedient(self, order):
        epoch, runs = order["epoch"], order["do"] == "start"
        return {"heard": epoch, "epoch": epoch if runs else None, "state": "running" if runs else "stopped"}

    def up(self):
        while self.replica.state != "up":
            self.pass_()
        return self

    def falls(self, why="node2: it ended"):
        self.pass_(1, node2={"state": "failed", "why": why.removeprefix("node2: ")})
        assert self.replica.recent[-1]["why"] == why


@pytest.fixture
def world():
    return World()


def test_tries_go_apart_the_more_the_more_often_it_falls_in_a_row(world, capsys):
    waited = []
    for _ in range(10):
        world.up()
        world.falls()
        fell = world.now
        while not world.replica.runs:
            world.pass_()
        waited.append(world.now - fell)
    assert waited == [1, 5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert "fall 10: node2: it ended; starts again after 300 s" in capsys.readouterr().out


def test_one_that_was_up_for_long_begins_again_at_no_wait(world):
    for _ in range(4):
        world.up()
        world.falls()
    world.up()
    world.pass_(TIMES["stable"] + 2)
    world.falls()
    assert world.replica.falls == 5
    assert world.pass_(1) == "starting"


def test_each_run_and_each_stop_has_a_name_of_its_own(world):
    names = set()
    for _ in range(4):
        names.add(world.up().replica.order["epoch"])
        world.falls()
        names.add(world.replica.order["epoch"])
    assert len(names) == 8


def test_a_stop_is_over_only_when_each_node_has_stopped_for_this_one(world):
    world.up()
    world.falls()
    stale = {"heard": "of the stop before", "epoch": None, "state": "stopped"}
    assert world.pass_(5, node2=stale) == "stopping"
    assert world.pass_(5, node2={"state": "stopping"}) == "stopping"
    assert world.pass_(1) == "starting"


def test_a_node_that_has_lost_its_part_takes_it_down_one_that_has_not_begun_does_not(world):
    world.pass_()
    idle = {"epoch": None, "state": "stopped"}
    assert world.pass_(5, node2=idle) == "starting" and world.replica.falls == 0
    world.up()
    world.pass_(1, node2={**idle, "why": "no word from the head for 10 s"})
    assert world.replica.recent[-1]["why"] == "node2: no word from the head for 10 s"


def test_nothing_starts_without_a_node_and_who_is_missing_is_said(world):
    world.mute = {"node2"}
    assert world.pass_(30) == "waiting" and world.replica.why == "nothing is heard of node2"
    world.mute = set()
    assert world.pass_() == "starting" and world.replica.falls == 0


def test_a_node_that_stopped_and_then_went_silent_is_awaited(world):
    world.up()
    world.falls()
    world.falls()  # the second: it waits
    world.mute = {"node2"}
    assert world.pass_(60) == "waiting" and world.replica.why == "nothing is heard of node2"


def test_who_dies_first_is_told_though_others_follow(world):
    world.up()
    world.engine.death = "its API port refuses connections"
    world.falls("node2: rackserve-replica-0-ray ended (signal 9)")


def test_a_hang_counts_only_while_it_is_up(world):
    world.engine.generates, world.engine.stuck = False, "no step and no token for 60 s"
    assert world.pass_(4000) == "starting" and world.replica.falls == 0
    world.engine.generates = True
    world.pass_(1)
    world.pass_(1)
    assert world.replica.recent[-1]["why"] == "no step and no token for 60 s"


def test_it_is_not_up_while_a_part_still_starts(world):
    world.pass_()
    assert world.pass_(5, node2={"state": "starting"}) == "starting"
    assert world.pass_() == "up"


def test_what_is_left_to_the_next_agent_is_taken_up_whatever_the_clock_says(world, capsys):
    world.up()
    world.falls()
    world.up()
    world.pass_(50)
    told = json.loads(json.dumps(world.replica.told(world.now, wall=5000.0)))
    other = World()
    other.now = 77.0
    other.replica = Replica(other.hosts, TIMES, other.now)
    other.replica.recall(told, other.now, wall=5003.0)
    assert other.replica.order == world.replica.order
    assert other.pass_(5) == "up" and other.replica.falls == 1
    assert f"adopts {told['epoch']}, which is up" in capsys.readouterr().out
    again = other.replica.told(other.now, wall=5008.0)
    assert (again["since"], again["recent"]) == (told["since"], told["recent"])


def test_what_the_next_agent_takes_up_falls_when_a_node_does_not_say_that_it_takes_part(world):
    told = world.up().replica.told(world.now, wall=world.now)
    for said, why in (({"epoch": None}, "node2: its part is gone"), (None, "node2 was silent for 10 s")):
        other = World()
        other.replica.recall(told, other.now, wall=other.now)
        if said is None:
            other.mute = {"node2"}
        assert other.pass_(1, node2=said or {}) == ("up" if said is None else "stopping")
        other.pass_(10, node2=said or {})
        assert other.replica.recent[-1]["why"] == why


def test_one_that_is_stopped_by_hand_falls_no_more_and_keeps_no_wait(world):
    for _ in range(3):
        world.up()
        world.falls()
    world.up()
    world.replica.leave(world.now)
    assert world.pass_(3, node1={"state": "stopping"}) == "leaving"
    assert world.replica.falls == 3 and world.replica.told(world.now, 0.0)["row"] == 0
