"""The load of the benchmarks: what is right is ok, and of what is not it says exactly what it is."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest

from tests.fake_openai import RIGHT, Server
from tests.lab.shell import wait_until
from tests.load import expected
from tests.load.client import Client
from tests.load.driver import Load, in_flight_at, summary, troubled
from tests.load.judge import judge


@pytest.fixture
def server():
    found = Server()
    yield found
    found.shutdown()
    found.server_close()


def judged(server, prompt, stream=True):
    asked = Client(server.url, "key").ask({"prompt": prompt, "stream": stream})
    return *judge(RIGHT, asked.answer), asked


@pytest.mark.parametrize(
    ("prompt", "outcome", "why"),
    [
        ("good", "ok", ""),
        ("wrong", "wrong", "token 2 is 1, not 9"),
        ("wrong and broken off", "wrong", "token 1 is 4, not 3"),
        ("no end", "truncated", "after 5 of 5 tokens: no [DONE]"),
        ("aborted", "truncated", "after 2 of 5 tokens: finish_reason abort"),
        ("broken off", "truncated", "after 2 of 5 tokens: IncompleteRead"),
        ("engine died", "truncated", "after 2 of 5 tokens: EngineCore died"),
        ("too few", "wrong", "2 tokens, not 5"),
        ("too many", "wrong", "6 tokens, not 5"),
        ("no answer", "truncated", "after 0 of 5 tokens: not an answer of OpenAI's API: b'none"),
        ("500", "failed", "500: no replica is free"),
        ("hangs up", "failed", "no answer: RemoteDisconnected"),
    ],
)
def test_a_stream_is_what_it_is(server, prompt, outcome, why):
    found, said, asked = judged(server, prompt)
    assert (found, said[: len(why)]) == (outcome, why)
    assert asked.start <= asked.sent <= asked.end and asked.retries == 0


@pytest.mark.parametrize(
    ("prompt", "outcome", "why"),
    [
        ("good", "ok", ""),
        ("wrong", "wrong", "token 0 is 8, not 7"),
        ("cut short", "truncated", "after 0 of 5 tokens: IncompleteRead"),
        ("502", "failed", "502: no replica is free"),
    ],
)
def test_an_answer_in_one_piece_is_what_it_is(server, prompt, outcome, why):
    found, said, _ = judged(server, prompt, stream=False)
    assert (found, said[: len(why)]) == (outcome, why)


def test_who_is_told_to_come_back_does_so_when_it_was_told(server):
    outcome, _, asked = judged(server, "503 once")
    assert (outcome, asked.retries, server.asked["503 once"]) == ("ok", 1, 2)
    assert asked.sent - asked.start >= 1


def test_who_is_always_told_to_come_back_gives_up_after_two_times(server):
    outcome, why, asked = judged(server, "503 always")
    assert (outcome, why) == ("failed", "503: no replica is free")
    assert (asked.retries, server.asked["503 always"]) == (2, 3)
    assert judged(server, "503")[2].retries == 0  # no Retry-After


def test_nobody_there_is_a_failure(server):
    server.shutdown()
    server.server_close()
    outcome, why, _ = judged(server, "good")
    assert (outcome, why[:34]) == ("failed", "no answer: ConnectionRefusedError:")


def test_a_connection_goes_on_after_an_answer_that_was_cut_off(server):
    client = Client(server.url, "key")
    ports = [
        client.ask({"prompt": prompt, "stream": True}).port
        for prompt in ("good", "good", "broken off", "good")
    ]
    assert ports[0] == ports[1] == ports[2] != ports[3]


def test_the_expected_answer_of_a_server_that_gives_too_little_is_refused(server, tmp_path):
    with pytest.raises(SystemExit, match="no expected answer to .*5 tokens"):
        expected.record(tmp_path / "expected.json", server.url, "key", "m", 6)


@pytest.fixture
def load(server, tmp_path):
    """load(prompts): ten users of locust who ask for them until its block ends."""
    file = tmp_path / "expected.json"

    def made(*prompts):
        file.write_text(json.dumps({prompt: RIGHT for prompt in prompts}))
        return Load(tmp_path / "load", server.url, "own key", model="m", expected=file, users=10,
                    short=(5, 5), long=(5, 5), limit=60)  # fmt: skip

    return made


def test_locust_ends_with_the_last_answers_and_counts_what_is_under_way(server, load):
    server.pace = 0.3
    with load("good") as running:
        wait_until(lambda: running.in_flight == 10, 10, "all users to ask")
        middle = time.time()
        running.wait(lambda: running.ended >= 20, 20, "20 answers")
    lines = running.lines()
    assert summary(lines)["ok"] == len(lines) == server.asked["good"] >= 30
    assert server.keys == {"Bearer own key"}
    assert in_flight_at(lines, middle) == 10
    assert {line["kind"] for line in lines} == {"short", "short-stream", "long", "long-stream"}
    assert "own key" not in (running.folder / "plan.json").read_text()


def test_locust_counts_exactly_what_went_wrong(server, load):
    with load("good", "wrong", "503 once", "500") as running:
        running.wait(lambda: running.ended >= 60, 30, "60 answers")
    lines = running.lines()
    wrong = server.asked["wrong"]
    total = sum(server.asked.values()) - 1
    assert summary(lines) | {"tokens": 0, "longest, s": 0} == {
        "requests": total, "ok": total - wrong - server.asked["500"], "wrong": wrong, "truncated": 0,
        "failed": server.asked["500"], "retried": 1, "tokens": 0, "longest, s": 0,
    }  # fmt: skip
    assert Counter(line["outcome"] for line in troubled(lines)) == {
        "wrong": wrong, "failed": server.asked["500"],
    }  # fmt: skip
