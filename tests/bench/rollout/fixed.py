"""A streaming server whose answers take always as long: what a gateway adds shows beside it.

    python -m tests.bench.rollout.fixed PORT

Answers /v1/completions with `max_tokens` events, the first after FIRST seconds and one after every PACE.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from contextlib import suppress

FIRST, PACE = 0.02, 0.01  # seconds
TOKEN = 7

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request after another on a connection, as vLLM's server takes them."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):  # who is gone, or only knocked
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = re.search(r"\ncontent-length: *(\d+)", head)
            body = json.loads(await reader.readexactly(int(length[1])) if length else b"{}")
            await _stream(writer, body.get("max_tokens", 0))
            if "\nconnection: close" in head:
                break
    writer.close()


async def _stream(writer: asyncio.StreamWriter, tokens: int) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time() + FIRST
    writer.write(_HEAD)
    for number in range(tokens):
        await asyncio.sleep(begun + number * PACE - loop.time())
        finish = "length" if number == tokens - 1 else None
        event = {"choices": [{"index": 0, "text": "7", "token_ids": [TOKEN], "finish_reason": finish}]}
        writer.write(_chunk(f"data: {json.dumps(event)}\n\n"))
    writer.write(_chunk("data: [DONE]\n\n") + b"0\r\n\r\n")
    await writer.drain()


def _chunk(text: str) -> bytes:
    return b"%x\r\n%s\r\n" % (len(text), text.encode())


async def main(port: int) -> None:
    async with await asyncio.start_server(answers, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
