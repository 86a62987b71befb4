"""Runs on a node, beside gang.py: this node's part of a replica, which does what the head says.

The epoch is kept in a file, so that an agent that died and was started again goes on with what runs.
"""

import json
import os
import pwd
import socket
import threading
import time

import lines
import shm
import systemctl

STOP = {"do": "stop", "epoch": None}


class Member:
    """States: stopped, starting, running, failed; stopping until all is known to have ended."""

    def __init__(self, config, times, connect):
        self.config, self.times, self.connect = config, times, connect
        self.units = [part["unit"] for part in config["units"]]
        self.user = pwd.getpwnam(config["user"]).pw_uid
        self.file = f"{config['folder']}/member.json"
        self.changed = threading.Condition(threading.RLock())  # of all that follows
        self.order, self.heard_at = None, time.monotonic()
        self.leaving, self.left = False, threading.Event()
        self.problem = ""  # with the head, as it was last said
        self.compiles = False
        # Of units, in this run: `had` is how many it had of what it needs, `lost_at` since when it has less.
        self.epoch, self.started, self.had = self.recall()
        self.lost_at = {}
        # What runs without an epoch is of nobody, and is stopped first.
        self.state, self.why = ("starting" if self.epoch else "stopping"), ""

    def start(self):
        for work in (self.work, self.talk):
            threading.Thread(target=work, daemon=True).start()

    # What it says and hears

    def talk(self):
        while not self.left.is_set():
            try:
                self.call()
            except OSError as error:
                if str(error) != self.problem:
                    self.problem = str(error)
                    print(f"the head at {self.config['head'][0]} port {self.config['head'][1]}: {error}")
            time.sleep(self.times["beat"])

    def call(self):
        wire = lines.Wire(self.connect(), lines.HANDSHAKE)
        try:
            lines.greet(wire, self.config["token"], self.config["host"])
            wire.patience, self.problem = self.times["silence"] / 2, ""
            lines.converse(wire, self.changed, self.times["beat"], self.report, self.hear)
        finally:
            wire.close()

    def report(self):
        with self.changed:
            heard = self.order["epoch"] if self.order else None
            return {"epoch": self.epoch, "state": self.state, "why": self.why, "heard": heard,
                    "leaving": self.leaving, "compiles": self.compiles}  # fmt: skip

    def hear(self, order):
        with self.changed:
            self.order, self.heard_at = order, time.monotonic()
            self.changed.notify_all()

    def leave(self):
        """Stop this node's part as somebody who stops it by hand would, and say so."""
        with self.changed:
            self.leaving = True
            self.changed.notify_all()
        self.left.wait()

    # What it does

    def work(self):
        while not self.left.is_set():
            order = self.due()
            self.follow(order)
            with self.changed:
                self.changed.wait_for(lambda done=order: self.due() != done, self.times["beat"])

    def due(self):
        """The order to follow now, or None."""
        with self.changed:
            silence = time.monotonic() - self.heard_at
            if silence > self.times["silence"]:
                self.order = None
                return {**STOP, "why": f"no word from the head for {self.times['silence']:.0f} s"}
            return {**STOP, "why": "it is stopped here"} if self.leaving else self.order

    def follow(self, order):
        if self.leaving:
            self.stop(gently=True, why="it was stopped on this node")
            self.left.set()
        elif order is None:
            if self.epoch:
                self.go_on()
            elif self.state != "stopped":
                self.stop()
        elif order["do"] == "stop":
            if self.state != "stopped":
                self.stop(why=order.get("why", ""))
        else:
            if order["epoch"] != self.epoch:
                self.begin(order["epoch"])
            self.go_on()

    def begin(self, epoch):
        if self.state != "stopped":
            self.stop()
        with self.changed:
            wanted = self.order and self.order["epoch"] == epoch
            if wanted and self.state == "stopped":
                self.epoch, self.started, self.had, self.lost_at = epoch, {}, {}, {}
                self.remember()
                self.be("starting")

    def go_on(self):
        """Start what is due, and see that what was started runs."""
        rows = systemctl.show(self.units) if self.state in ("starting", "running") else None
        if rows is None:
            return
        processes = {unit: systemctl.processes(row) for unit, row in rows.items()}
        self.compiles = any(map(systemctl.compiles, processes.values()))
        for part in self.config["units"]:
            unit = part["unit"]
            if unit in self.started:
                why = systemctl.ended(rows[unit], self.started[unit]) or self.lost(part, processes[unit])
                if why:
                    return self.fails(why)
            if unit not in self.started:
                if part["awaits"] and not accepts(part["awaits"]):
                    return self.be(
                        "starting", f"{unit} waits for {part['awaits'][0]} port {part['awaits'][1]}"
                    )
                why = systemctl.start(unit)
                if why:
                    return self.fails(f"{unit} does not start: {why}")
                self.started[unit] = (systemctl.show([unit]) or {}).get(unit, {}).get("InvocationID")
                self.remember()
        return self.be("running")

    def lost(self, part, processes):
        """Why a unit that runs is good for nothing any more, or None.

        A moment after it was seen: where all comes to its end, what ended first is the reason.
        """
        unit = part["unit"]
        had = self.had.setdefault(unit, {})
        gone = None
        for need in part.get("needs", ()):
            count = systemctl.are(processes, need)
            if count > had.get(need, 0):
                had[need] = count
                self.remember()
            gone = gone or (need if count < had.get(need, 0) else None)
        if not gone or not processes:  # without any, systemd says more
            self.lost_at.pop(unit, None)
        elif time.monotonic() - self.lost_at.setdefault(unit, time.monotonic()) >= self.times["dead"]:
            return f"{unit.rpartition('.')[0]} runs on, but a {gone} of its ended"
        return None

    def fails(self, why):
        print(why)
        self.be("failed", why)

    def stop(self, gently=False, why=""):
        """All units ended and what they left swept, or still stopping."""
        self.be("stopping", why)
        if gently:
            for unit in reversed(self.units):
                systemctl.stop(unit)
        systemctl.kill(*self.units)
        rows = systemctl.show(self.units)
        if rows is None or any(row["ActiveState"] not in ("inactive", "failed") for row in rows.values()):
            return
        for name in shm.sweep(self.user):
            print(f"removed /dev/shm/{name}, which no process has any more")
        with self.changed:
            self.epoch, self.started, self.compiles = None, {}, False
            self.had, self.lost_at = {}, {}
            self.remember()
            self.be("stopped", why)

    def be(self, state, why=""):
        with self.changed:
            if (state, why) != (self.state, self.why):
                self.state, self.why = state, why
                self.changed.notify_all()

    # What an agent that died leaves to the next

    def recall(self):
        try:
            with open(self.file) as file:
                kept = json.load(file)
        except (FileNotFoundError, ValueError):
            return None, {}, {}
        return kept["epoch"], kept["started"], kept.get("had", {})

    def remember(self):
        write(self.file, {"epoch": self.epoch, "started": self.started, "had": self.had})


def write(path, content):
    """A file that is there whole or not at all."""
    with open(f"{path}.new", "w") as file:
        json.dump(content, file, indent=1)
    os.chmod(f"{path}.new", 0o644)
    os.replace(f"{path}.new", path)


def accepts(address):
    try:
        socket.create_connection(tuple(address), timeout=1).close()
    except OSError:
        return False
    return True
