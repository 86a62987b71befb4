"""What a replica answers, asked by the program itself of a server that stands in for vLLM."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from roles import health
from roles.health import answer

SCRIPT = Path(health.__file__).with_name("question.py")


class Vllm(BaseHTTPRequestHandler):
    def do_GET(self):
        self.say({"data": [{"id": "tiny"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        well = self.headers["Authorization"] == "Bearer right"
        self.say(
            {"choices": [{"text": f" {body['model']} at {body['temperature']}\n"}]}, 200 if well else 401
        )

    def say(self, content, status=200):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    with HTTPServer(("127.0.0.1", 0), Vllm) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(("key", "said"), [("right", "' tiny at 0\\n'"), ("wrong", "")])
def test_the_answer_is_one_line_and_the_key_is_in_none(url, tmp_path, key, said):
    (tmp_path / "vllm.env").write_text(f"VLLM_API_KEY={key}\n")
    done = subprocess.run(
        [sys.executable, SCRIPT, url, tmp_path / "vllm.env"], capture_output=True, text=True
    )
    assert done.stdout.strip() == said and done.returncode == (not said)
    assert f"Bearer {key}" not in done.stderr and key not in done.stderr.split()


@pytest.mark.parametrize(
    ("out", "expected", "problem"),
    [
        ((True, "' Paris'\n", ""), None, None),
        ((True, "' Paris'\n", ""), "' Paris'", None),
        ((True, "' Rome'\n", ""), "' Paris'", "it answers ' Rome' where it answered ' Paris' with the same"),
        (
            (False, "", "Traceback\nrequests.ConnectionError: refused"),
            "' Paris'",
            "it does not answer: requests",
        ),
    ],
)
def test_an_answer_beside_the_expected_one(on_host, monkeypatch, out, expected, problem):
    monkeypatch.setattr(answer.remote, "run", lambda *_, **__: out)
    monkeypatch.setattr(answer.remote, "arguments", lambda _: {})
    monkeypatch.setattr(answer.remote, "failure", lambda _, said: said)
    heard, problems = [], []
    asked = {"python": "py", "url": "u", "secrets": "s", "expected": expected, "heard": heard.append}
    failed = on_host({}, executing=True).yielded(answer.answered, **asked)
    assert [one.startswith(problem) for one in failed] == ([True] if problem else [])
    on_host({}, executing=True).yielded(answer.answered, **asked, otherwise=problems.append)
    assert problems == failed
    assert heard == ([out[1].strip()] * 2 if out[0] else [])
