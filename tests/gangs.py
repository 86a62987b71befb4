"""Gangs on this machine, for their tests: agents as processes, a vLLM and a systemctl of the tests' own."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "roles/gang/node/gang.py"
RAY, VLLM = "rackserve-replica-0-ray.service", "rackserve-replica-0-vllm.service"
QUICK = {
    "beat": 0.1, "silence": 2.0, "look": 0.1, "idle": 0.3, "patience": 0.6, "hang": 1.2, "dead": 0.3,
    "settle": 0.3, "backoff": 0.5, "longest": 1.0, "stable": 300.0,
}  # fmt: skip

#: Stands in for systemd: a unit is a file with what `systemctl show` would say, and nothing runs in it.
SYSTEMCTL = """#!/bin/sh
cd "$UNITS"
verb=$1; shift
case $1 in --*) shift ;; esac
test $verb = show || echo $verb "$@" >> commands
test $verb != stop || test ! -e slow || sleep 0.5
say() {
    printf 'Id=%s\\nActiveState=%s\\nResult=%s\\nExecMainStatus=%s\\nInvocationID=%s\\n' "$@" > $1.new
    mv $1.new $1
}
for unit; do
    test -e $unit || say $unit inactive success 0 ''
    { read -r _; IFS== read -r _ active; read -r _; read -r _; IFS== read -r _ invocation; } < $unit
    case $verb,$active in
        show,*) cat $unit; echo ;;
        start,active) ;;
        start,*)
            read -r invocation < /proc/sys/kernel/random/uuid
            if test -e fails; then say $unit failed exit-code 1 $invocation
            else say $unit active success 0 $invocation; fi ;;
        kill,active) say $unit failed signal 9 $invocation ;;
        stop,active) say $unit inactive success 0 $invocation ;;
        reset-failed,failed) say $unit inactive success 0 $invocation ;;
    esac
done
"""


def until(true, what, seconds=10):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.02)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Vllm(ThreadingHTTPServer):
    """As much of vLLM as the head asks: it counts tokens, and says 503 once its engine is dead."""

    daemon_threads = True

    def __init__(self, port=0):
        self.tokens, self.iterations, self.running, self.cache = 0, 0, 0, 0.0
        self.generates, self.dead, self.asked, self.awake = True, False, [], threading.Event()
        self.awake.set()  # cleared: takes requests for tokens and does not answer
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, args=[0.02], daemon=True).start()

    @property
    def port(self):
        return self.server_address[1]

    def close(self):
        self.awake.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        own = self.server
        if self.path == "/metrics":
            said = (
                f'vllm:iteration_tokens_total_sum{{engine="0"}} {own.tokens}.0\n'
                f'vllm:iteration_tokens_total_count{{engine="0"}} {own.iterations}.0\n'
                f'vllm:num_requests_running{{engine="0"}} {own.running}.0\n'
                f'vllm:kv_cache_usage_perc{{engine="0"}} {own.cache}\n'
            )
            looked = time.monotonic()  # what an engine that hangs goes on telling
            self.answer(200, f"# HELP x\nprocess_cpu_seconds_total {looked}\n{said}")
        elif self.path == "/health":
            self.answer(503 if own.dead else 200, "")
        else:
            self.answer(200, json.dumps({"data": [{"id": "model"}]}))

    def do_POST(self):
        self.server.asked.append(self.headers["Authorization"])
        self.server.awake.wait()
        well = self.server.generates
        self.answer(200 if well else 500, json.dumps({"usage": {"completion_tokens": 1}}))

    def answer(self, status, content):
        try:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content.encode())
        except OSError:
            pass  # who asked has gone

    def log_message(self, *_):
        pass


class Node:
    """One agent, and the units that its systemctl keeps."""

    def __init__(self, folder, config):
        self.folder, self.config, self.process = folder, config, None
        for made in (folder / "units", folder / "bin"):
            made.mkdir(parents=True)
        (folder / "bin/systemctl").write_text(SYSTEMCTL)
        (folder / "bin/systemctl").chmod(0o755)
        (folder / "gang.json").write_text(json.dumps({**config, "folder": str(folder / "run")}))

    def start(self, **environment):
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        with open(self.folder / "journal", "a") as journal:
            self.process = subprocess.Popen(
                [sys.executable, "-u", PROGRAM, self.folder / "gang.json"], stdout=journal, stderr=journal,
                env={**os.environ, "PATH": path, "UNITS": str(self.folder / "units"), **environment},
            )  # fmt: skip

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self):
        """As systemctl stop would."""
        self.process.terminate()
        return self.process.wait(20)

    def signal(self, name):
        self.process.send_signal(getattr(signal, name))

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()

    @property
    def journal(self):
        return (self.folder / "journal").read_text()

    def unit(self, name):
        try:
            lines = (self.folder / "units" / name).read_text().splitlines()
        except FileNotFoundError:
            return {}
        return dict(line.split("=", 1) for line in lines)

    def runs(self):
        """{unit: its invocation} of what runs."""
        rows = {name: self.unit(name) for name in (RAY, VLLM)}
        return {name: row["InvocationID"] for name, row in rows.items() if row.get("ActiveState") == "active"}

    def says(self, name, state, result, invocation, **more):
        """What systemd is to say of a unit from now on."""
        row = {"Id": name, "ActiveState": state, "Result": result, "ExecMainStatus": "9",
               "InvocationID": invocation, **more}  # fmt: skip
        (self.folder / "units/said").write_text("".join(f"{key}={value}\n" for key, value in row.items()))
        (self.folder / "units/said").replace(self.folder / "units" / name)

    def die(self, name):
        self.says(name, "failed", "signal", self.unit(name)["InvocationID"])

    def said(self, word):
        """Whether a word to the units' systemd (fails, slow) holds."""
        return self.folder / "units" / word

    @property
    def commands(self):
        return (self.folder / "units/commands").read_text().splitlines()


class Gang:
    """A replica of `count` nodes with a Ray each, vLLM on the first."""

    def __init__(self, folder, count=2, awaits=None, **times):
        self.vllm, self.folder = Vllm(), folder
        self.port, self.health = free_port(), free_port()
        names = [f"node{n}" for n in range(1, count + 1)]
        (folder / "vllm.env").write_text("VLLM_API_KEY=key\n")
        self.nodes = [Node(folder / name, self.config(name, names, awaits, times)) for name in names]

    def config(self, name, names, awaits, times):
        first = name == names[0]
        parts = [{"unit": RAY, "awaits": None if first else awaits, "needs": ["raylet", "ray::RayWorker"]}]
        config = {
            "host": name, "members": names, "head": ["127.0.0.1", self.port], "token": "of this gang",
            "units": [*parts, {"unit": VLLM, "awaits": None}] if first else parts,
            "user": pwd.getpwuid(os.getuid()).pw_name, "times": {**QUICK, **times},
        }  # fmt: skip
        own = {"secrets": str(self.folder / "vllm.env"), "api": self.vllm.port,
               "health": ["127.0.0.1", self.health]}  # fmt: skip
        return {**config, **(own if first else {})}

    @property
    def head(self):
        return self.nodes[0]

    def start(self):
        for node in self.nodes:
            node.start()
        return self

    def state(self):
        try:
            return json.loads((self.head.folder / "run/state.json").read_text())
        except FileNotFoundError:
            return {"state": None, "epoch": None, "falls": 0, "recent": []}

    def awaits(self, state, seconds=10, **more):
        """Wait for the state, and for what else is said of it."""

        def there():
            told = self.state()
            return told["state"] == state and all(told[name] == value for name, value in more.items())

        until(there, lambda: f"not {state} {more}: {json.dumps(self.state())}\n{self.journals()}", seconds)
        return self.state()

    def journals(self):
        return "\n".join(f"{node.folder.name}:\n{node.journal}" for node in self.nodes)

    def says(self):
        """What a gateway is told; None when nobody listens."""
        try:
            with socket.create_connection(("127.0.0.1", self.health), timeout=2) as sock:
                return sock.makefile().readline().strip()
        except ConnectionRefusedError:
            return None

    def close(self):
        for node in self.nodes:
            node.close()
        self.vllm.close()
