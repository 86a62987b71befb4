"""Runs on a replica's first node, on the node's own Python: tells a gateway whether the replica generates.

    agent.py PORT ADDRESS AGENT_PORT

Answers each connection with a line of HAProxy's agent-check protocol: `up`, or `down #why`. A
replica is up while its engine takes steps, and an idle one while it answers with a token. So a busy
engine, whose answer may be long in coming, is never judged hung, and one that hangs is, though
its /health says 200. VLLM_API_KEY is in the environment.
"""

import http.client
import json
import os
import re
import socketserver
import sys
import threading
import time

LOOK = 3.0  # seconds between two looks at the engine's steps
IDLE = 5.0  # seconds without a step after which a token is asked for
PATIENCE = 20.0  # seconds without a step or a token after which the engine hangs

#: What vLLM's engine tells after a step, and nobody else. While it only reads a long prompt, step by
#: step, nothing is counted; its KV cache fills.
STEP = re.compile(
    r"^vllm:(?:iteration_tokens_total_count|kv_cache_usage_perc|num_requests_running|num_requests_waiting)"
    r"[{ ].*", re.MULTILINE)  # fmt: skip


class Replica:
    """What is known of the vLLM on a port of this node."""

    def __init__(self, port, key):
        self.port = port
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self.listens, self.said, self.well_at = False, [], None
        self.problem = "no token yet"

    def state(self):
        if not self.listens:
            return "down #not listening"
        if self.well_at is None:
            return f"down #{self.problem}"
        if time.monotonic() - self.well_at > PATIENCE:
            return f"down #no step and no token for {PATIENCE:.0f} s"
        return "up"

    def look(self):
        """Whether it listens, and whether it took a step since the last look."""
        try:
            said = STEP.findall(self.request("GET", "/metrics").decode())
        except ConnectionRefusedError:
            self.listens, self.well_at = False, None
            return
        except (OSError, http.client.HTTPException, ValueError):
            return  # it listens and does not answer: PATIENCE decides
        if self.listens and said != self.said:
            self.well_at = time.monotonic()
        self.listens, self.said = True, said

    def generate(self):
        """Ask for one token, where no step was seen lately."""
        if not self.listens or (self.well_at and time.monotonic() - self.well_at < IDLE):
            return
        try:
            model = json.loads(self.request("GET", "/v1/models"))["data"][0]["id"]
            body = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
            answer = json.loads(self.request("POST", "/v1/completions", json.dumps(body)))
            if answer["usage"]["completion_tokens"] >= 1:
                self.well_at = time.monotonic()
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            self.problem = re.sub(r"[^ -~]|#", " ", f"{type(error).__name__} {error}")[:80]

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, self.headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise ValueError(f"{path} answered {answer.status}")
            return content
        finally:
            connection.close()


def every(seconds, act):
    def forever():
        while True:
            act()
            time.sleep(seconds)

    threading.Thread(target=forever, daemon=True).start()


def main(port, address, agent_port):
    replica = Replica(int(port), os.environ["VLLM_API_KEY"])
    # Whoever asks before anything is known finds nobody, and HAProxy leaves the replica as it was.
    replica.look()
    replica.generate()

    class Answer(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(f"{replica.state()}\n".encode())

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    every(LOOK, replica.look)
    every(1.0, replica.generate)
    with Server((address, int(agent_port)), Answer) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
