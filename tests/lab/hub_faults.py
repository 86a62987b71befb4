"""Before a hub or a mirror, in tests: a line that stalls and breaks, and answers that are wrong."""

import asyncio
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientSession, web

MIB = 1 << 20
FOREVER = float("inf")


class Line(socketserver.ThreadingTCPServer):
    """Passes connections on; one that has sent `limit` bytes stalls until `release()`, which cuts it."""

    daemon_threads = allow_reuse_address = True
    block_on_close = False
    request_queue_size = 50

    def __init__(self, to: int, limit: float, port: int, host: str) -> None:
        super().__init__((host, port), _Passed)
        self.to, self.limit = (host, to), limit
        self.sent = 0  # bytes, over all connections
        self.stalled = threading.Semaphore(0)  # as many as stall
        self._ended = threading.Event()
        self._counting = threading.Lock()
        self._open: list[socket.socket] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{self.to[0]}:{self.port}"

    def wait(self, connections: int = 1) -> None:
        """Until so many have stalled."""
        for _ in range(connections):
            assert self.stalled.acquire(timeout=30), "nothing stalled"

    def release(self) -> None:
        self._ended.set()

    def down(self) -> None:
        """Nothing is accepted any more, and what is open is cut."""
        self.shutdown()
        self.server_close()
        self.release()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.append(request)
        super().process_request(request, client_address)

    def passed(self, count: int) -> None:
        with self._counting:
            self.sent += count

    def stall(self) -> None:
        self.stalled.release()
        self._ended.wait(60)


class _Passed(socketserver.BaseRequestHandler):
    server: Line

    def handle(self) -> None:
        with suppress(OSError), socket.create_connection(self.server.to) as hub:
            threading.Thread(target=self._ask, args=[hub], daemon=True).start()
            sent = 0
            while data := hub.recv(MIB // 4):
                self.request.sendall(data)
                self.server.passed(len(data))
                sent += len(data)
                if sent > self.server.limit:
                    return self.server.stall()

    def _ask(self, hub: socket.socket) -> None:
        with suppress(OSError):
            while data := self.request.recv(MIB):
                hub.sendall(data)
            hub.shutdown(socket.SHUT_WR)


@contextmanager
def line(to: int, limit: float = FOREVER, port: int = 0, host: str = "127.0.0.1") -> Iterator[Line]:
    """A line to a port of this machine, which has the address `host`; at the end it is down."""
    with Line(to, limit, port, host) as running:
        threading.Thread(target=running.serve_forever, args=[0.05], daemon=True).start()
        try:
            yield running
        finally:
            running.down()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


#: Given the path that was asked for, and the answer: changes it in place.
Spoil = Callable[[str, Answer], None]


@contextmanager
def spoiled(to: int, spoil: Spoil, host: str = "127.0.0.1") -> Iterator[str]:
    """The address, at `host`, of what answers as a server here does, but for what `spoil` changes."""
    loop = asyncio.new_event_loop()

    async def answer(request: web.Request) -> web.Response:
        url = f"http://127.0.0.1:{to}{request.raw_path}"
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        async with sessions[0].get(url, headers=headers) as said:
            made = Answer(said.status, dict(said.headers), await said.read())
        made.headers.pop("Transfer-Encoding", None)
        made.headers.pop("Content-Length", None)
        spoil(request.path, made)
        response = web.Response(status=made.status, headers=made.headers, body=made.body)
        if int(made.headers.get("Content-Length", 0)) > len(made.body):
            response.force_close()  # no more of it comes
        return response

    sessions: list[ClientSession] = []

    async def start() -> int:
        sessions.append(ClientSession(auto_decompress=False))
        app = web.Application()
        app.router.add_get("/{any:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, host, 0)
        await site.start()
        return int(runner.addresses[0][1])

    port = loop.run_until_complete(start())
    running = threading.Thread(target=loop.run_forever, daemon=True)
    running.start()
    try:
        yield f"http://{host}:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(sessions[0].close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        running.join(10)
