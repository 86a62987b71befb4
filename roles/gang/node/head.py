"""Runs on a replica's first node, beside gang.py: hears all its nodes, and has replica.py decide."""

import json
import socket
import threading
import time

import lines
from engine import Engine, plain
from member import write
from replica import Replica

FAREWELL = 10.0  # seconds that the other nodes have to stop before the agent ends all the same


class Head:
    """One replica's head, and who tells gateways how it is."""

    def __init__(self, config, times):
        self.config, self.times = config, times
        self.file = f"{config['folder']}/state.json"
        self.key = api_key(config["secrets"])
        self.changed = threading.Condition(threading.RLock())  # of all that follows
        self.replica = Replica(config["members"], times, time.monotonic())
        self.wires = {}
        self.recall()
        self.adopted, self.born = self.replica.state == "up", time.monotonic()
        self.engine, self.run = None, None
        self.save()

    def start(self):
        address, port = self.config["head"]
        works = [
            lambda: lines.listen((address, port), self.serve, 64 + 2 * len(self.config["members"])),
            lambda: every(self.times["beat"], self.save),
            lambda: every(self.times["beat"], lambda: self.engine.generate()),
            self.look,
        ]
        if self.config["health"]:
            works.append(self.tell)
        for work in works:
            threading.Thread(target=work, daemon=True).start()

    # The nodes

    def connect(self):
        """For this node's own part: no cable comes between."""
        ours, theirs = socket.socketpair()
        threading.Thread(target=self.serve, args=(ours,), daemon=True).start()
        return theirs

    def serve(self, sock):
        wire = lines.Wire(sock, lines.HANDSHAKE)
        try:
            host = lines.greeted(wire, self.config["token"], self.config["members"])
            wire.patience = self.times["silence"] / 2
            self.heard(host, wire.hear())
            with self.changed:
                before, self.wires[host] = self.wires.get(host), wire
            if before:
                before.close()
            lines.converse(
                wire, self.changed, self.times["beat"], self.order, lambda said: self.heard(host, said)
            )
        except PermissionError as error:
            print(f"refused: {error}")
        except OSError:
            pass  # it calls again
        finally:
            wire.close()

    def heard(self, host, report):
        with self.changed:
            self.replica.heard(host, report, time.monotonic())
            if report.get("compiles"):
                self.engine.compiles()
            self.decide()

    def order(self):
        with self.changed:
            return self.replica.order

    # The replica

    def decide(self):
        with self.changed:
            now, order, state = time.monotonic(), self.replica.order, self.replica.state
            if self.engine is None or self.replica.runs and self.run != order["epoch"]:
                self.engine, self.run = (
                    Engine(self.config["api"], self.key, self.times),
                    order["epoch"],
                )
            self.replica.tick(now, self.engine)
            if (self.replica.order, self.replica.state) != (order, state):
                write(self.file, self.replica.told(now, time.time()))
                self.changed.notify_all()

    def leave(self, own):
        """Stop the replica: the gateway hears it first; this node's part ends gently, then the others'."""
        with self.changed:
            known = self.replica.state == "up" and self.config["health"]
            self.replica.leave(time.monotonic())
            self.save()
        if known:
            time.sleep(self.times["settle"])
        own.leave()
        with self.changed:
            self.replica.halt()
            self.changed.notify_all()
        until = time.monotonic() + FAREWELL
        while not self.alone() and time.monotonic() < until:
            time.sleep(0.1)

    def alone(self):
        others, now = (
            [host for host in self.config["members"] if host != self.config["host"]],
            time.monotonic(),
        )
        with self.changed:
            return all(self.replica.stopped(host, now) or self.replica.absent(host, now) for host in others)

    # The engine

    def look(self):
        while True:
            engine = self.engine
            engine.look()
            time.sleep(self.times["beat" if engine.dead_at else "look"])

    def tell(self):
        # Whoever asks before anything is known finds nobody, and HAProxy leaves the replica as it was.
        while not self.known():
            time.sleep(0.1)
        lines.listen(self.config["health"], self.answer, 64)

    def known(self):
        patient = time.monotonic() - self.born < self.times["patience"] + self.times["look"]
        return not (self.adopted and self.replica.state == "up" and self.engine.well_at is None and patient)

    def answer(self, sock):
        sock.settimeout(5)
        sock.sendall(f"{self.says()}\n".encode())

    def says(self):
        with self.changed:
            if self.replica.state == "up":
                return self.engine.says()
            return f"down #{plain(f'{self.replica.state} {self.replica.why}'.strip())}"

    # What people read, and an agent that goes on where one that died left off

    def save(self):
        with self.changed:
            self.decide()
            write(self.file, self.replica.told(time.monotonic(), time.time()))

    def recall(self):
        try:
            with open(self.file) as file:
                told = json.load(file)
        except (FileNotFoundError, ValueError):
            return
        self.replica.recall(told, time.monotonic(), time.time())


def every(seconds, act):
    while True:
        act()
        time.sleep(seconds)


def api_key(path):
    with open(path) as file:
        return dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)["VLLM_API_KEY"]
