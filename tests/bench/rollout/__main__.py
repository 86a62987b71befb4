"""Rollouts and faults under load: `make bench-rollout`, or `SCENARIO=name`; docs/rollout.md has the goals.

Most scenarios are in the lab, which they bring up and serve on; `latency` needs none. What has passed is not
measured again, unless AGAIN=1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import click

from tests.bench.rollout import cases, faults, latency, operators, rolling
from tests.bench.rollout.cases import Case
from tests.bench.rollout.layouts import PAIRS, SHARED, THREE, Layout, Served


@dataclass(frozen=True)
class Scenario:
    """Cases of what a layout serves, or of nothing."""

    cases: Callable[..., Mapping[str, Case]]
    layout: Layout | None = None


#: In this order: a layout is served once, and faults are judged by the cold start before them.
SCENARIOS = {
    "latency": Scenario(lambda: {"a stream of 20 tokens": latency.case}),
    "rollout-2": Scenario(rolling.rollout, SHARED),
    "does-not-start": Scenario(partial(rolling.unfit, **{"load-format": "tensorizer"}), SHARED),
    "answers-wrongly": Scenario(partial(rolling.unfit, **{"load-format": "dummy"}), SHARED),
    "too-slow": Scenario(operators.slow, SHARED),
    "controller-killed": Scenario(operators.killed, SHARED),
    "two-operators": Scenario(operators.two, SHARED),
    "rollout-3": Scenario(rolling.rollout, THREE),
    "cold-start": Scenario(faults.cold_start, PAIRS),
    "kill": Scenario(faults.kill, PAIRS),
    "hung": Scenario(faults.hung, PAIRS),
    "power": Scenario(faults.power, PAIRS),
    "cut": Scenario(faults.cut, PAIRS),
}


@click.command()
@click.option("--scenario", envvar="SCENARIO", type=click.Choice(list(SCENARIOS)), help="Only this one.")
@click.option("--again", envvar="AGAIN", is_flag=True, help="Also what has passed.")
@click.option("--show", is_flag=True, help="Only print what was measured.")
def main(scenario: str | None, again: bool, show: bool) -> None:
    chosen = [scenario] if scenario else list(SCENARIOS)
    if show:
        for name in chosen:
            if cases.rows_of(name):
                cases.show(name)
        return
    passed = Runs(again)
    sys.exit(not all([passed(name) for name in chosen]))


class Runs:
    """Scenarios one after another; a layout stays while they need no other."""

    def __init__(self, again: bool) -> None:
        self.again = again
        self.served: Served | None = None

    def __call__(self, name: str) -> bool:
        if not self.again and cases.complete(name):
            cases.show(name)
            return True
        scenario = SCENARIOS[name]
        made = scenario.cases(self._serving(scenario.layout)) if scenario.layout else scenario.cases()
        return cases.run(name, made, self.again)

    def _serving(self, layout: Layout) -> Served:
        if self.served is None or self.served.layout is not layout:
            self.served = Served(layout)
            self.served.start()
        return self.served


if __name__ == "__main__":
    main()
