"""NVIDIA's driver on a node: installed, held, changed while a replica is out, loaded by a reboot.

Its packages are empty and its GPUs are files; apt, dpkg, kmod and systemd are real. Each test goes on where
the one before ended.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from roles.nvidia.table import FABRIC, MONITORING, PERSISTENCE
from tests.lab.driver_node import KERNEL, gpus, loaded, repository
from tests.lab.drivers import CUT, Empty, Repository, compiler, monitoring, release
from tests.lab.node import Node
from tests.lab.testing import Outcome, belongings, pyinfra

pytestmark = pytest.mark.lab

OLD, NEW = "580.95.05", "580.105.08"
DRIVER = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced", "nvidia-fabricmanager")
UNITS = (PERSISTENCE, FABRIC, *MONITORING)
REPLICA = "rackserve-replica-0-vllm"
BOOT = "cat /proc/sys/kernel/random/boot_id"
#: apt reads NVIDIA's list alone: a node's own archive may have news.
ALONE = "-q -o Dir::Etc::SourceList=/dev/null"

INVENTORY = """
import importlib
importlib.import_module("tests.lab.driver_node").lend({url!r}, {fingerprint!r})
_lab = importlib.import_module("inventories.lab")
_name, _node = [*_lab.head, *_lab.workers][-1]
head, workers = [(_name, {{**_node, "_sudo": True, "gpus": 2}})], []
"""

# It lets go 3 s after an apt that is to install something has come, or in any case after 2 minutes.
LOCKED = """
import fcntl, glob, time
with open("/var/lib/dpkg/lock-frontend", "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    until = time.monotonic() + 120
    while time.monotonic() < until:
        time.sleep(0.2)
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                words = open(path, "rb").read().split(b"\\0")
            except OSError:
                continue
            if words[0].endswith(b"apt-get") and b"install" in words:
                until = min(until, time.monotonic() + 3)
"""


@pytest.fixture(scope="module")
def node(lab: list[Node]) -> Iterator[Node]:
    """The last of the lab's, with GPUs; in the end it is what it was."""
    before = belongings(lab[-1])
    with gpus(lab[-1]) as node:
        yield node
    assert belongings(lab[-1]) ^ before == set()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Repository, str]]:
    with repository(tmp_path_factory.mktemp("repositories") / "cuda") as (nvidia, url):
        nvidia.add([*release(OLD, KERNEL), *monitoring(), *compiler()])
        yield nvidia, url


@pytest.fixture(scope="module")
def provide(
    node: Node, served: tuple[Repository, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Outcome]:
    nvidia, url = served
    file = tmp_path_factory.mktemp("inventory") / "driver.py"
    file.write_text(INVENTORY.format(url=url, fingerprint=nvidia.fingerprint))
    return lambda **data: pyinfra("tests/lab/provision_driver.py", inventory=str(file), **data)


@contextmanager
def locked(node: Node) -> Iterator[None]:
    """Another apt is at work, until ours has waited for it."""
    with subprocess.Popen(
        node.ssh("sudo", "python3", "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin and other.stdout
        other.stdin.write(LOCKED)
        other.stdin.close()
        assert other.stdout.readline() == "locked\n"
        yield


def versions(node: Node) -> set[str]:
    """Of all that must be of one version, without what a build adds."""
    said = node.sudo(f"dpkg-query -W {' '.join(DRIVER)}")
    return {line.split()[1].rpartition("-")[0] for line in said.splitlines()}


def held(node: Node) -> set[str]:
    return set(node.sudo("apt-mark showhold").split())


def test_it_is_installed_when_another_apt_is_done_held_and_loaded_by_a_reboot(
    node: Node, provide: Callable[..., Outcome]
) -> None:
    boot = node.sudo(BOOT)
    with locked(node):
        done = provide(reboot="due")
    assert done.code == 0, done.said
    assert versions(node) == {OLD} and held(node) >= set(DRIVER)
    assert loaded(node) == OLD and node.sudo(BOOT) != boot
    assert f"{OLD}-1 1000" in node.sudo("apt-cache policy nvidia-driver-cuda"), "pinned"
    assert node.sudo(f"systemctl is-active {' '.join(UNITS)}").split() == ["active"] * len(UNITS)
    boot, again = node.sudo(BOOT), provide(reboot="due")
    assert again.code == 0 and again.changed == {} and node.sudo(BOOT) == boot, again.said


def test_an_upgrade_leaves_it_alone_and_so_does_another_run(
    node: Node, provide: Callable[..., Outcome], served: tuple[Repository, str]
) -> None:
    served[0].add(release(NEW, KERNEL))
    node.sudo(f"apt-get {ALONE} update && DEBIAN_FRONTEND=noninteractive apt-get {ALONE} -y dist-upgrade")
    assert NEW in node.sudo("apt-cache madison nvidia-driver-cuda"), "there is something newer"
    assert versions(node) == {OLD}
    again = provide()
    assert again.code == 0 and again.changed == {} and versions(node) == {OLD}, again.said


def test_a_newer_one_is_refused_under_a_replica_in_a_run_that_reboots_nothing(
    node: Node, provide: Callable[..., Outcome]
) -> None:
    node.sudo(f"systemd-run --quiet --unit={REPLICA} sleep infinity")
    refused = provide(driver=NEW)
    assert refused.code == 1 and f"replica-0 serves with driver {OLD}; {NEW}" in refused.said, refused.said
    assert "rackserve rollout --reboot due" in refused.said
    assert versions(node) == {OLD} and node.sudo(f"systemctl is-active {REPLICA}") == "active\n"


def test_it_is_changed_while_the_replica_is_out_and_an_apt_that_was_killed_is_finished_by_the_next_run(
    node: Node, provide: Callable[..., Outcome]
) -> None:
    node.sudo(f"touch {CUT}")
    cut = provide(driver=NEW, reboot="due")
    assert cut.code == 1 and "waits until replica-0 is out" in cut.said, cut.said
    assert node.sudo("dpkg --audit") and loaded(node) == OLD
    assert node.sudo(f"systemctl is-active {REPLICA} || true") == "inactive\n"
    done = provide(driver=NEW, reboot="due")
    assert done.code == 0 and not node.sudo("dpkg --audit"), done.said
    assert versions(node) == {NEW} and held(node) >= set(DRIVER) and loaded(node) == NEW
    again = provide(driver=NEW, reboot="due")
    assert again.code == 0 and again.changed == {}, again.said


def test_a_driver_of_another_source_beside_it_is_refused(
    node: Node, provide: Callable[..., Outcome], tmp_path: Path
) -> None:
    name = "nvidia-utils-580-server"
    package = Empty(name, "580.173.02-0ubuntu0.24.04.1").build(tmp_path)
    (node.root / "root/other.deb").write_bytes(package.read_bytes())
    node.sudo("dpkg -i /root/other.deb && rm /root/other.deb")
    refused = provide(driver=NEW)
    node.sudo(f"dpkg --purge {name}")
    said = f"the driver is to come from NVIDIA alone, and there is {name} from Ubuntu"
    assert refused.code == 1 and said in " ".join(refused.said.split()), refused.said
    assert versions(node) == {NEW}
