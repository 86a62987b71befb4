"""The load of the benchmarks: what is right is ok, and of what is not it says exactly what it is."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.lab.shell import wait_until
from tests.load import expected
from tests.load.client import Client
from tests.load.driver import Load, in_flight_at, summary, troubled
from tests.load.judge import judge

RIGHT = [7, 3, 9, 9, 2]


def event(tokens, finish=None):
    return f"data: {json.dumps({'choices': [{'token_ids': tokens, 'finish_reason': finish}]})}\n\n".encode()


ERROR = b'data: {"error": {"message": "EngineCore died"}}\n\n'
DONE = b"data: [DONE]\n\n"
GOOD = [event([token]) for token in RIGHT[:-1]] + [event(RIGHT[-1:], "length"), DONE]

#: What the server streams for each prompt; None breaks the connection off.
STREAMS = {
    "good": GOOD,
    "wrong": [event([7, 3, 1, 9]), event([2], "length"), DONE],
    "wrong and broken off": [event([7, 4]), None],
    "no end": GOOD[:-1],
    "aborted": [event([7, 3]), event([], "abort"), DONE],
    "broken off": [*GOOD[:2], None],
    "engine died": [*GOOD[:2], ERROR, DONE],
    "too few": [event([7, 3], "length"), DONE],
    "too many": [event([*RIGHT, 1], "length"), DONE],
    "no answer": [b"data: none\n\n"],
}
WHOLE = {
    "good": json.dumps({"choices": [{"token_ids": RIGHT, "finish_reason": "length"}]}).encode(),
    "wrong": json.dumps({"choices": [{"token_ids": [8, *RIGHT[1:]], "finish_reason": "length"}]}).encode(),
    "cut short": b'{"choices": [{"tok',
}


class Server(ThreadingHTTPServer):
    """An OpenAI server that answers as the prompt says; `pace` is the seconds before each event."""

    daemon_threads = True

    def __init__(self):
        self.asked, self.pace, self.keys = Counter(), 0.0, set()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["prompt"]
        self.server.asked[prompt] += 1
        self.server.keys.add(self.headers["Authorization"])
        if prompt.isdigit():
            self.refuse(int(prompt))
        elif prompt == "503 once" and self.server.asked[prompt] == 1:
            self.refuse(503, "1")
        elif prompt == "503 always":
            self.refuse(503, "0")
        elif prompt == "hangs up":
            self.close_connection = True
        elif body.get("stream"):
            self.stream(STREAMS.get(prompt, GOOD))
        else:
            self.whole(WHOLE.get(prompt, WHOLE["good"]), cut=prompt == "cut short")

    def refuse(self, status, again=None):
        self.send_response(status)
        if again:
            self.send_header("Retry-After", again)
        self.content(b'{"error": {"message": "no replica is free"}}')

    def whole(self, content, cut):
        self.send_response(200)
        self.content(content, 100 * cut)

    def content(self, content, lacking=0):
        self.send_header("Content-Length", str(len(content) + lacking))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = bool(lacking)

    def stream(self, events):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for one in events:
            time.sleep(self.server.pace)
            if one is None:
                self.close_connection = True
                return
            self.wfile.write(b"%x\r\n%s\r\n" % (len(one), one))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_):
        pass


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
