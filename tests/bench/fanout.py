"""Ways to bring a snapshot from one node to all others, timed until each holds it and has checked it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import onnode
from tests.bench.netns import Network
from tests.lab.shell import wait_until
from tests.lab.testing import REPOSITORY

STAGE = REPOSITORY / "roles/weights/node/stage.py"
MODEL, COMMIT = "bench/model", "0" * 40
PORT = 19870
FILES = 8
TIMEOUT = 300  # seconds


@dataclass(frozen=True)
class Snapshot:
    """Random bytes in some files; `listed` is a file that has their sizes and checksums as JSON."""

    folder: Path
    listed: Path

    @property
    def files(self) -> dict[str, dict]:
        return json.loads(self.listed.read_text())

    @property
    def bytes(self) -> int:
        return sum(file["size"] for file in self.files.values())


def snapshot(base: Path, size: int) -> Snapshot:
    folder = base / "hub" / MODEL
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for number in range(FILES):
        with (folder / f"model-{number}.safetensors").open("wb") as file:
            for left in range(size // FILES, 0, -(1 << 20)):
                file.write(os.urandom(min(left, 1 << 20)))
    made = Snapshot(folder, base / "files.json")
    entries = {}
    for path in sorted(folder.iterdir()):
        entries[path.name] = {"size": path.stat().st_size, "sha256": onnode.sha256(path)}
    made.listed.write_text(json.dumps(entries))
    return made


@dataclass
class Case:
    """Node 0 of a network has a snapshot; all others are to have it, each below its own folder."""

    net: Network
    base: Path
    snapshot: Snapshot

    @property
    def receivers(self) -> range:
        return range(1, self.net.count)

    def folder(self, number: int) -> Path:
        return self.base / f"node{number}" / "model"

    def start(self, number: int, *words: object, **options) -> subprocess.Popen:
        return self.net.start(number, *words, cwd=REPOSITORY, **options)

    def program(self, number: int, action: str, folder: Path, *words: object) -> subprocess.Popen:
        command = (sys.executable, "-m", "tests.bench.onnode", action, self.snapshot.listed, folder, *words)
        return self.start(number, *command)

    def held(self, processes: Sequence[subprocess.Popen]) -> bool:
        """True when every receiver is through; stops the benchmark when one failed."""
        codes = [process.poll() for process in processes]
        if any(codes):
            raise SystemExit(f"a receiver ended with {codes}")
        return None not in codes


class Ours(Case):
    """stage.py as Rackserve starts it, on every node."""

    def serve(self) -> None:
        for number in range(self.net.count):
            link = self._link(number)
            link.parent.mkdir(parents=True)
        final = self._link(0).with_name(f"snapshot-{COMMIT}")
        shutil.copytree(self.snapshot.folder, final, copy_function=os.link)

    def receive(self) -> list[subprocess.Popen]:
        names = [f"{self.net.address(number)}:{PORT}" for number in range(self.net.count)]
        said = {
            "files": self.snapshot.files, "secret": "benchmark", "nodes": names, "seeds": names[:1],
            "grace": 30,
        }  # fmt: skip
        return [self._join(number, {**said, "me": name}) for number, name in enumerate(names)]

    def _join(self, number: int, said: dict) -> subprocess.Popen:
        words = ("join", "--path", self._link(number), "--repository", MODEL, "--commit", COMMIT, "--stdin")
        process = self.start(number, sys.executable, STAGE, *words, stdin=subprocess.PIPE, text=True)
        process.stdin.write(json.dumps(said))
        process.stdin.close()
        return process

    def _link(self, number: int) -> Path:
        return self.folder(number) / "weights" / "bench--model" / "main"

    def held(self, processes: Sequence[subprocess.Popen]) -> bool:
        """True when it is published everywhere: it is not before it was checked."""
        super().held(processes)
        return all(self._link(number).is_symlink() for number in self.receivers)

    def result(self, number: int) -> Path:
        return self._link(number)


class Chain(Case):
    """Each node to the next, as it comes."""

    def serve(self) -> None:
        pass

    def receive(self) -> list[subprocess.Popen]:
        last = self.net.count - 1
        following = {number: self.net.address(number + 1) for number in range(last)}
        started = [self.program(0, "first", self.snapshot.folder, PORT, following[0])]
        for number in self.receivers:
            onward = [following[number]] if number < last else []
            started.append(self.program(number, "chain", self.folder(number), PORT, *onward))
        return started

    def result(self, number: int) -> Path:
        return self.folder(number)


class Rsync(Chain):
    """Every node takes all of it from the seed's rsync, then checks it."""

    def serve(self) -> None:
        conf = self.base / "rsyncd.conf"
        conf.write_text(
            f"use chroot = no\nuid = root\ngid = root\n[snapshot]\npath = {self.snapshot.folder}\n"
            f"log file = /dev/null\npid file = {self.base}/rsyncd.pid\n"
        )
        self.start(0, "rsync", "--daemon", "--no-detach", "--config", conf, "--port", PORT)
        wait_until(lambda: self.net.listens(0, PORT), 10, "the seed's rsync")

    def receive(self) -> list[subprocess.Popen]:
        source = f"rsync://{self.net.address(0)}:{PORT}/snapshot/"
        check = f"{sys.executable} -m tests.bench.onnode check {self.snapshot.listed}"
        script = f'mkdir -p "$0" && rsync -a {source} "$0" && exec {check} "$0"'
        return [self.start(number, "sh", "-c", script, self.folder(number)) for number in self.receivers]


class Hub(Chain):
    """Every node takes all of it from a hub on the seed with huggingface_hub, then checks it."""

    def serve(self) -> None:
        words = ("--root", self.base / "hub", "--host", self.net.address(0), "--port", PORT)
        self.start(0, sys.executable, "-m", "tests.lab.hub", *words, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.net.listens(0, PORT), 60, "the seed's hub")

    def receive(self) -> list[subprocess.Popen]:
        url = f"http://{self.net.address(0)}:{PORT}"
        return [self.program(number, "pull", self.folder(number), url, MODEL) for number in self.receivers]


WAYS: dict[str, type[Case]] = {
    "ours": Ours, "chain": Chain, "rsync from the seed": Rsync, "hub on the seed": Hub,
}  # fmt: skip


FLAT = ("ours", "chain")  # the time of the others grows with N, as it must


def measure(case: Case) -> dict[str, float]:
    """Seconds until all hold it, and what it cost this machine."""
    case.serve()
    sent, worked, started = case.net.sent(0), Processor(), time.perf_counter()
    processes = case.receive()
    while not case.held(processes):
        if time.perf_counter() > started + TIMEOUT:
            raise SystemExit(f"not there after {TIMEOUT} s")
        time.sleep(0.01)
    seconds = time.perf_counter() - started
    busy, share = worked.since()
    sent = case.net.sent(0) - sent
    case.net.end()
    for number in case.receivers:
        onnode.check(case.snapshot.files, case.result(number))
        shutil.rmtree(case.folder(number).parent)
    shutil.rmtree(case.folder(0).parent, ignore_errors=True)
    delivered = case.snapshot.bytes * len(case.receivers)
    return {
        "seconds": seconds,
        "seed sent": sent / case.snapshot.bytes,
        "processor s/GB": busy / delivered * 1e9,
        "machine busy, %": 100 * share,
    }


class Processor:
    """This machine's processor time since now, whoever used it."""

    def __init__(self) -> None:
        self.before = self._now()

    def since(self) -> tuple[float, float]:
        """Seconds of all cores, and their share."""
        busy, total = (now - before for now, before in zip(self._now(), self.before, strict=True))
        return busy / os.sysconf("SC_CLK_TCK"), busy / total

    def _now(self) -> tuple[int, int]:
        user, nice, system, idle, iowait, *more = map(
            int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        )
        busy = user + nice + system + sum(more)
        return busy, busy + idle + iowait
