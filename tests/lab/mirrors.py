"""Copies of a weights folder for tests: on a web server, and in a store that speaks S3."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from aiohttp import web

BUCKET = "weights"


@dataclass
class Copy:
    """Where it is, and what a node is told of it."""

    address: str
    options: dict[str, str] = field(default_factory=dict)
    port: int = 0

    @property
    def said(self) -> dict[str, Any]:
        return {"mirror": self.address, "mirror_options": self.options}

    def by(self, port: int) -> "Copy":
        """The same, by another port."""
        options = {name: value.replace(str(self.port), str(port)) for name, value in self.options.items()}
        return Copy(self.address.replace(str(self.port), str(port)), options, port)


@contextmanager
def served(root: Path, login: str = "") -> Iterator[Copy]:
    """A web server of a folder that knows ranges.

    + login: name:password, for a folder that not all may read
    """
    loop = asyncio.new_event_loop()

    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        if login and request.headers.get("Authorization") != f"Basic {b64encode(login.encode()).decode()}":
            raise web.HTTPUnauthorized()
        answer: web.StreamResponse = await handler(request)
        return answer

    async def start() -> int:
        app = web.Application(middlewares=[check])
        app.router.add_static("/copy", root)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    port = loop.run_until_complete(start())
    running = threading.Thread(target=loop.run_forever, daemon=True)
    running.start()
    try:
        yield Copy(f"http://127.0.0.1:{port}/copy", port=port)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        running.join(10)


@contextmanager
def stored(root: Path, log: Path) -> Iterator[tuple[Copy, Any]]:
    """An S3 bucket with a copy of the folder, and a client that may write there.

    moto stands in for S3: a server of its own that checks the keys and signatures of who asks, once a
    user has been made.
    """
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "3"}
    with log.open("w") as said, subprocess.Popen(command, stdout=said, stderr=said, env=environment) as moto:
        try:
            _wait_until_up(port)
            how: dict[str, Any] = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
            keys = _keys(boto3.client("iam", aws_access_key_id="-", aws_secret_access_key="-", **how))
            signed = {f"aws_{name}": value for name, value in keys.items()}
            client = boto3.client("s3", **how, **signed)
            client.create_bucket(Bucket=BUCKET)
            for file in root.rglob("*"):
                if file.is_file():
                    client.upload_file(str(file), BUCKET, f"the copy/{file.relative_to(root)}")
            options = {"endpoint": how["endpoint_url"], "region": "us-east-1", **keys}
            yield Copy(f"s3://{BUCKET}/the copy", options, port), client
        finally:
            moto.terminate()


def _keys(iam: Any) -> dict[str, str]:
    """Of a user who may do all in the store."""
    anything = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [anything]})
    iam.create_user(UserName="us")
    iam.put_user_policy(UserName="us", PolicyName="all", PolicyDocument=policy)
    made = iam.create_access_key(UserName="us")["AccessKey"]
    return {"access_key_id": made["AccessKeyId"], "secret_access_key": made["SecretAccessKey"]}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_until_up(port: int, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise RuntimeError("moto's server did not start")
