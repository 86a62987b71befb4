"""Runs on a node: which ports of other nodes it reaches, and how the others turn it away.

connecting.py '{"targets": [["node2", "198.51.100.12", 20000]], "seconds": 4}'
"""

import errno
import json
import os
import selectors
import socket
import sys
import time

from answering import answer, attempted

HOW = {0: "open", errno.ECONNREFUSED: "refused", errno.ETIMEDOUT: "silent"}


def connect(asked):
    """[host, port, how] of each; silent: nothing at all came back."""
    waiting, rows = selectors.DefaultSelector(), []
    until = time.monotonic() + asked["seconds"]
    for host, address, port in asked["targets"]:
        sock = socket.socket()
        sock.setblocking(False)
        wrong = sock.connect_ex((address, port))
        if wrong == errno.EINPROGRESS:
            waiting.register(sock, selectors.EVENT_WRITE, (host, port))
        else:
            rows.append([host, port, how(wrong)])
    while waiting.get_map() and time.monotonic() < until:
        for key, _ in waiting.select(until - time.monotonic()):
            wrong = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            rows.append([*key.data, how(wrong)])
            waiting.unregister(key.fileobj)
            key.fileobj.close()
    rows += [[*key.data, "silent"] for key in waiting.get_map().values()]
    return {"rows": sorted(rows)}


def how(wrong):
    return HOW.get(wrong) or os.strerror(wrong).lower()


if __name__ == "__main__":
    answer(attempted(connect, json.loads(sys.argv[1])))
