"""Who tells the gateway how a replica is: busy, idle, hung, gone."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from roles.health import agent


class Vllm(ThreadingHTTPServer):
    """As much of vLLM as the agent asks."""

    daemon_threads = True

    def __init__(self):
        self.steps, self.cache, self.generates, self.asked = 0, 0.0, True, []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/metrics":
            said = f'vllm:iteration_tokens_total_count{{engine="0"}} {self.server.steps}.0\n'
            said += f'vllm:kv_cache_usage_perc{{engine="0"}} {self.server.cache}\n'
            looked = time.monotonic()  # what an engine that hangs goes on telling
            self.answer(200, f"# HELP x\nprocess_cpu_seconds_total {looked}\n{said}")
        else:
            self.answer(200, json.dumps({"data": [{"id": "model"}]}))

    def do_POST(self):
        self.server.asked.append(self.headers["Authorization"])
        well = self.server.generates
        self.answer(200 if well else 500, json.dumps({"usage": {"completion_tokens": 1}}))

    def answer(self, status, content):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def vllm():
    server = Vllm()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(agent, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def replica(vllm):
    made = agent.Replica(vllm.server_address[1], "key")
    made.look()
    return made


def test_a_replica_is_up_once_it_has_answered_with_a_token(vllm, clock):
    own = replica(vllm)
    assert own.state() == "down #no token yet"
    own.generate()
    assert (own.state(), vllm.asked) == ("up", ["Bearer key"])


@pytest.mark.parametrize(("what", "by"), [("steps", 1), ("cache", 0.01)])
def test_a_busy_engine_is_up_and_is_asked_for_nothing_also_while_it_only_reads_a_prompt(
    vllm, clock, what, by
):
    own = replica(vllm)
    vllm.generates = False
    for _ in range(20):
        clock[0] += 3
        setattr(vllm, what, getattr(vllm, what) + by)
        own.look()
        own.generate()
        assert own.state() == "up"
    assert vllm.asked == []


def test_an_engine_that_takes_no_step_and_answers_nothing_hangs(vllm, clock):
    own = replica(vllm)
    own.generate()
    vllm.generates = False
    clock[0] += agent.PATIENCE + 1
    own.look()
    own.generate()
    assert own.state() == "down #no step and no token for 20 s"
    vllm.steps += 1
    own.look()
    assert own.state() == "up"


def test_a_replica_that_does_not_listen_is_down_at_once(vllm, clock):
    own = replica(vllm)
    own.generate()
    vllm.shutdown()
    vllm.server_close()
    own.look()
    assert own.state() == "down #not listening"


def test_why_it_is_down_is_one_line_that_haproxy_reads(vllm, clock):
    vllm.generates = False
    own = replica(vllm)
    own.generate()
    assert own.state() == "down #ValueError /v1/completions answered 500"
