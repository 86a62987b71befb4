"""Whether a replica that was replaced does as well as the others, from what was counted of each."""

import pytest

from roles.gateway.judge import judge
from roles.gateway.watch import between, total


def window(requests=100, errors=0, first=0.2, next=0.02):
    return {"requests": requests, "errors": errors, "first": first, "next": next}


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        (window(), None),
        (window(first=1.5, next=0.08), None),  # it came back without a prefix in its cache
        (window(first=1.7), "1.70 s to the first token, of the others 0.20 s"),
        (window(next=0.1), "0.10 s from token to token, of the others 0.02 s"),
        (window(errors=1), None),
        (window(errors=3), "3 of 100 requests failed, of the others 1 of 200"),
        (window(requests=0, first=None, next=None), None),
        (window(requests=19, first=60.0), None),
        (window(requests=20, first=60.0), "60.00 s to the first token, of the others 0.20 s"),
    ],
)
def test_one_beside_two_others(own, problem):
    windows = {"replica-0": own, "replica-1": window(errors=1), "replica-2": window()}
    assert judge("replica-0", windows) == problem


def test_alone_it_cannot_be_slow_but_can_fail():
    assert judge("replica-0", {"replica-0": window(first=60.0)}) is None
    assert judge("replica-0", {"replica-0": window(errors=5)}) == (
        "5 of 100 requests failed, of the others 0 of 0"
    )


def test_others_that_fail_as_often_excuse_it():
    assert judge("replica-0", {"replica-0": window(errors=50), "replica-1": window(errors=50)}) is None


def test_latencies_are_those_of_the_time_between_two_looks_also_when_vllm_began_anew():
    before = {"requests": 10, "errors": 1, "first": (5.0, 10.0), "next": (9.0, 100.0)}
    after = {"requests": 30, "errors": 1, "first": (7.0, 20.0), "next": (1.0, 10.0)}
    assert between(before, after) == {"requests": 20, "errors": 0, "first": 0.2, "next": None}


def test_a_metric_is_added_up_over_engines():
    text = (
        'vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1.5\n'
        'vllm:time_to_first_token_seconds_sum{engine="1",model_name="m"} 2.0\n'
        'vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 7.0\n'
    )
    assert total(text, "time_to_first_token_seconds_sum") == 3.5
    assert total("", "time_to_first_token_seconds_sum") == 0
