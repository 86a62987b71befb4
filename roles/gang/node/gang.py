"""Runs on every node of a replica, as root, on its own Python (3.9 and newer): starts and ends it as one.

    gang.py CONFIG.json

On the replica's first node it decides (head.py), on all it does what was decided (member.py). Killed, it
leaves everything running, and the next one goes on; told to end (SIGTERM), it stops its node's part.
"""

import json
import os
import signal
import socket
import sys
import threading
import traceback

from head import Head
from member import Member

#: Seconds; the configuration may say others.
TIMES = {
    "beat": 1.0,  # between two words to the head or from it
    "silence": 10.0,  # without a word, after which a node is as good as gone
    "look": 3.0,  # between two looks at the engine's steps
    "idle": 5.0,  # without a step, after which a token is asked for
    "patience": 20.0,  # without a step or token, after which a gateway is to send nothing more
    "hang": 60.0,  # and after which the engine hangs, and the replica falls
    "dead": 2.0,  # that an engine is seen dead: its node often knows better why
    "settle": 3.0,  # until a gateway that asks every 2 has heard that it is down
    "backoff": 5.0,  # before the third run in a row, then twice that, ...
    "longest": 300.0,  # ... at most that
    "stable": 300.0,  # up, after which a fall is the first again
}


def main(path):
    threading.excepthook = end
    with open(path) as file:
        config = json.load(file)
    os.makedirs(config["folder"], exist_ok=True)
    told, over = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    times = {**TIMES, **config["times"]}
    head = Head(config, times) if config["host"] == config["members"][0] else None
    member = Member(config, times, head.connect if head else lambda: call(config["head"]))
    if head:
        head.start()
    member.start()

    def leave():
        told.wait()
        head.leave(member) if head else member.leave()
        over.set()

    threading.Thread(target=leave, daemon=True).start()
    while not over.wait(1.0):
        notify("WATCHDOG=1")


def call(address):
    return socket.create_connection(tuple(address), timeout=3)


def notify(word):
    """Tell systemd, which ends an agent that is stopped or stuck."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(word.encode(), "\0" + path[1:] if path.startswith("@") else path)


def end(problem):
    """A thread that fails ends the agent, and systemd starts another."""
    traceback.print_exception(problem.exc_type, problem.exc_value, problem.exc_traceback)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
