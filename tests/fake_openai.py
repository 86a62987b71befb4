"""An OpenAI server for tests of those who ask one: it answers as the prompt says, also badly.

python -m tests.fake_openai PORT PACE
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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

    def __init__(self, port=0, pace=0.0):
        self.asked, self.pace, self.keys = Counter(), pace, set()
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request, client_address):
        """Clients may leave when they like."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """/health, as a gateway asks for it."""
        self.send_response(200)
        self.content(b"{}")

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
        time.sleep(self.server.pace * len(RIGHT))
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


if __name__ == "__main__":
    Server(int(sys.argv[1]), float(sys.argv[2]))
    threading.Event().wait()
