"""The lab as a whole: up, down, and what is there."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import base, network, software
from .node import Node
from .paths import (
    CACHE,
    GATEWAY,
    HUB_PORT,
    KEY,
    KNOWN_HOSTS,
    MAX_NODES,
    MODELS,
    STATE,
    TOKENS,
    WHEELHOUSE,
)
from .shell import LabError, kill, processes, run, wait_until

#: Programs the lab needs, and the Debian package of each.
PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "tc": "iproute2",
    "iptables": "iptables",
    "ssh-keygen": "openssh-client",
    "mkfs.ext4": "e2fsprogs",
}
FREE_GIB_PER_NODE = 5
FREE_GIB_FOR_CACHE = 12

#: Tokens of the lab's hub: one may read what is gated, one may not.
READER, STRANGER = "hf_lab_reader", "hf_lab_stranger"


class Lab:
    """A cluster of `Node`s, their network, and a Hugging Face-compatible endpoint."""

    def nodes(self) -> list[Node]:
        """The nodes that exist, powered on or not."""
        numbers = (int(folder.name.removeprefix("node")) for folder in STATE.glob("nodes/node*"))
        return [Node(number) for number in sorted(numbers)]

    def node(self, name: str) -> Node:
        for node in self.require_up():
            if node.name == name:
                return node
        there = ", ".join(node.name for node in self.nodes())
        raise LabError(f"no lab node {name}; there are: {there}")

    def up(self, count: int, say: Callable[[str], None] = print) -> None:
        """Bring up `count` nodes; a lab of that size that is already up is left as it is."""
        self._check(count)
        STATE.mkdir(parents=True, exist_ok=True)
        self.prepare(say)
        network.up()
        _make_key()
        nodes = [Node(index) for index in range(1, count + 1)]
        for node in nodes:
            node.create()
        KNOWN_HOSTS.write_text("".join(node.known_host() for node in nodes))
        with ThreadPoolExecutor() as pool:
            list(pool.map(Node.poweron, nodes))
        self.start_hub()
        _give_to_user(STATE / "ssh")

    def prepare(self, say: Callable[[str], None] = print) -> None:
        """What every lab is made of, made once and cached: the base system, wheels, models."""
        _check_machine()
        _check_disk(0)
        CACHE.mkdir(parents=True, exist_ok=True)
        if not base.is_cached():
            say("installing the nodes' base system (about 100 s, once)")
        base.base()
        software.prepare(say)

    def _check(self, count: int) -> None:
        _check_machine()
        if not 1 <= count <= MAX_NODES:
            raise LabError(f"a lab has 1 to {MAX_NODES} nodes, not {count}")
        existing = self.nodes()
        if existing and len(existing) != count:
            raise LabError(f"a lab of {len(existing)} nodes is already there; `rackserve lab down` first")
        _check_disk(count - len(existing))
        network.check()

    def require_up(self) -> list[Node]:
        """The nodes; LabError unless there are some."""
        if not self.nodes():
            raise LabError("no lab is up: run `rackserve lab up`")
        return self.nodes()

    def down(self) -> None:
        """Remove all of the lab but its cache, also after a crash half-way."""
        if os.geteuid() != 0:
            raise LabError("the lab is root's: run `lab down` as root")
        self.stop_hub()
        nodes = self.nodes()
        for node in nodes:
            node.poweroff()  # all first: a running container pins the disks it was born beside
        for node in nodes:
            node.destroy()
        network.down()
        shutil.rmtree(STATE, ignore_errors=True)
        # The dying containers' mount namespaces hold the disks a moment longer, and so does
        # that of any container that was started while the lab was up.
        wait_until(
            lambda: f"({STATE}/" not in run("losetup", "-a"), 10,
            "the lab's disks to be released: all else of it is gone, they go when what holds them ends",
        )  # fmt: skip

    @property
    def hub_url(self) -> str:
        return f"http://{GATEWAY}:{HUB_PORT}"

    def start_hub(self) -> None:
        """Serve the lab's models and wheels to the nodes, on the lab's bridge only."""
        if any(_hub_processes()):
            return
        TOKENS.write_text(f"{READER}\n{STRANGER} -\n")
        command = [
            sys.executable, "-m", "tests.lab.hub", "--root", str(MODELS),
            "--wheelhouse", str(WHEELHOUSE), "--tokens", str(TOKENS),
            "--host", str(GATEWAY), "--port", str(HUB_PORT),
        ]  # fmt: skip
        with (STATE / "hub.log").open("ab") as log:
            subprocess.Popen(
                command, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_until(self._hub_answers, 30, f"the lab's hub (see {STATE}/hub.log)")

    def stop_hub(self) -> None:
        kill(_hub_processes, "the lab's hub")

    def _hub_answers(self) -> bool:
        import requests  # late: every run of pyinfra on the lab's inventory comes by here

        try:
            return requests.get(f"{self.hub_url}/healthz", timeout=2).ok
        except requests.ConnectionError:
            return False


def _hub_processes() -> Iterator[int]:
    return processes("tests.lab.hub", MODELS)


def _check_machine() -> None:
    if platform.system() != "Linux":
        raise LabError(f"the lab needs Linux; this is {platform.system()}")
    if os.geteuid() != 0:
        raise LabError("the lab makes network interfaces and mounts: run it as root")
    missing = sorted({deb for tool, deb in PROGRAMS.items() if not shutil.which(tool)})
    if missing:
        raise LabError(f"missing packages: run `apt-get install {' '.join(missing)}`")


def _check_disk(new_nodes: int) -> None:
    where = next(path for path in (STATE, *STATE.parents) if path.exists())
    free = shutil.disk_usage(where).free / 2**30
    needed = max(new_nodes, 0) * FREE_GIB_PER_NODE
    if not base.is_cached():
        needed += FREE_GIB_FOR_CACHE
    if free < needed:
        raise LabError(f"{where} has {free:.0f} GiB free; this lab needs {needed} GiB")


def _make_key() -> None:
    if not KEY.exists():
        KEY.parent.mkdir(parents=True, exist_ok=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "rackserve-lab", "-f", KEY)


def _give_to_user(folder: Path) -> None:
    """After `sudo`, the key belongs to the person who asked, so that their ssh may read it."""
    if "SUDO_UID" in os.environ:
        run("chown", "-R", f"{os.environ['SUDO_UID']}:{os.environ['SUDO_GID']}", folder)
