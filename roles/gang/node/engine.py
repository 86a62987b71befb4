"""Runs on a node, beside head.py: whether the vLLM of this node gets on.

It gets on while its engine takes steps, and an idle one while it answers with a token. So a busy engine,
whose answer may be long in coming, is never judged hung, and one that hangs is, though its /health says 200.
"""

import http.client
import json
import re
import time

LONGEST_COMPILE = 1800.0  # seconds that a compiler may be the reason

#: What vLLM's engine tells after a step, and nobody else. While it only reads a long prompt, step by
#: step, no token is counted; its KV cache fills. Not the count of iterations: requests that are given up
#: may count there, ours too (vllm#55940). Nor is "running" above 0 a sign of work: it stays when all that
#: run are given up (vllm#29928).
STEP = re.compile(
    r"^vllm:(?:iteration_tokens_total_sum|kv_cache_usage_perc|num_requests_running|num_requests_waiting)"
    r"[{ ].*", re.MULTILINE)  # fmt: skip
TOKENS = "vllm:iteration_tokens_total_sum"


class Engine:
    """What is known of the vLLM on a port of this node, in one run of it."""

    def __init__(self, port, key, times):
        self.port, self.times = port, times
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self.listens, self.generates, self.said, self.problem = False, False, [], "no token yet"
        self.well_at = None  # a step or a token
        self.dead_at, self.death = None, ""
        self.excused_at = self.born = time.monotonic()

    def says(self):
        """A line of HAProxy's agent-check protocol."""
        if not self.listens:
            return "down #not listening"
        if self.dead_at:
            return f"down #{self.death}"
        if self.well_at is None:
            return f"down #{self.problem}"
        if time.monotonic() - self.well_at > self.times["patience"]:
            return f"down #{still(self.times['patience'])}"
        return "up"

    def dead(self):
        """Why it will never answer again, or None."""
        gone = self.dead_at is not None and time.monotonic() - self.dead_at >= self.times["dead"]
        return self.death if gone else None

    def hangs(self):
        """Why it is taken to hang, or None."""
        last = max(self.well_at or self.born, self.excused_at)
        return still(self.times["hang"]) if time.monotonic() - last > self.times["hang"] else None

    def compiles(self):
        """A compiler runs on one of its nodes: kernels that were not there may take minutes."""
        now = time.monotonic()
        if now - (self.well_at or self.born) < LONGEST_COMPILE:
            self.excused_at = now

    def look(self):
        """Whether it listens and lives, and whether it took a step since the last look."""
        try:
            status, _ = self.request("GET", "/health")
            said = STEP.findall(self.content("GET", "/metrics").decode())
        except ConnectionRefusedError:
            if self.listens or self.dead_at:
                self.dies("its API port refuses connections")
            self.listens = False
            return
        except (OSError, http.client.HTTPException, ValueError):
            return  # it listens and does not answer: time decides
        if self.listens and said != self.said:
            self.well_at = time.monotonic()
            self.generates = self.generates or tokens(said) != tokens(self.said)
        self.listens, self.said = True, said
        if status == 503:
            self.dies("its /health answers 503")
        else:
            self.dead_at = None

    def dies(self, why):
        self.dead_at, self.death = self.dead_at or time.monotonic(), why

    def generate(self):
        """Ask for one token, where no step was seen lately."""
        if not self.listens or (self.well_at and time.monotonic() - self.well_at < self.times["idle"]):
            return
        try:
            model = json.loads(self.content("GET", "/v1/models"))["data"][0]["id"]
            body = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
            answer = json.loads(self.content("POST", "/v1/completions", json.dumps(body)))
            if answer["usage"]["completion_tokens"] >= 1:
                self.generates, self.well_at = True, time.monotonic()
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            self.problem = plain(f"{type(error).__name__} {error}")

    def content(self, method, path, body=None):
        status, content = self.request(method, path, body)
        if status != 200:
            raise ValueError(f"{path} answered {status}")
        return content

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.times["patience"])
        try:
            connection.request(method, path, body, self.headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def still(seconds):
    return f"no step and no token for {seconds:.0f} s"


def tokens(said):
    return [line for line in said if line.startswith(TOKENS)]


def plain(text):
    """As HAProxy takes it after a #."""
    return re.sub(r"[^ -~]|#", " ", text)[:80]
