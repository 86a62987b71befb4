"""Runs on a node: listens where its services will, unless somebody does so already.

    listening.py '{"ports": [8000, 20000]}'

The kernel answers who connects; nothing is read. It ends when it is stopped, or its unit's time is over.
"""

import json
import socket
import sys

from answering import answer, attempted

_open = []


def listen(asked):
    """The ports that are held now, and why others are not."""
    held, taken = [], {}
    for port in asked["ports"]:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # On every address: who listens on loopback alone is then not taken for one who can be reached.
            listener.bind(("", port))
            listener.listen(128)
        except OSError as error:
            taken[port] = error.strerror
            continue
        _open.append(listener)
        held.append(port)
    return {"held": held, "taken": taken}


if __name__ == "__main__":
    answer(attempted(listen, json.loads(sys.argv[1])))
