"""A real HAProxy on loopback, and replicas for it that say who they are, or how they are."""

import json
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests

from roles import gateway
from roles.gateway import Server, render
from tests.lab.shell import wait_until
from tests.lab.testing import REPOSITORY

ADMIN = Path(gateway.__file__).with_name("admin.py")


class Replica(ThreadingHTTPServer):
    """Answers with its name, /v1/slow after a while, /v1/stream in two parts; and hangs up on who idled.

    So does vLLM, after 5 s.
    """

    daemon_threads = True

    def __init__(self, name):
        self.name = name
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    used = False

    def do_GET(self):
        if self.used:
            self.close_connection = True
            return
        self.used = True
        if self.path == "/v1/slow":
            time.sleep(3)
        content = self.server.name.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.path.startswith("/v1/stream"):
            self.wfile.flush()
            time.sleep(4 if self.path.endswith("long") else 2)
        self.wfile.write(content)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_):
        pass


class Gateway:
    """A real HAProxy over two replicas, at these ports or ones of its own."""

    def __init__(self, run, ports=()):
        self.run, self.config, self.port = run, run / "haproxy.cfg", 18080
        self.replicas = [] if ports else [Replica("replica-0"), Replica("replica-1")]
        self.configure(ports or [replica.server_address[1] for replica in self.replicas])
        self.log = run / "haproxy.log"
        with self.log.open("w") as log:
            master = f"{run}/master.sock,mode,600"
            self.process = subprocess.Popen([shutil.which("haproxy"), "-W", "-S", master, "-f", self.config],
                                            stderr=subprocess.DEVNULL, stdout=log)  # fmt: skip
        wait_until(self.answers, 10, "HAProxy")

    def configure(self, ports, agents=(9, 9), models=(("m",), ("m",))):
        servers = [
            Server(f"replica-{number}", "127.0.0.1", *its)
            for number, its in enumerate(zip(ports, agents, (16, 16), models, strict=True))
        ]
        self.config.write_text(render(servers, self.port, str(self.run)))

    def answers(self):
        try:
            return self.get("/v1/x") and self.admin("servers")
        except (requests.RequestException, subprocess.CalledProcessError):
            return False

    def get(self, path, **headers):
        return requests.get(f"http://127.0.0.1:{self.port}{path}", headers=headers, timeout=20).text

    def post(self, body, **headers):
        return requests.post(f"http://127.0.0.1:{self.port}/v1/x", body, headers=headers, timeout=20).text

    def admin(self, verb, name="-"):
        words = [sys.executable, ADMIN, verb, name, self.run, self.config]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    def servers(self):
        return {one["name"]: one for one in json.loads(self.admin("servers"))}

    def reload(self):
        self.admin("reload", str(self.process.pid))


class Agent(socketserver.ThreadingTCPServer):
    """Says what roles/gang/node/engine.py says, word for word."""

    daemon_threads = True

    def __init__(self, said):
        self.said = said
        super().__init__(("127.0.0.1", 0), Says)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Says(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(f"{self.server.said}\n".encode())


def fake(port, pace):
    """A replica that answers as vLLM does, in a process of its own."""
    words = [sys.executable, "-m", "tests.fake_openai", str(port), str(pace)]
    process = subprocess.Popen(words, cwd=REPOSITORY)
    wait_until(lambda: process.poll() is None and answers(port), 10, f"a replica at {port}")
    return process


def answers(port):
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", port))
