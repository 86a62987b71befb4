"""What other ways of copying a snapshot run on each node; what it ends with was checked.

    python -m tests.bench.onnode check FILES FOLDER
    python -m tests.bench.onnode pull FILES FOLDER URL REPOSITORY
    python -m tests.bench.onnode chain FILES FOLDER PORT [NEXT]     receive, write, forward to the next
    python -m tests.bench.onnode first FILES FOLDER PORT NEXT       the chain's beginning

FILES is JSON: {name: {"size": bytes, "sha256": hex}}.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

BLOCK = 1 << 18


def check(files: dict, folder: Path) -> None:
    for name, file in files.items():
        compare(name, file, sha256(folder / name))


def compare(name: str, file: dict, digest: str) -> None:
    if digest != file["sha256"]:
        raise SystemExit(f"{name}: wrong checksum")


def sha256(path: Path) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as stream:
        while got := stream.readinto(buffer):
            digest.update(buffer[:got])
    return digest.hexdigest()


def pull(files: dict, folder: Path, url: str, repository: str) -> None:
    """The hub's own client, from the hub."""
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HOME=f"{folder}.home")
    from huggingface_hub import snapshot_download

    snapshot_download(repository, local_dir=folder, endpoint=url, token=False)
    check(files, folder)


def chain(files: dict, folder: Path, port: str, following: str = "") -> None:
    """Cut through: what came is forwarded before the rest of its file is here."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = memoryview(bytearray(BLOCK))
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", int(port))))
        onward = stack.enter_context(connected(following, int(port))) if following else None
        source = stack.enter_context(server.accept()[0])
        for name, file in files.items():
            left, digest = file["size"], hashlib.sha256()
            with (folder / name).open("wb", buffering=0) as stream:
                while left:
                    got = source.recv_into(buffer[: min(left, BLOCK)], 0, socket.MSG_WAITALL)
                    if not got:
                        raise SystemExit("the chain broke")
                    if onward:
                        onward.sendall(buffer[:got])
                    stream.write(buffer[:got])
                    digest.update(buffer[:got])
                    left -= got
            compare(name, file, digest.hexdigest())


def first(files: dict, folder: Path, port: str, following: str) -> None:
    with connected(following, int(port)) as onward:
        for name in files:
            with (folder / name).open("rb") as stream:
                onward.sendfile(stream)


def connected(host: str, port: int) -> socket.socket:
    while True:
        try:
            return socket.create_connection((host, port))
        except ConnectionRefusedError:
            time.sleep(0.02)


if __name__ == "__main__":
    action, listed, where, *more = sys.argv[1:]
    {"check": check, "pull": pull, "chain": chain, "first": first}[action](
        json.loads(Path(listed).read_text()), Path(where), *more
    )
