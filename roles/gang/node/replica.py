"""Runs on a node, beside head.py: what becomes of a replica, and why. It decides; head.py acts.

A replica starts as one and ends as one. Each run has a name of its own, its epoch, and so has each stop:
what a node says of the last one is not taken for this one.
"""

import secrets
from collections import deque


class Replica:
    """States: stopping, waiting, starting, up; leaving once somebody stops it here.

    + hosts: its nodes; + times: see gang.TIMES; + now: seconds of the monotonic clock, as everywhere here
    """

    def __init__(self, hosts, times, now):
        self.times, self.born = times, now
        self.said = {host: {} for host in hosts}  # what each node said last
        self.at = dict.fromkeys(hosts)  # and when
        self.joined = set()  # who has had a part in this run
        self.falls, self.row, self.recent = 0, 0, deque(maxlen=5)
        self.try_at = now
        self.state, self.why, self.since = "stopping", "", now
        self.order = _order("stop")

    @property
    def runs(self):
        return self.order["do"] == "start"

    def heard(self, host, report, now):
        self.said[host], self.at[host] = report, now
        if self.runs and report.get("epoch") == self.order["epoch"]:
            self.joined.add(host)

    def tick(self, now, engine):
        """Go on; `engine` is what is known of this run's (engine.Engine)."""
        if self.state == "leaving":
            return
        if self.runs:
            self._watch(now, engine)
        else:
            self._rest(now)

    def leave(self, now):
        """Somebody stops it here: nothing is a fall any more, and the next start is no next try."""
        self.row, self.try_at = 0, now
        self._be("leaving", "it is stopped on its head", now)

    def halt(self):
        self.order = _order("stop")

    def stopped(self, host, now):
        """Whether a node has no part any more, and knows that it was to have none."""
        said = self.said[host]
        fresh = said.get("heard") == self.order["epoch"] and self.absent(host, now) is None
        return fresh and said.get("state") == "stopped"

    def absent(self, host, now):
        """Why nothing can be started on a node, or None."""
        if self.said[host].get("leaving"):
            return f"{host}: it was stopped on this node"
        if self.silent(host, now):
            return f"nothing is heard of {host}"
        return None

    def silent(self, host, now):
        return now - (self.born if self.at[host] is None else self.at[host]) > self.times["silence"]

    def _watch(self, now, engine):
        why = self._trouble(now) or engine.dead() or (engine.hangs() if self.state == "up" else None)
        if why:
            self._fall(why, now)
        elif self.state == "starting" and engine.generates and self._all_run():
            print(f"up after {now - self.since:.0f} s")
            self._be("up", "", now)
        elif self.state == "up" and now - self.since > self.times["stable"]:
            self.row = 0

    def _trouble(self, now):
        for host, said in self.said.items():
            if self.silent(host, now):
                return f"{host} was silent for {self.times['silence']:.0f} s"
            if said.get("leaving"):
                return self.absent(host, now)
            if said.get("epoch") == self.order["epoch"]:
                if said.get("state") == "failed":
                    return f"{host}: {said.get('why')}"
            elif host in self.joined and self.at[host] is not None:
                return f"{host}: {said.get('why') or 'its part is gone'}"
        return None

    def _all_run(self):
        epoch = self.order["epoch"]
        return all(
            said.get("state") == "running" and said.get("epoch") == epoch for said in self.said.values()
        )

    def _fall(self, why, now):
        delay = min(self.times["backoff"] * 2 ** (self.row - 1), self.times["longest"]) if self.row else 0
        self.falls, self.row, self.try_at = self.falls + 1, min(self.row + 1, 30), now + delay
        self.recent.append({"when": now, "why": why})
        print(f"fall {self.falls}: {why}; starts again {f'after {delay:.0f} s' if delay else 'at once'}")
        self.order = _order("stop")
        self._be("stopping", why, now)

    def _rest(self, now):
        pending = [host for host in self.said if not self.stopped(host, now)]
        missing = [why for host in pending if (why := self.absent(host, now))]
        if len(missing) < len(pending):
            self._be("stopping", self.why, now)
        elif missing:
            self._be("waiting", "; ".join(missing), now)
        elif now < self.try_at:
            self._be("waiting", f"for the next try: {self.recent[-1]['why']}", now)
        else:
            self._begin(now)

    def _begin(self, now):
        self.order, self.joined = _order("start"), set()
        print(f"start {self.order['epoch']} on {', '.join(self.said)}")
        self._be("starting", "", now)

    def _be(self, state, why, now):
        if state == "waiting" and (state, why) != (self.state, self.why):
            print(f"waiting: {why}")
        if state != self.state:
            self.state, self.since = state, now
        self.why = why

    # For people, and for an agent that goes on where one that died left off

    def told(self, now, wall):
        """The state as JSON, in seconds of the clock on the wall."""

        def when(moment):
            return None if moment is None else round(moment - now + wall, 1)

        return {
            "state": self.state, "why": self.why, "since": when(self.since),
            "epoch": self.order["epoch"] if self.runs else None,
            "falls": self.falls, "row": self.row,
            "recent": [{"when": when(fall["when"]), "why": fall["why"]} for fall in self.recent],
            "members": {
                host: {"state": said.get("state"), "why": said.get("why"), "seen": when(self.at[host])}
                for host, said in self.said.items()
            },
            "next": when(self.try_at) if not self.runs and now < self.try_at else None,
        }  # fmt: skip

    def recall(self, told, now, wall):
        """Go on from there: a run that runs is kept, and who wants to stay in it has SILENCE to say so."""
        self.falls, self.row = told["falls"], told["row"]
        self.recent.extend({"when": fall["when"] - wall + now, "why": fall["why"]} for fall in told["recent"])
        self.try_at = told["next"] - wall + now if told["next"] else now
        if told["epoch"] and told["state"] in ("starting", "up"):
            self.order, self.joined = _order("start", told["epoch"]), set(self.said)
            self._be(told["state"], "", told["since"] - wall + now)
            print(f"adopts {told['epoch']}, which is {told['state']}")


def _order(do, epoch=None):
    return {"do": do, "epoch": epoch or secrets.token_hex(4)}
