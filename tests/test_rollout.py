"""Which replicas are replaced, together with which, and in which order; what is gone back to."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InventoryError
from models.release import Found, Proof, Release, merged
from models.rollout import Step, back, before, rollout


def release(name, id="new", hosts=("a",), devices=(0,), model="/w/main"):
    return Release(f"replica-{name}", id, hosts, "10.0.0.1", 8000, 30000, 256, devices, model)


def found(was, up=True, settled=True, proofs=(), hosts=None):
    return Found(was, hosts or (was.hosts if was else ()), settled=settled, up=up, proofs=tuple(proofs))


def batches(change):
    return [(batch.names, batch.fresh) for batch in change.batches]


def test_where_nothing_runs_all_start_at_once():
    change = rollout([release(0), release(1, hosts=("b",))], {})
    assert batches(change) == [(("replica-0", "replica-1"), True)]


def test_what_runs_what_it_should_is_left_alone():
    was = release(0)
    change = rollout([was], {"replica-0": found(was)})
    assert not change and change.serving(0) == [was]


def test_those_that_answer_are_replaced_one_after_another_in_the_plans_order():
    wanted = [release(n, hosts=(f"n{n}",)) for n in range(12)]
    change = rollout(wanted, {one.replica: found(replace(one, id="old")) for one in wanted})
    assert batches(change) == [((f"replica-{n}",), False) for n in range(12)]


@pytest.mark.parametrize("how", [{"settled": False}, {"up": False, "settled": False}])
def test_a_replica_with_a_file_that_was_changed_by_hand_or_that_is_stopped_gets_its_release_again(how):
    was = release(0)
    change = rollout([was], {"replica-0": found(was, **how)})
    assert batches(change) == [(("replica-0",), not how.get("up", True))]


def test_one_that_is_down_is_mended_before_others_are_touched():
    wanted = [release(0, hosts=("a",)), release(1, hosts=("b",))]
    seen = {one.replica: found(replace(one, id="old"), up=one.replica == "replica-0") for one in wanted}
    assert batches(rollout(wanted, seen)) == [(("replica-1",), True), (("replica-0",), False)]


def test_replicas_on_a_host_that_is_rebooted_are_replaced_together_and_go_back_to_nothing():
    wanted = [release(0, hosts=("a",)), release(1, hosts=("b",)), release(2, hosts=("a",), devices=(1,))]
    older = [Proof(release(n, "old"), 1.0, "x") for n in range(3)]
    seen = {one.replica: found(one, proofs=[older[n]]) for n, one in enumerate(wanted)}
    seen["replica-1"] = found(wanted[1], proofs=[Proof(wanted[1], 2.0, "x"), older[1]])
    change = rollout(wanted, seen, reboot=["a", "b", "c"])
    assert [(batch.names, batch.reboot) for batch in change.batches] == [
        (("replica-0", "replica-2"), ("a",)), (("replica-1",), ("b",)),
    ]  # fmt: skip
    assert change.batches[1].steps[0].back is None
    newer = rollout([replace(wanted[1], id="newer")], {"replica-1": seen["replica-1"]}, reboot=["b"])
    assert newer.batches[0].steps[0].back.release.id == "new"
    assert rollout(wanted, seen, only="replica-1", reboot=["a", "b"]).batches[0].reboot == ("b",)
    with pytest.raises(InventoryError, match="replica-0 and replica-2 share a host that is rebooted"):
        rollout(wanted, seen, only="replica-0", reboot=["a"])


def test_replicas_that_hand_each_other_gpus_are_replaced_together():
    seen = {
        "replica-0": found(release(0, "old", ("a", "b"))),
        "replica-1": found(release(1, "old", ("c", "d"))),
    }
    wanted = [release(0, hosts=("a", "c")), release(1, hosts=("b", "d"))]
    assert batches(rollout(wanted, seen)) == [(("replica-0", "replica-1"), False)]


def test_a_new_replica_waits_for_the_gpus_that_another_still_has():
    seen = {"replica-0": found(release(0, "old", ("a", "b")))}
    wanted = [release(0, hosts=("a",)), release(1, hosts=("b",)), release(2, hosts=("c",))]
    assert batches(rollout(wanted, seen)) == [
        (("replica-2",), True), (("replica-0", "replica-1"), False),
    ]  # fmt: skip


def test_replicas_that_share_a_node_and_no_gpu_do_not_wait_for_each_other():
    wanted = [release(0, devices=(0, 1)), release(1, devices=(2, 3))]
    seen = {one.replica: found(replace(one, id="old")) for one in wanted}
    assert batches(rollout(wanted, seen)) == [(("replica-0",), False), (("replica-1",), False)]


def test_what_is_no_longer_planned_leaves_and_what_only_is_put_by_does_not():
    gone, kept = release(1, hosts=("b",)), release(2)
    seen = {"replica-1": found(gone), "replica-2": found(None, proofs=[Proof(kept, 1.0, "")])}
    change = rollout([release(0)], seen)
    assert list(change.leaving) == ["replica-1"] and batches(change) == [(("replica-0",), True)]
    assert change.names == ("replica-0",)


def test_who_answers_is_let_in_before_anything_is_done():
    wanted = [release(0), release(1, hosts=("b",))]
    seen = {one.replica: found(one) for one in [*wanted, release(2, hosts=("c",))]}
    assert rollout(wanted, seen).answering == ["replica-0", "replica-1"]  # replica-2 leaves
    seen["replica-1"] = found(wanted[1], up=False)  # starts
    assert rollout(wanted, seen).answering == ["replica-0", "replica-1"]
    seen["replica-1"] = found(wanted[1], up=False, settled=False)
    assert rollout(wanted, seen).answering == ["replica-0"]


def test_only_one_is_replaced_where_only_that_is_asked_for():
    wanted = [release(0), release(1, hosts=("b",))]
    seen = {one.replica: found(replace(one, id="old")) for one in [*wanted, release(7, hosts=("c",))]}
    change = rollout(wanted, seen, only="replica-1")
    assert batches(change) == [(("replica-1",), False)] and not change.leaving
    assert [one.id for one in change.serving(1)] == ["old", "new", "old"]
    with pytest.raises(InventoryError, match="no replica replica-9; there are: replica-0, replica-1"):
        rollout(wanted, seen, only="replica-9")


def test_the_gateway_knows_what_was_replaced_and_what_was_not_yet():
    wanted = [replace(release(n, hosts=(f"n{n}",)), port=9000) for n in range(3)]
    seen = {one.replica: found(replace(one, id="old", port=8000)) for one in wanted}
    change = rollout(wanted, seen)
    assert [[one.port for one in change.serving(done)] for done in range(4)] == [
        [8000, 8000, 8000], [9000, 8000, 8000], [9000, 9000, 8000], [9000, 9000, 9000],
    ]  # fmt: skip


def test_a_replica_that_moves_is_stopped_first_where_its_api_is():
    step = Step(release(0, hosts=("c", "a")), found(release(0, "old", ("a", "b"))))
    assert step.hosts == ("a", "b", "c")


def test_an_answer_is_expected_again_only_with_the_same_weights():
    was = release(0, "old")
    proofs = [Proof(was, 5.0, "Paris"), Proof(release(0, "older"), 3.0, "London")]
    assert Step(release(0), found(was, proofs=proofs)).expected == "Paris"
    assert Step(release(0, model="/w/v2"), found(was, proofs=proofs)).expected is None
    assert Step(release(0), found(was)).expected is None
    assert Step(release(0)).expected is None


def test_one_goes_back_to_the_last_release_that_was_seen_to_generate_not_to_one_that_never_was():
    ids = {"a": 1.0, "b": 7.0, "c": 4.0}
    proofs = [Proof(release(0, id), at, "") for id, at in ids.items()]
    seen = found(release(0, "broken"), up=False, settled=False, proofs=proofs)
    assert Step(release(0, "new"), seen).back.release.id == "b"
    assert Step(release(0, "b"), seen).back.release.id == "c"
    assert Step(release(0, "new"), found(release(0, "broken"))).back is None


def test_one_goes_back_to_what_it_ran_even_if_another_was_seen_to_generate_later():
    was = release(0, "was")
    seen = found(was, proofs=[Proof(was, 1.0, ""), Proof(release(0, "tried"), 2.0, "")])
    assert Step(release(0, "new"), seen).back.release.id == "was"


def test_a_rollback_expects_what_that_release_answered_and_not_what_runs_now():
    was, now = release(0, "was"), release(0, "now")
    seen = found(now, proofs=[Proof(was, 1.0, "Paris"), Proof(now, 2.0, "London")])
    assert Step(was, seen).expected == "Paris"
    assert Step(now, seen).expected == "London"


def test_what_was_never_seen_to_generate_is_tried_again_where_there_is_something_to_go_back_to():
    new, old = release(0), release(0, "old")
    assert rollout([new], {"replica-0": found(new, up=False, proofs=[Proof(old, 1.0, "Paris")])})
    step = rollout([new], {"replica-0": found(new, up=False, proofs=[Proof(old, 1.0, "Paris")])}).steps[0]
    assert (step.expected, step.back.release.id) == ("Paris", "old")
    assert not rollout([new], {"replica-0": found(new, up=False)})  # the first: it is only awaited


def test_hosts_of_what_is_gone_back_to_have_a_part():
    old = release(0, "old", ("a", "b"))
    seen = found(release(0, "broken", ("c", "d")), up=False, settled=False, proofs=[Proof(old, 1.0, "")])
    assert Step(release(0, hosts=("c", "d")), seen).hosts == ("c", "d", "a", "b")


def test_one_alone_does_not_take_gpus_that_another_has():
    seen = {"replica-0": found(release(0, "old")), "replica-1": found(release(1, "old", ("b",)))}
    with pytest.raises(InventoryError, match="replica-1 is to get GPUs of replica-0: replace both"):
        rollout([release(0, hosts=("b",)), release(1, hosts=("a",))], seen, only="replica-1")


def test_a_rollback_to_nothing_is_refused():
    with pytest.raises(InventoryError, match="nothing was served: run the deploy teardown"):
        back({"replica-0": found(release(0))}, {"replica-0": ""})


def run(deploy, outcome, **ids):
    return {"deploy": deploy, "outcome": outcome, "replicas": ids}


def test_a_rollback_takes_back_the_last_run_and_one_that_broke_off_is_finished():
    first, second = run("serve", "done", r=("", "a")), run("serve", "begun", r=("a", "b"))
    assert before([first, second]) == {"r": "a"}
    assert before([first, second, run("rollback", "begun", r=("b", "a"))]) == {"r": "a"}
    assert before([first, second, run("rollback", "done", r=("b", "a"))]) == {"r": "b"}
    with pytest.raises(InventoryError, match="nothing has run yet"):
        before([])


def test_a_rollback_takes_back_also_what_broke_off_before_the_last_run():
    runs = [
        run("serve", "done", r=("", "a"), s=("", "a")),
        run("serve", "begun", r=("a", "b"), s=("a", "b")),
        run("serve", "begun", s=("b", "c")),
        run("serve", "done", s=("c", "b")),
    ]
    assert before(runs) == {"r": "a", "s": "a"}


def test_back_to_what_is_kept_and_to_nothing_where_there_was_nothing():
    old, new, added = release(0, "old"), release(0), release(1, hosts=("b",))
    seen = {
        "replica-0": found(new, proofs=[Proof(old, 1.0, ""), Proof(new, 2.0, "")]),
        "replica-1": found(added),
        "replica-2": found(release(2, hosts=("c",))),
    }
    change = back(seen, {"replica-0": "old", "replica-1": ""})
    assert batches(change) == [(("replica-0",), False)] and list(change.leaving) == ["replica-1"]
    assert change.names == ("replica-0", "replica-2")
    with pytest.raises(InventoryError, match="replica-0: its release lost is not kept"):
        back(seen, {"replica-0": "lost"})


def test_back_where_all_is_as_before_is_nothing():
    old = release(0, "old")
    assert not back({"replica-0": found(old, proofs=[Proof(old, 1.0, "")])}, {"replica-0": "old"})


def said(one, installed=True, up=False, settled=True, proven=0.0):
    kept = {one.id: {"release": json.loads(json.dumps(one.as_json())), "proven": proven, "answer": "x"}}
    return {"there": installed, "installed": one.id if installed else "", "settled": settled, "up": up,
            "kept": kept}  # fmt: skip


def test_what_the_hosts_say_of_a_replica_is_put_together():
    one = release(0, hosts=("a", "b"))
    seen = merged(
        {"a": {"replica-0": said(one, up=True, proven=3.0)}, "b": {"replica-0": said(one)}, "c": {}}
    )
    assert seen["replica-0"] == found(one, proofs=[Proof(one, 3.0, "x")])


def test_what_a_host_has_lost_is_nothing_to_go_back_to():
    one, other = release(0, hosts=("a", "b")), said(release(0, "other", ("a", "b")))
    seen = {"a": {"replica-0": said(one, proven=3.0)}, "b": {"replica-0": other}}
    assert merged(seen)["replica-0"].proofs == ()
    assert merged({"a": seen["a"]})["replica-0"].proofs == ()  # b is no longer in the inventory


@pytest.mark.parametrize(
    "b",
    [
        said(release(0, "old", ("a", "b"))),  # a run broke off between the two
        said(release(0, hosts=("a", "b")), settled=False),  # changed by hand
        said(release(0, hosts=("a", "b")), installed=False),  # nothing there
    ],
)
def test_hosts_that_do_not_have_the_same_are_not_settled(b):
    seen = merged({"a": {"replica-0": said(release(0, hosts=("a", "b")))}, "b": {"replica-0": b}})
    assert not seen["replica-0"].settled


def test_a_piece_that_is_left_on_a_host_is_seen():
    one = release(0)
    seen = merged({"a": {"replica-0": said(one, up=True)}, "z": {"replica-0": said(one)}})["replica-0"]
    assert not seen.settled and Step(one, seen).hosts == ("a", "z")


hosts = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True).map(tuple)
devices = st.sampled_from([(0,), (1,), (0, 1)])
releases = st.builds(release, st.integers(0, 4), st.sampled_from(["x", "y"]), hosts, devices)


@given(
    st.lists(releases, max_size=5, unique_by=lambda one: one.replica),
    st.dictionaries(st.sampled_from([f"replica-{n}" for n in range(5)]), st.tuples(releases, st.booleans())),
)
def test_every_replica_gets_its_release_once_and_no_batch_wants_a_gpu_that_a_later_one_has(wanted, there):
    seen = {name: found(replace(was, replica=name), up=up, settled=up) for name, (was, up) in there.items()}
    change = rollout(wanted, seen)
    steps = {step.name: step.new for step in change.steps}
    assert len(steps) == len(change.steps)
    for one in wanted:
        same = one.replica in seen and seen[one.replica].settled and seen[one.replica].release.id == one.id
        assert (one.replica in steps) is not same
    for place, batch in enumerate(change.batches):
        later = [step for other in change.batches[place + 1 :] for step in other.steps]
        for step in batch.steps:
            assert not [other for other in later if other.was and other.old.up and step.new.meets(other.was)]
    assert change.names == tuple(sorted(one.replica for one in wanted))
