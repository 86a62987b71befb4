"""DOCA-OFED: what a host gets, what is refused, and what a real apt makes of it."""

import json
import os
import subprocess
from dataclasses import replace

import pytest

from roles import debian, ofed
from roles.ofed import choice
from roles.ofed.choice import KEY, KEY_ID, SOURCES
from roles.ofed.facts import Fingerprints, Look
from tests.lab.drivers import KEYRING, Apt, Empty, Repository
from tests.test_nvidia import LOOKED, provision

__all__ = ["provision"]  # a fixture

HOST = ofed.Seen(distribution="ubuntu 24.04", kernel="6.8.0-31-generic", cards=8)
ITS = ofed.wanted(HOST, "3.2.1")
INSTALL = f"{debian.APT} install linux-headers-6.8.0-31-generic 'doca-ofed=3.2.1-*'"


def test_apt_takes_that_release_for_that_distribution_and_machine():
    at = "https://linux.mellanox.com/public/repo/doca/3.2.1"
    assert ITS.sources == f"deb [signed-by={KEY}] {at}/ubuntu24.04/x86_64/ ./\n"
    arm = ofed.wanted(replace(HOST, distribution="ubuntu 22.04", machine="aarch64"), "3.2.1")
    assert arm.folder == f"{at}/ubuntu22.04/arm64-sbsa/"


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"distribution": "debian 12"}, "known for ubuntu 22.04 and ubuntu 24.04 only, not for debian 12"),
        ({"machine": "riscv64"}, "not for ubuntu 24.04 on riscv64"),
        ({"cards": 0}, "no network card of NVIDIA's"),
        ({"other": "OFED 24.10-1.1.4"}, "OFED 24.10-1.1.4 came by its own installer: sudo ofed_uninstall.sh"),
        (
            {"sources": ("/etc/apt/sources.list.d/doca.list",)},
            "sources.list.d/doca.list names its repository",
        ),
        ({"secure_boot": True}, "Secure Boot is on"),
        ({"serving": ("replica-0", "replica-1")}, "replica-0, replica-1 serves"),
        ({"version": "3.10.0-1"}, "doca-ofed 3.10.0-1 is newer"),
    ],
)
def test_what_is_in_the_way_is_said_with_what_to_do(seen, said):
    (problem,) = ofed.problems(replace(HOST, **seen), "3.2.1")
    assert problem.startswith("doca_ofed is 3.2.1: ") and said in problem
    assert problem.endswith("without doca_ofed the distribution's modules and libraries serve")


def test_a_host_that_has_it_may_serve():
    there = replace(
        HOST, version="3.2.1-044000", serving=("replica-0",), secure_boot=True, sources=(SOURCES,)
    )
    assert ofed.problems(there, "3.2.1") == [] == ofed.problems(HOST, "3.2.1")
    assert ofed.problems(replace(HOST, version="2.9.1-1"), "3.2.1") == [], "an older one is replaced"


def read(root, *tools):
    """What the fact says of a host with these files, and of programs that say something."""
    for tool, says in tools:
        (root / tool).write_text(f"#!/bin/sh\n{says}\n")
        (root / tool).chmod(0o755)
    command = Look().command()
    for place in ("/etc/", "/sys/", "/var/", "/boot/"):
        command = command.replace(place, f"{root}{place}")
    done = subprocess.run(["sh", "-c", f'PATH="{root}:$PATH"; {command}'], capture_output=True, text=True)
    return Look().process(done.stdout.splitlines())


def test_a_host_is_looked_at(tmp_path):
    for number, (vendor, kind) in enumerate([("0x15b3", "0x020700"), ("0x15b3", "0x020000"),
                                             ("0x15b3", "0x0580"), ("0x10de", "0x030200")]):  # fmt: skip
        device = tmp_path / f"sys/bus/pci/devices/{number}"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "etc/apt/sources.list.d/doca.list").write_text(ITS.sources)
    for unread, text in (("doca.list.save", ITS.sources), ("off.list", f"# {ITS.sources}")):
        (tmp_path / "etc/apt/sources.list.d" / unread).write_text(text)
    (tmp_path / "etc/os-release").write_text('ID=ubuntu\nVERSION_ID="24.04"\n')
    units = "rackserve-replica-0-vllm.service x\\nrackserve-replica-0-ray.service x\\n"
    systemctl = ("systemctl", f"printf '{units}'")
    seen = read(tmp_path, systemctl, ("dpkg-query", "echo 'package ii  3.2.1-044000'"))
    assert (seen.distribution, seen.cards, seen.version) == ("ubuntu 24.04", 2, "3.2.1-044000")
    assert seen.serving == ("replica-0",) and not seen.interrupted and not seen.other
    assert [path.removeprefix(str(tmp_path)) for path in seen.sources] == [
        "/etc/apt/sources.list.d/doca.list"
    ]
    other = read(tmp_path, systemctl, ("dpkg-query", "exit 1"), ("ofed_info", "echo 24.10-1.1.4"))
    assert (other.version, other.other) == ("", "OFED 24.10-1.1.4")
    assert Look().process([]) is None
    cut_off = ["source " + choice.SOURCES, "package iF 3.2.1-044000", "other 24.10-1.1.4", "asked"]
    assert Look().process(cut_off).other == ""


def test_an_initramfs_is_stale_when_it_is_older_than_the_module_that_it_should_have(tmp_path):
    module, image = tmp_path / "mlx5_core.ko", tmp_path / f"boot/initrd.img-{os.uname().release}"
    image.parent.mkdir()
    module.touch()
    modinfo = ("modinfo", f'test "$*" = "--field filename mlx5_core" && echo {module}')
    assert read(tmp_path, modinfo).stale is False, "there is none"
    image.touch()
    for moment, stale in ((1, False), (2**40, True)):
        os.utime(module, (moment, moment))
        assert read(tmp_path, modinfo).stale is stale
    assert read(tmp_path, ("modinfo", "exit 1")).stale is False


def test_what_is_run_and_that_the_second_time_nothing_is(on_host):
    host = on_host({Look: replace(HOST, interrupted=True), Fingerprints: []})
    fetch = host.commands(ofed.key)
    assert fetch == [debian.key(f"{choice.REPOSITORY}/GPG-KEY-Mellanox.pub", KEY, KEY_ID)]
    assert host.commands(ofed.packages, its=ITS) == [
        debian.repaired(), debian.refreshed(), debian.patiently(INSTALL), choice.INITRAMFS,
    ]  # fmt: skip
    assert host.said == ["its modules are loaded by a reboot: rackserve rollout --reboot due"]
    cut_off = on_host({Look: replace(HOST, version="3.2.1-1", stale=True)})
    assert cut_off.commands(ofed.packages, its=ITS) == [choice.INITRAMFS]
    there = on_host({Look: replace(HOST, version="3.2.1-1"), Fingerprints: [f"{'0' * 24}{KEY_ID}"]})
    assert there.commands(ofed.key) == there.commands(ofed.packages, its=ITS) == []


def test_apt_installs_the_release_that_is_asked_for(tmp_path):
    repository = Repository(tmp_path / "doca")
    repository.add([Empty("doca-ofed", version) for version in ("2.9.5-0.1.8", "3.2.1-044000", "3.3.0-1")])
    repository.add([Empty("linux-headers-6.8.0-31-generic", "1")])
    system = Apt(tmp_path / "apt")
    system.knows("doca", repository)
    system.run(choice.installed(ITS, HOST))
    assert system.installed["doca-ofed"] == "ii 3.2.1-044000"
    system.run(choice.installed(replace(ITS, release="3.3.0"), HOST))
    assert system.installed["doca-ofed"] == "ii 3.3.0-1"


def test_a_key_is_known_by_the_end_of_its_fingerprint(tmp_path):
    repository = Repository(tmp_path / "doca")
    got, url = tmp_path / "key.asc", f"file://{repository.folder / KEYRING}"
    for fingerprint, kept in ((KEY_ID, False), (repository.fingerprint[-16:], True)):
        done = subprocess.run(["sh", "-c", debian.key(url, str(got), fingerprint)], capture_output=True)
        assert (done.returncode == 0, got.exists()) == (kept, kept), done.stderr


UBUNTU = ["os ubuntu 24.04", "machine x86_64", "kernel 6.8.0-31-generic"]


def answers(*lines, **data):
    said = {"echo asked": ["os ubuntu 24.04", *LOOKED, *lines, "asked"]}
    return [], {"fake_responses": said, "driver": False, **data}


def test_provision_installs_it_where_the_inventory_says_so(provision):
    done = provision({"gpu1": answers(*UBUNTU, "card", doca_ofed="3.2.1"), "gpu2": answers(*UBUNTU)})
    assert done.returncode == 0, done.stderr
    plan = {op["name"]: op["hosts_with_change"] for op in json.loads(done.stdout)["plan"]}
    for name in ("Trust who signs DOCA's packages", "Take DOCA's packages from NVIDIA",
                 "Install DOCA-OFED 3.2.1"):  # fmt: skip
        assert plan[f"OFED | {name}"] == ["@fake/gpu1"]


def test_hosts_that_cannot_have_it_are_named_all_at_once(provision):
    done = provision({name: answers(*UBUNTU, doca_ofed="3.2.1") for name in ("gpu1", "gpu2")})
    assert done.returncode == 1 and not done.stdout
    said = " ".join(done.stderr.split())
    assert all(
        f"@fake/{name}: doca_ofed is 3.2.1: there is no network card" in said for name in ("gpu1", "gpu2")
    )
