"""Whether a replica that was replaced does as well as the others, from what was counted of each."""

import pytest

from roles.gateway.judge import judge
from roles.gateway.watch import between, total


def window(requests=100, errors=0, first=(0.2, 100), next=(0.02, 1000), since=None, down=0):
    since = since or {"first": first, "next": next}
    return {
        "requests": requests, "errors": errors, "down": down, "first": first, "next": next, "since": since,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        (window(), None),
        (window(first=(1.5, 99), next=(0.05, 99)), None),  # it came back without a prefix in its cache
        (window(first=(1.7, 99)), "1.70 s to the first token, of the others 0.20 s"),
        (window(requests=1, next=(0.07, 99)), "0.07 s from token to token, of the others 0.02 s"),
        (window(errors=1), None),
        (window(errors=3), "3 of 100 requests failed, of the others 1 of 200"),
        (window(requests=0, first=None, next=None), None),
        (window(requests=0, first=None, next=None, down=20), "it was down for 20 s"),
        (window(down=5), None),  # a check was late
        (window(first=(60.0, 19)), None),
        (window(first=(60.0, 20)), "60.00 s to the first token, of the others 0.20 s"),
    ],
)
def test_one_beside_two_others(own, problem):
    windows = {"replica-0": own, "replica-1": window(errors=1), "replica-2": window()}
    assert judge("replica-0", windows) == problem


def test_alone_it_cannot_be_slow_but_can_fail():
    assert judge("replica-0", {"replica-0": window(first=(60.0, 99))}) is None
    assert judge("replica-0", {"replica-0": window(errors=5)}) == (
        "5 of 100 requests failed, of the others 0 of 0"
    )


def test_others_that_got_too_few_meanwhile_are_taken_as_they_were_before():
    own, fresh = window(first=(9.0, 30)), {"first": None, "next": None}
    usual = {"first": (0.3, 5000), "next": (0.02, 9000)}
    for first in (None, (7.0, 3)):
        said = judge("replica-0", {"replica-0": own, "replica-1": window(first=first, since=usual)})
        assert said == "9.00 s to the first token, of the others 0.30 s"
    assert judge("replica-0", {"replica-0": own, "replica-1": window(first=None, since=fresh)}) is None


def test_who_waits_counts_although_only_those_that_had_their_turn_were_measured():
    now = {"requests": 0, "errors": 0, "down": 0, "next": (0, 0)}
    before, after = {**now, "first": (0, 0)}, {**now, "first": (1.0, 10.0), "waiting": 20.0}
    assert between(before, {**after, "waiting": 5.0}, 30)["first"] == [15.0, 15.0]
    assert between(before, after, 30)["first"] == [30, 30.0]  # nobody has waited longer
    assert between(before, {**after, "first": (0, 0)}, 30)["first"] == [30, 20.0]
    assert between(before, {**after, "waiting": 0}, 30)["first"] == [0.1, 10.0]


def test_others_that_fail_as_often_excuse_it():
    assert judge("replica-0", {"replica-0": window(errors=50), "replica-1": window(errors=50)}) is None


def test_latencies_are_those_of_the_time_between_two_looks_also_when_vllm_began_anew():
    before = {"requests": 10, "errors": 1, "down": 3, "first": (5.0, 10.0), "next": (9.0, 100.0)}
    after = {"requests": 30, "errors": 1, "down": 10, "first": (7.0, 20.0), "next": (1.0, 10.0), "waiting": 0}
    seen = between(before, after, 30)
    assert (seen["requests"], seen["errors"], seen["down"]) == (20, 0, 7)
    assert (seen["first"], seen["next"]) == ([0.2, 10.0], None)
    assert seen["since"] == {"first": [0.35, 20.0], "next": [0.1, 10.0]}


def test_a_metric_is_added_up_over_engines():
    text = (
        'vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1.5\n'
        'vllm:time_to_first_token_seconds_sum{engine="1",model_name="m"} 2.0\n'
        'vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 7.0\n'
    )
    assert total(text, "time_to_first_token_seconds_sum") == 3.5
    assert total("", "time_to_first_token_seconds_sum") == 0
