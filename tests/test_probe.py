"""The health probe, against real HTTP servers on the loopback."""

import importlib.util
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

SCRIPT = Path(__file__).parents[1] / "roles/health/probe.py"
KEY = "sk-right"
MODELS = {"object": "list", "data": [{"id": "tiny-llama", "object": "model"}]}
TOKEN = {"choices": [{"text": " 4"}], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}
EMPTY = {"choices": [{"text": ""}], "usage": {"prompt_tokens": 5, "completion_tokens": 0}}


@pytest.fixture(scope="module")
def probe():
    spec = importlib.util.spec_from_file_location("probe", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def no_proxy_outside(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def serving(models=MODELS, completion=TOKEN, hang=None):
    """What vLLM answers: (status, body) or a body; `hang` is the path that never answers."""
    asked, ended = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(models)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, json.loads(body)))
            self.reply(completion)

        def reply(self, what):
            if self.path == hang:
                ended.wait(30)
                return
            if self.headers["Authorization"] != f"Bearer {KEY}":
                what = (401, {"error": "Unauthorized"})
            status, body = what if isinstance(what, tuple) else (200, what)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_server_that_generates_is_healthy_and_was_asked_for_one_token(probe):
    with serving() as (url, asked):
        assert probe.ask(url, KEY) is None
    ((path, body),) = asked
    assert path == "/v1/completions"
    assert (body["model"], body["max_tokens"]) == ("tiny-llama", 1)


def test_without_a_listener_it_is_starting(probe):
    assert probe.ask(f"http://127.0.0.1:{free_port()}", KEY) == "starting"


def test_a_wrong_key_is_said_without_the_key(probe):
    with serving() as (url, _):
        reason = probe.ask(url, "sk-wrong")
    assert "401" in reason and "sk-" not in reason


def test_an_answer_without_a_token_is_not_health(probe):
    with serving(completion=EMPTY) as (url, _):
        assert probe.ask(url, KEY) == "it answers without a token"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"completion": (500, {"error": "EngineDeadError"})}, "500"),
        ({"completion": (404, {"error": "no such model"})}, "404"),
        ({"models": (503, {})}, "503"),
        ({"completion": b"<html>"}, "JSON"),
        ({"models": {"data": []}}, "IndexError"),
        ({"models": {"detail": "not vLLM"}}, "KeyError"),
        ({"completion": {"choices": []}}, "KeyError"),
        ({"models": []}, "TypeError"),  # some other server on this port
        ({"models": {"data": None}}, "TypeError"),
        ({"completion": {"usage": None}}, "TypeError"),
    ],
)
def test_any_other_answer_is_a_reason_and_no_crash(probe, answers, said):
    with serving(**answers) as (url, _):
        assert said in probe.ask(url, KEY)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions"])
def test_a_server_that_takes_a_request_and_never_answers_is_given_up(probe, monkeypatch, path):
    # The waiting itself is shortened; that there is an end to it is what is tested.
    patient = requests.Session.request

    def hurried(self, *args, timeout=None, **options):
        assert timeout is not None, "without a timeout it would wait for ever"
        return patient(self, *args, timeout=0.3, **options)

    monkeypatch.setattr(requests.Session, "request", hurried)
    with serving(hang=path) as (url, _):
        started = time.monotonic()
        assert "Timeout" in probe.ask(url, KEY)
    assert time.monotonic() - started < 5


def test_a_proxy_of_the_node_is_not_asked_for_its_own_server(probe, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with serving() as (url, _):
        assert probe.ask(url, KEY) is None


JOURNAL = """\
(EngineCore_DP0 pid=812) INFO 11-23 01:02:03 [gpu_model_runner.py:2602] Starting to load model /w/main...
(EngineCore_DP0 pid=812) INFO 11-23 01:02:04 [default_loader.py:267] Loading weights took 31.52 seconds
(EngineCore_DP0 pid=812) ERROR 11-23 01:02:05 [core.py:708] torch.OutOfMemoryError: CUDA out of memory.
(APIServer pid=700) INFO:     Shutting down
"""


@pytest.fixture
def node(tmp_path, monkeypatch):
    """node(journal, state): programs `journalctl` and `systemctl` that print these."""

    def made(journal, state="ActiveState=active\nInvocationID=abc\n"):
        (tmp_path / "journal").write_bytes(journal if isinstance(journal, bytes) else journal.encode())
        (tmp_path / "state").write_text(state)
        programs = {
            "journalctl": f'echo "$@" > {tmp_path}/asked; cat {tmp_path}/journal',
            "systemctl": f"cat {tmp_path}/state",
        }
        for name, text in programs.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return tmp_path

    return made


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (4, "torch.OutOfMemoryError: CUDA out of memory."),
        (2, "Loading weights took 31.52 seconds"),
        (1, "Starting to load model /w/main..."),
        (0, None),
    ],
)
def test_the_last_telling_line_of_a_journal_is_told(probe, node, lines, told):
    node("".join(JOURNAL.splitlines(True)[:lines]))
    assert probe.telling("x.service", {}) == told


def test_of_an_active_unit_only_this_invocation_is_read(probe, node):
    asked = node(JOURNAL) / "asked"
    probe.telling("x.service", {"ActiveState": "active", "InvocationID": "abc"})
    assert "-u x.service" in asked.read_text() and "_SYSTEMD_INVOCATION_ID=abc" in asked.read_text()
    probe.telling("x.service", {"ActiveState": "activating", "InvocationID": "abc"})
    assert "_SYSTEMD_INVOCATION_ID" not in asked.read_text()


def test_a_telling_line_is_cut_to_a_length_a_person_reads(probe, node):
    node("ValueError: " + "x" * 5000 + "\n")
    assert len(probe.telling("x.service", {})) == 300


def test_a_journal_with_bytes_that_are_no_text_is_read(probe, node):
    node(b"Loading weights 50% \xe2\x96\nValueError: half a block \xe2\x96\n")
    assert probe.telling("x.service", {}).startswith("ValueError: half a block")


def run(url, tmp_path, *units, secrets=f"VLLM_API_KEY={KEY}\n", **told):
    file = tmp_path / "vllm.env"
    file.write_text(secrets)
    state = tmp_path / "state.json"
    if told:
        state.write_text(json.dumps(told))
    command = [sys.executable, SCRIPT, url, file, "0", state, *units]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert KEY not in done.stdout
    return json.loads(done.stdout)


def test_the_script_says_that_it_generates(tmp_path):
    with serving() as (url, _):
        assert run(url, tmp_path, "a.service") == {"generates": True, "falls": 0, "reason": ""}


FALL = {"when": 1.0, "why": "node2: rackserve-replica-0-ray ended (signal 9)"}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"state": "starting", "why": "", "recent": []}, "starting"),
        ({"state": "starting", "why": "", "recent": [FALL]}, f"starting again after {FALL['why']}"),
        ({"state": "waiting", "why": "nothing is heard of node2", "recent": [FALL]},
         "waiting nothing is heard of node2"),
        ({"state": "stopping", "why": FALL["why"], "recent": [FALL]}, f"stopping {FALL['why']}"),
    ],
)  # fmt: skip
def test_the_script_says_how_the_replica_is_and_why_from_the_journal_and_counts_falls(
    node, tmp_path, told, said
):
    url = f"http://127.0.0.1:{free_port()}"
    node(JOURNAL, state="ActiveState=inactive\nInvocationID=abc\n")  # stopped since, and not forgotten
    assert run(url, tmp_path, "a.service", "b.service", falls=6, **told) == {
        "generates": False,
        "falls": 6,
        "reason": f"{said}: torch.OutOfMemoryError: CUDA out of memory.",
    }
    node("")
    silent = run(url, tmp_path, "a.service", falls=6, **told)
    assert silent["reason"] == ("starting" if said == "starting" else f"{said}: starting")


def test_the_script_without_a_telling_line_and_a_gang_says_starting(node, tmp_path):
    node("", state="")
    seen = run(f"http://127.0.0.1:{free_port()}", tmp_path, "a.service")
    assert seen == {"generates": False, "falls": 0, "reason": "starting"}


def test_a_server_that_comes_up_meanwhile_is_waited_for(probe):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    threading.Timer(0.5, lambda: (server.bind(("127.0.0.1", port)), server.listen())).start()
    started = time.monotonic()
    probe.await_listener(url, 10)
    assert 0.4 < time.monotonic() - started < 5
    server.close()


def test_a_server_that_does_not_come_up_is_waited_for_no_longer_than_asked(probe):
    started = time.monotonic()
    probe.await_listener(f"http://127.0.0.1:{free_port()}", 0.5)
    assert 0.4 < time.monotonic() - started < 5
