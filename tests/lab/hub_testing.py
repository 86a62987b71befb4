"""A running hub to test against, and a relay in front of it that cuts a download."""

import hashlib
import http.client
import socket
import socketserver
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

OPEN, GATED = "lab/open", "lab/gated"
READER, STRANGER = "hf_reader", "hf_stranger"
MIB = 1 << 20
# The client keeps what it was sent in chunks of 10 MiB, so a file has to be longer to be resumed.
SHARD = "model-00001-of-00001.safetensors"
SHARD_BYTES = 24 * MIB
KEPT_BYTES = 10 * MIB
WHEEL = "labtoy-1.0+cpu-py3-none-any.whl"


@dataclass(frozen=True)
class RunningHub:
    """A hub in a process of its own."""

    port: int
    root: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> HfApi:
        return HfApi(endpoint=self.url, token=False)

    def download(self, repository: str, to: Path, **options: Any) -> Any:
        options = {"endpoint": self.url, "token": False, **options}
        return snapshot_download(repository, local_dir=to / "model", cache_dir=to / "cache", **options)


@contextmanager
def running_hub(base: Path) -> Iterator[RunningHub]:
    """Fill `base` with repositories, tokens and a wheel, and serve it on a free port."""
    hub = RunningHub(_free_port(), base / "root", base / "hub.log")
    _fill(base)
    with (
        hub.log.open("w") as log,
        subprocess.Popen(_command(base, hub.port), stderr=log, cwd=_root()) as process,
    ):
        try:
            _wait_until_healthy(hub, process)
            yield hub
        finally:
            process.terminate()


@contextmanager
def cutting_relay(hub: RunningHub, limit: int) -> Iterator["CuttingRelay"]:
    """Stand in front of a hub; `limit` is in bytes."""
    with CuttingRelay(hub.port, limit) as relay:
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        yield relay
        relay.shutdown()


def get(hub: RunningHub, path: str, **headers: str) -> tuple[int, Any, bytes]:
    """Ask without the client, whose paths are always proper ones."""
    with closing(http.client.HTTPConnection("127.0.0.1", hub.port, timeout=10)) as connection:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _command(base: Path, port: int) -> list[str]:
    folders = [
        "--root",
        f"{base}/root",
        "--wheelhouse",
        f"{base}/wheels",
        "--tokens",
        f"{base}/tokens",
    ]
    return [
        sys.executable,
        "-W",
        "error",
        "-m",
        "tests.lab.hub",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *folders,
    ]


def _root() -> Path:
    return Path(__file__).parents[2]


def _fill(base: Path) -> None:
    for repository in (OPEN, GATED):
        make_model(base / "root" / repository)
    make_model(base / "root" / OPEN / ".revisions" / "v1", layers=1)
    (base / "root" / GATED / ".gated").touch()
    (base / "tokens").write_text(f"{READER} lab/*\n{STRANGER} -\n")
    _make_wheel(base / "wheels" / WHEEL)


def make_model(folder: Path, layers: int = 2) -> None:
    (folder / "extra").mkdir(parents=True)
    (folder / "config.json").write_text(f'{{"num_hidden_layers": {layers}}}')
    (folder / "extra" / "notes.txt").write_text("notes\n")
    (folder / SHARD).write_bytes(bytes(range(256)) * (SHARD_BYTES // 256))


def _make_wheel(path: Path) -> None:
    path.parent.mkdir()
    info = "labtoy-1.0+cpu.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: labtoy\nVersion: 1.0+cpu\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_until_healthy(hub: RunningHub, process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            if get(hub, "/healthz")[0] == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the hub did not start: {hub.log.read_text()}")


class CuttingRelay(socketserver.ThreadingTCPServer):
    """Passes connections on to the hub, and cuts the first one that has sent `limit` bytes."""

    daemon_threads = True

    def __init__(self, port: int, limit: int) -> None:
        super().__init__(("127.0.0.1", 0), _Relayed)
        self.port, self.limit, self.cuts = port, limit, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Relayed(socketserver.BaseRequestHandler):
    server: CuttingRelay

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port)) as hub, suppress(OSError):
            threading.Thread(target=self._pass_requests, args=[hub], daemon=True).start()
            self._pass_answers(hub)

    def _pass_requests(self, hub: socket.socket) -> None:
        with suppress(OSError):
            while data := self.request.recv(MIB):
                hub.sendall(data)
            hub.shutdown(socket.SHUT_WR)

    def _pass_answers(self, hub: socket.socket) -> None:
        sent = 0
        while data := hub.recv(MIB):
            self.request.sendall(data)
            sent += len(data)
            if sent > self.server.limit and not self.server.cuts:
                self.server.cuts += 1
                return
