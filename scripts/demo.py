"""`rackserve demo`: the main job in the lab, with what each stage took."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from scripts.refusal import Failed, Refused
from scripts.runner import REPOSITORY
from tests.lab import Lab
from tests.lab.paths import STATE

QUESTION = "What is the capital of France?"
STAGES = ("provision", "stage_weights", "serve")


@click.command()
@click.option("--nodes", default=2, show_default=True, help="Of the lab, unless one is up.")
@click.argument("question", default=QUESTION)
def demo(nodes: int, question: str) -> None:
    """Bring up a lab, serve a real model on it over SSH, and ask it QUESTION."""
    took: dict[str, float] = {}
    with timed(took, "lab up"):
        rackserve("lab", "up", str(len(Lab().nodes()) or nodes))
    for stage in STAGES:
        with timed(took, stage):
            rackserve("deploy", stage, "-i", "lab")
    with timed(took, "answer"):
        answer = rackserve("chat", "-i", "lab", question)
    serving = rackserve("status", "-i", "lab").splitlines()
    click.echo()
    click.echo("\n".join(serving))
    click.secho(f"\n{question}", bold=True)
    click.echo(answer.strip())
    click.echo("\n" + "  ".join(f"{stage} {seconds:.0f} s" for stage, seconds in took.items()))


@contextmanager
def timed(took: dict[str, float], stage: str) -> Iterator[None]:
    click.echo(f"{stage} ...", err=True)
    started = time.monotonic()
    yield
    took[stage] = time.monotonic() - started


def rackserve(*words: str) -> str:
    """Run one of our own commands as a person would; its messages go to the lab's demo.log."""
    try:
        STATE.mkdir(parents=True, exist_ok=True)
    except PermissionError:
        raise Refused("the lab makes network interfaces and mounts: run it as root") from None
    log = STATE / "demo.log"
    command = [sys.executable, "-c", "from scripts.cli import main; main()", *words]
    with log.open("ab") as stderr:
        done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=stderr, text=True)
    if done.returncode:
        last = log.read_text().rstrip().splitlines()[-1]
        raise Failed(f"`rackserve {' '.join(words)}`: {last.removeprefix('rackserve: ')} (all of it: {log})")
    return done.stdout
