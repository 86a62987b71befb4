"""NVIDIA's driver: what each distribution gets, what is refused, and what a real apt makes of it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from fnmatch import fnmatch

import pytest
from pyinfra.context import ctx_host, ctx_state

from roles import debian
from roles.nvidia import BLACKLIST, NOUVEAU, PERSISTENT, apt, dnf, operations, yours
from roles.nvidia.facts import BUILD, Fingerprints, Initramfs, Look, Offered, Room, Space, Staged
from roles.nvidia.problems import problems
from roles.nvidia.table import BRANCHES, DRIVER, FINGERPRINT, KEYRING, PERSISTENCE, ROWS, TOOLKIT
from roles.nvidia.want import Package, Seen, wanted
from roles.runtime import locks, pins
from roles.units.facts import Unit, UnitState
from tests.lab.drivers import DEBIAN, UBUNTU, Apt, Empty, Repository, compiler, monitoring, release
from tests.test_deploys import pyinfra

KERNELS = {
    "ubuntu 22.04": ("5.15.0-119-generic", "generic"),
    "ubuntu 24.04": ("6.8.0-31-generic", "generic"),
    "debian 12": ("6.1.0-31-amd64", "amd64"),
    "rocky 9.4": ("5.14.0-427.13.1.el9_4.x86_64", ""),
}


def node(distribution="ubuntu 24.04", **more):
    kernel, flavour = KERNELS.get(distribution, ("6.8.0-31-generic", "generic"))
    packages = {f"linux-image-{flavour}": Package("1")} if flavour else {}
    packages.update({name: Package(version) for name, version in more.pop("packages", {}).items()})
    more.setdefault("components", ("contrib", "restricted", "multiverse"))
    return Seen(distribution=distribution, kernel=kernel, gpus=8, packages=packages, **more)


HGX = {"switches": 4}
OPTIONS = "-o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
INSTALL = (
    f"NEEDRESTART_MODE=l DEBIAN_FRONTEND=noninteractive apt-get -y {OPTIONS} install"
    " --no-install-recommends --allow-downgrades --allow-change-held-packages "
)
OTHERS = (
    "datacenter-gpu-manager-4-cuda13 datacenter-gpu-manager-exporter cuda-nvcc-13-0 cuda-cuobjdump-13-0"
    " cuda-cudart-dev-13-0 cuda-nvrtc-dev-13-0 libcublas-dev-13-0 libcurand-dev-13-0"
)

# What each distribution installs from each source, on a node with NVSwitches.
NAMES = {
    ("ubuntu 22.04", "nvidia", "580"): "libnvidia-compute-580 libnvidia-cfg1-580 nvidia-dkms-580-open"
    " nvidia-compute-utils-580 nvidia-utils-580 nvidia-persistenced nvidia-fabricmanager"
    f" linux-headers-5.15.0-119-generic linux-headers-generic {OTHERS}",
    ("ubuntu 22.04", "nvidia", "595"): "libnvidia-compute nvidia-dkms-open nvidia-persistenced"
    f" nvidia-fabricmanager linux-headers-5.15.0-119-generic linux-headers-generic {OTHERS}",
    ("ubuntu 24.04", "nvidia", "580"): "libnvidia-compute-580 libnvidia-cfg1-580 nvidia-dkms-580-open"
    " nvidia-compute-utils-580 nvidia-utils-580 nvidia-persistenced nvidia-fabricmanager"
    f" linux-headers-6.8.0-31-generic linux-headers-generic {OTHERS}",
    ("ubuntu 24.04", "nvidia", "595"): "libnvidia-compute nvidia-dkms-open nvidia-persistenced"
    f" nvidia-fabricmanager linux-headers-6.8.0-31-generic linux-headers-generic {OTHERS}",
    ("ubuntu 22.04", "ubuntu", "580"): "nvidia-headless-no-dkms-580-server-open nvidia-utils-580-server"
    " nvidia-fabricmanager-580 linux-modules-nvidia-580-server-open-5.15.0-119-generic"
    f" linux-modules-nvidia-580-server-open-generic {OTHERS}",
    ("ubuntu 22.04", "ubuntu", "595"): "nvidia-headless-no-dkms-595-server-open nvidia-utils-595-server"
    " nvidia-fabricmanager-595 linux-modules-nvidia-595-server-open-5.15.0-119-generic"
    f" linux-modules-nvidia-595-server-open-generic {OTHERS}",
    ("ubuntu 24.04", "ubuntu", "580"): "nvidia-headless-no-dkms-580-server-open nvidia-utils-580-server"
    " nvidia-fabricmanager-580 linux-modules-nvidia-580-server-open-6.8.0-31-generic"
    f" linux-modules-nvidia-580-server-open-generic {OTHERS}",
    ("ubuntu 24.04", "ubuntu", "595"): "nvidia-headless-no-dkms-595-server-open nvidia-utils-595-server"
    " nvidia-fabricmanager-595 linux-modules-nvidia-595-server-open-6.8.0-31-generic"
    f" linux-modules-nvidia-595-server-open-generic {OTHERS}",
    ("debian 12", "nvidia", "580"): "nvidia-driver-cuda nvidia-kernel-open-dkms nvidia-persistenced"
    f" nvidia-fabricmanager linux-headers-6.1.0-31-amd64 linux-headers-amd64 {OTHERS}",
    ("debian 12", "nvidia", "595"): "nvidia-driver-cuda nvidia-kernel-open-dkms nvidia-persistenced"
    f" nvidia-fabricmanager linux-headers-6.1.0-31-amd64 linux-headers-amd64 {OTHERS}",
}

PINNED = (
    "nvidia-* libnvidia-* libcuda1 libcudadebugger1 libnvcuvid1 firmware-nvidia-gsp"
    " xserver-xorg-video-nvidia*"
)
MODULES = "linux-modules-nvidia-* linux-objects-nvidia-* linux-signatures-nvidia-*"

# What apt is told of each source: whose packages it leaves alone, and which versions it takes.
PREFERENCES = {
    ("ubuntu 24.04", "nvidia"): f"""\
# Rackserve: the driver is from nvidia, and nothing of it from elsewhere.
Package: {PINNED} {MODULES}
Pin: release o=Ubuntu
Pin-Priority: -1

Package: {PINNED}
Pin: version 580.*
Pin-Priority: 1000

""",
    ("ubuntu 24.04", "ubuntu"): f"""\
# Rackserve: the driver is from ubuntu, and nothing of it from elsewhere.
Package: {PINNED} {MODULES}
Pin: release l=NVIDIA CUDA
Pin-Priority: -1

Package: {PINNED}
Pin: version 580.*
Pin-Priority: 1000

""",
    ("debian 12", "nvidia"): f"""\
# Rackserve: the driver is from nvidia, and nothing of it from elsewhere.
Package: src:nvidia-graphics-drivers*:any
Pin: release o=Debian
Pin-Priority: -1

Package: {PINNED}
Pin: version 580.*
Pin-Priority: 1000

""",
}


@pytest.mark.parametrize(("distribution", "source", "branch"), NAMES)
def test_what_a_distribution_installs(distribution, source, branch):
    seen = node(distribution, **HGX)
    its = wanted(seen, branch, source)
    names = NAMES[distribution, source, branch]
    assert apt.installed(its.missing(seen), {}) == INSTALL + names


def test_every_row_of_apts_is_golden():
    rows = {(distribution, source) for distribution, its in ROWS.items() for source, row in its.items()
            if row.manager == "apt"}  # fmt: skip
    assert set(NAMES) == {(*row, branch) for row in rows for branch in BRANCHES}
    assert {source for _, source in PREFERENCES} == {source for _, source in rows}


@pytest.mark.parametrize(("distribution", "source"), PREFERENCES)
def test_what_apt_is_told_of_a_source(distribution, source):
    seen = node(distribution)
    told = apt.files(wanted(seen, "580", source), seen)["/etc/apt/preferences.d/rackserve-nvidia"]
    assert told == PREFERENCES[distribution, source]
    of_one = apt.preferences(wanted(seen, "580", source), "580.95.05")
    pin = "Pin: version 580.*\nPin-Priority: 1000"
    assert of_one == told.replace(pin, "Pin: version 580.95.05-*\nPin-Priority: 1001")


@pytest.mark.parametrize(("distribution", "folder"), [
    ("ubuntu 22.04", "ubuntu2204"), ("ubuntu 24.04", "ubuntu2404"), ("debian 12", "debian12"),
])  # fmt: skip
@pytest.mark.parametrize(("machine", "architecture"), [("x86_64", "x86_64"), ("aarch64", "sbsa")])
def test_nvidias_repository_is_named_as_its_own_package_names_it(distribution, folder, machine, architecture):
    """Another key for the same address, and apt would read no list any more."""
    seen = node(distribution, machine=machine)
    at = f"https://developer.download.nvidia.com/compute/cuda/repos/{folder}/{architecture}/"
    written = apt.files(wanted(seen, "580", "auto"), seen)
    path = f"/etc/apt/sources.list.d/cuda-{folder}-{architecture}.list"
    assert written[path] == f"deb [signed-by=/usr/share/keyrings/cuda-archive-keyring.gpg] {at} /\n"


def test_what_rocky_would_do():
    seen = node("rocky 9.4", **HGX)
    its = wanted(seen, "580", "auto")
    assert dnf.files(its, seen) == {
        "/etc/yum.repos.d/cuda-rhel9.repo": (
            "[cuda-rhel9-x86_64]\nname=cuda-rhel9-x86_64\n"
            "baseurl=https://developer.download.nvidia.com/compute/cuda/repos/rhel9/x86_64\n"
            "enabled=1\ngpgcheck=1\n"
            "gpgkey=https://developer.download.nvidia.com/compute/cuda/repos/rhel9/x86_64/D42D0685.pub\n"
        )
    }
    missing = its.missing(seen)
    assert [dnf.refreshed(its), dnf.installed(missing, dict.fromkeys(its.exact, "580.95.05")),
            dnf.held(its.exact), dnf.initramfs()] == [
        "dnf -y install epel-release 'dnf-command(versionlock)' && dnf config-manager --set-enabled crb"
        " && dnf -y module enable nvidia-driver:580-open",
        "dnf -y install nvidia-driver-cuda-580.95.05 kmod-nvidia-open-dkms-580.95.05"
        " nvidia-persistenced-580.95.05 nvidia-fabricmanager-580.95.05"
        f" kernel-devel-5.14.0-427.13.1.el9_4.x86_64 kernel-headers {OTHERS.replace('-dev-', '-devel-')}",
        "dnf versionlock add nvidia-driver-cuda kmod-nvidia-open-dkms nvidia-persistenced"
        " nvidia-fabricmanager",
        "dracut -f",
    ]  # fmt: skip


@pytest.mark.parametrize(("distribution", "source"), [(d, s) for d, rows in ROWS.items() for s in rows])
@pytest.mark.parametrize("branch", BRANCHES)
def test_every_row_names_all_it_needs(distribution, source, branch):
    its = wanted(node(distribution, **HGX), branch, source)
    assert its.driver and its.modules and its.fabric and its.monitoring and its.compiler
    assert not any("{" in name for name in (*its.exact, *its.others))
    if its.row.manager == "apt":
        assert all(any(fnmatch(name, glob) for glob in DRIVER) for name in its.exact), "pinned and held"


def test_what_compiles_at_start_is_of_the_cuda_that_vllms_environment_has():
    versions = {version for version in pins(*locks("cuda"))["cuda-toolkit"] if version}
    assert {"-".join(version.split(".")[:2]) for version in versions} == {TOOLKIT}


def test_a_node_that_serves_gets_a_compiler_and_no_other_driver():
    its = NVIDIA_SOURCE
    there = {name: "580.95.05-1" for name in its.exact} | dict.fromkeys((*its.modules, *its.monitoring), "1")
    seen = node(packages=there, serving=("replica-0",), loaded="580.95.05", module="580.95.05", **HGX)
    assert problems(seen, "580", "nvidia", 8) == [] and its.missing(seen) == list(its.compiler)


def test_fabric_manager_is_for_nvswitches_only_and_a_subnet_manager_for_those_of_b200():
    assert wanted(node(), "580", "auto").fabric == ()
    hgx = wanted(node(switches=4), "580", "auto")
    assert (hgx.fabric, hgx.subnet_manager) == (("nvidia-fabricmanager",), ())
    b200 = wanted(node(nvlink5=True), "580", "auto")
    assert (b200.fabric, b200.subnet_manager) == (("nvidia-fabricmanager",), ("nvlsm", "infiniband-diags"))
    assert "nvidia-fabricmanager.service" in b200.services
    assert "nvidia-fabricmanager.service" not in wanted(node(), "580", "auto").services


NVIDIAS = {"libnvidia-compute-580": "580.95.05-0ubuntu1", "nvidia-dkms-580-open": "580.95.05-0ubuntu1"}
UBUNTUS = {"nvidia-utils-580-server": "580.173.02-0ubuntu0.24.04.1"}
DEBIANS = {"libcuda1": "535.247.01-1~deb12u1", "nvidia-kernel-dkms": "535.247.01-1~deb12u1"}


@pytest.mark.parametrize(
    ("seen", "asked", "source"),
    [
        (node(), "auto", "nvidia"),
        (node(secure_boot=True), "auto", "ubuntu"),
        (node(secure_boot=True), "nvidia", "nvidia"),
        (node(), "ubuntu", "ubuntu"),
        (node(packages=UBUNTUS), "auto", "ubuntu"),
        (node(packages=NVIDIAS, secure_boot=True), "auto", "nvidia"),
        # Only Ubuntu has modules that are made for a kernel.
        (
            node(packages={"linux-modules-nvidia-580-server-6.8.0-31-generic": "6.8.0-31.31"}),
            "auto",
            "ubuntu",
        ),
        # Of daemons beside a driver it does not matter whose they are.
        (node(packages={"nvidia-settings": "510.47.03-0ubuntu4.24.04.1"}), "auto", "nvidia"),
        (node("debian 12"), "auto", "nvidia"),
    ],
)
def test_the_source_is_what_is_there_or_what_the_host_can_load(seen, asked, source):
    assert problems(seen, "580", asked, 8) == []
    assert wanted(seen, "580", asked).source == source


LEAVE = "driver=False leaves the driver of the host to you"
PURGE = "sudo apt-get purge 'nvidia-*' 'libnvidia-*' 'linux-modules-nvidia-*', and reboot"
LIST = "/etc/apt/sources.list.d/cuda-ubuntu2404-x86_64.list"


@pytest.mark.parametrize(
    ("seen", "driver", "source", "said"),
    [
        (
            node("fedora 40"), "580", "auto",
            f"fedora 40 is not one of ubuntu 22.04, ubuntu 24.04, debian 12, rocky 9; {LEAVE}",
        ),
        (
            node("ubuntu 20.04"), "580", "auto",
            f"ubuntu 20.04 is not one of ubuntu 22.04, ubuntu 24.04, debian 12, rocky 9; {LEAVE}",
        ),
        (node(), "581", "auto", "driver is 581: must be of branch 580 or 595"),
        (node(), "570.133.20", "auto", "driver is 570.133.20: must be of branch 580 or 595"),
        (
            node("debian 12"), "580", "ubuntu",
            "debian 12 has no driver from ubuntu: driver_source can be nvidia",
        ),
        (
            node("debian 12", secure_boot=True), "580", "auto",
            "Secure Boot is on, and debian 12 has no signed driver: turn it off, or enroll DKMS's key"
            " (sudo mokutil --import /var/lib/dkms/mok.pub) and say driver_source=nvidia",
        ),
        (
            replace(node(), gpus=7), "580", "auto",
            "8 GPUs promised, 7 on the PCI bus: correct `gpus` in the inventory, or look for the GPU: sudo"
            " dmesg | grep -i pci",
        ),
        (
            node(machine="ppc64le"), "580", "auto",
            f"ppc64le: NVIDIA has drivers for x86_64 and aarch64 only; {LEAVE}",
        ),
        (
            node(run_file=True), "580", "auto",
            f"its driver is from NVIDIA's .run file: remove it (sudo nvidia-uninstall); {LEAVE}",
        ),
        (
            node(packages=UBUNTUS), "580", "nvidia",
            "the driver is to come from NVIDIA alone, and there is nvidia-utils-580-server from Ubuntu:"
            f" {PURGE}; {LEAVE}",
        ),
        (
            node(packages={**NVIDIAS, **UBUNTUS}), "580", "auto",
            "the driver is to come from NVIDIA alone, and there is nvidia-utils-580-server from Ubuntu:"
            f" {PURGE}; {LEAVE}",
        ),
        (
            node(packages={"nvidia-driver-580-open": "580.126.09-0ubuntu0.24.04.1"}), "580", "auto",
            f"nvidia-driver-580-open is of Ubuntu's desktop driver, not of its server's: {PURGE}; {LEAVE}",
        ),
        (
            node("debian 12", packages=DEBIANS), "580", "auto",
            "the driver is to come from NVIDIA alone, and there is libcuda1 from Debian, nvidia-kernel-dkms"
            f" from Debian: {PURGE}; {LEAVE}",
        ),
        (
            node(packages={"libnvidia-compute": "595.71.05-1ubuntu1"}), "580", "auto",
            f"driver 595 is installed, 580 is older: set driver=595, or purge it; {LEAVE}",
        ),
        (
            node(sources=(LIST, "/etc/apt/sources.list.d/cuda.list")), "580", "auto",
            "/etc/apt/sources.list.d/cuda.list names NVIDIA's repository, too, which apt refuses to read with"
            f" two keys: remove it; it is written to {LIST}",
        ),
        (
            node(secure_boot=True, components=("restricted",)), "580", "auto",
            "apt does not know multiverse of ubuntu 24.04, from which something comes: sudo"
            " add-apt-repository multiverse",
        ),
        (
            node("debian 12", components=()), "580", "auto",
            "apt does not know contrib of debian 12, from which something comes: sudo add-apt-repository"
            " contrib",
        ),
        (
            node(serving=("replica-0", "replica-1"), loaded="570.133.20"), "580", "auto",
            "replica-0, replica-1 serves with driver 570.133.20; 580.* from NVIDIA is installed only while"
            f" it is out, for then nothing new could start: rackserve rollout --reboot due; {LEAVE}",
        ),
    ],
)  # fmt: skip
def test_what_is_in_the_way_is_said_with_its_fix(seen, driver, source, said):
    assert problems(seen, driver, source, 8) == [said]


SIGNED = "linux-modules-nvidia-580-server-open"
UPGRADE = "upgrade the kernel and reboot first: sudo apt-get update; sudo apt-get dist-upgrade; sudo reboot"


def known(*kinds, stem="linux-headers"):
    return frozenset(f"{stem}-{kind}" for kind in kinds)


def of_flavour(flavour, known):
    """A host under Secure Boot with a kernel of that flavour."""
    return replace(node(secure_boot=True, known=known), packages={f"linux-image-{flavour}": Package("1")})


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (node("debian 12", known=known("6.1.0-31-amd64", "amd64")), []),
        (node("debian 12", known=known()), []),  # its lists are not fetched
        # A kernel that is not the archive's: its headers may be somebody else's.
        (replace(node("debian 12", known=known("6.1.0-53-amd64", "amd64")), kernel="6.18.44-own"), []),
        (
            node("debian 12", known=known("6.1.0-53-amd64", "6.12.1+deb12-amd64", "amd64")),
            [f"no linux-headers-6.1.0-31-amd64 to be had: {UPGRADE}"],
        ),
        (node("debian 12", known=known("6.1.0-53-cloud-amd64", "amd64", "cloud-amd64")), []),
        (
            node("debian 12", known=known("6.1.0-53-amd64", "amd64"),
                 packages={"linux-headers-6.1.0-31-amd64": "6.1.123-1"}),
            [],
        ),
        (node(secure_boot=True, known=known("6.8.0-31-generic", "generic", stem=SIGNED)), []),
        (
            node(secure_boot=True, known=known("6.8.0-90-generic", "generic", stem=SIGNED)),
            [f"no {SIGNED}-6.8.0-31-generic to be had: {UPGRADE}"],
        ),
        (
            of_flavour("virtual", known("6.8.0-31-generic", "aws", "generic", stem=SIGNED)),
            [
                f"no {SIGNED}-virtual to be had, but for aws, generic: take a kernel of another flavour"
                " first: sudo apt-get update; sudo apt-get install linux-image-generic"
                " linux-headers-generic; sudo apt-get purge linux-image-virtual; sudo reboot"
            ],
        ),
        (
            of_flavour("virtual-hwe-24.04", known("aws", "generic-hwe-24.04", stem=SIGNED)),
            [
                f"no {SIGNED}-virtual-hwe-24.04 to be had, but for aws, generic-hwe-24.04: take a kernel of"
                " another flavour first: sudo apt-get update; sudo apt-get install"
                " linux-image-generic-hwe-24.04 linux-headers-generic-hwe-24.04; sudo apt-get purge"
                " linux-image-virtual-hwe-24.04; sudo reboot"
            ],
        ),
        (
            of_flavour("generic-hwe-24.04", known("aws", "azure", stem=SIGNED)),
            [
                f"no {SIGNED}-generic-hwe-24.04 to be had, but for aws, azure: take a kernel of another"
                " flavour first: sudo apt-get update; sudo apt-get install linux-image-FLAVOUR"
                " linux-headers-FLAVOUR; sudo apt-get purge linux-image-generic-hwe-24.04; sudo reboot"
            ],
        ),
    ],
)  # fmt: skip
def test_a_kernel_for_which_there_is_nothing_to_be_had_is_refused_before_anything_changes(seen, said):
    assert problems(seen, "580", "auto", 8) == said


def test_all_problems_of_a_host_are_said_at_once():
    seen = replace(node("debian 12", run_file=True), gpus=0)
    assert len(problems(seen, "581", "ubuntu", 8)) == 4


def test_a_run_that_may_reboot_a_host_changes_its_driver_while_the_replica_is_out():
    seen = node(serving=("replica-0",), loaded="570.133.20")
    assert problems(seen, "580", "auto", 8) and problems(seen, "580", "auto", 8, reboots=True) == []
    its = wanted(seen, "580", "auto")
    assert its.waits(seen) and not its.waits(replace(seen, serving=()))
    assert not its.waits(replace(seen, packages={**seen.packages, **whole(its)}))


def whole(its, version="580.95.05", revision="-0ubuntu1"):
    packages = {name: Package(f"{version}{revision}", held=True) for name in its.exact}
    return {**packages, **{name: Package("1", held=True) for name in its.others}}


def test_a_host_that_has_the_driver_is_left_alone_while_it_serves():
    seen = node(serving=("replica-0",))
    its = wanted(seen, "580", "auto")
    there = replace(seen, packages={**seen.packages, **whole(its)})
    assert problems(there, "580", "auto", 8) == []
    assert its.missing(there) == [] and its.version(there) == "580.95.05"
    assert problems(there, "580.105.08", "auto", 8)[0].startswith(
        "replica-0 serves with driver unknown; 580.105"
    )
    # Monitoring and headers are nothing that a process of a replica loads.
    less = {name: package for name, package in there.packages.items() if name not in its.others}
    assert problems(replace(there, packages=less), "580", "auto", 8) == []


def test_a_driver_that_somebody_else_installed_is_left_alone_unless_one_is_asked_for():
    fedora = node("fedora 40", loaded="570.86.15", serving=("replica-0",))
    assert yours(fedora, "auto", "auto") and problems(fedora, "auto", "auto", 8) == []
    assert not yours(fedora, "580", "auto") and problems(fedora, "580", "auto", 8)
    assert not yours(replace(fedora, loaded=""), "auto", "auto")
    older = node(loaded="570.86.15", packages={"libnvidia-compute-570": "570.86.15-0ubuntu1"})
    assert yours(older, "auto", "auto") and not yours(older, "auto", "elsewhere")
    assert yours(node(loaded="580.95.05", run_file=True), "auto", "auto")
    # No driver of the table is for it; that it could be asked for must not be looked at.
    power = node(machine="ppc64le", loaded="570.86.15")
    assert yours(power, "auto", "auto")
    assert problems(power, "auto", "auto", 8) == [
        f"ppc64le: NVIDIA has drivers for x86_64 and aarch64 only; {LEAVE}"
    ]
    assert problems(fedora, "auto", "auto", 9) == problems(node("fedora 40"), "580", "auto", 9)[:1]


def test_a_driver_of_the_usual_branch_is_kept_whole_whoever_installed_it():
    seen = node(loaded="580.95.05")
    its = wanted(seen, "auto", "auto")
    assert its == wanted(seen, "580", "auto")
    there = replace(seen, packages={**seen.packages, **whole(its)})
    assert not yours(there, "auto", "auto") and problems(there, "auto", "auto", 8) == []


def test_where_no_driver_is_loaded_the_run_ends_and_says_what_loads_one(on_host):
    its = node(loaded="580.95.05", module="580.95.05")
    assert on_host({Look: its}, executing=True).commands(operations.loaded) == []
    host = on_host({Look: node(loaded="")}, executing=True)
    assert host.commands(operations.loaded) == ["false"] and "--data reboot=due" in host.said[0]
    assert on_host({}).commands(operations.loaded) == []


def test_where_another_driver_is_installed_than_is_loaded_nothing_is_started(on_host):
    its = node(loaded="570.1", module="580.95.05")
    host = on_host({Look: its}, executing=True)
    assert host.commands(operations.loaded) == ["false"]
    assert "driver 580.95.05 is installed, and 570.1 is loaded, so nothing could start" in host.said[0]
    up = replace(its, serving=("replica-0",))
    assert on_host({Look: up}, executing=True).commands(operations.loaded) == []


def test_signed_modules_of_another_kernel_are_not_installed_under_a_replica():
    seen = node(serving=("replica-0",), secure_boot=True)
    its = wanted(seen, "580", "auto")
    packages = {**seen.packages, **whole(its)}
    assert problems(replace(seen, packages=packages), "580", "auto", 8) == []
    del packages[its.modules[0]]
    assert problems(replace(seen, packages=packages), "580", "auto", 8)


def test_a_fabric_manager_of_another_version_is_as_good_as_none():
    seen = node(**HGX)
    its = wanted(seen, "580", "auto")
    packages = {**whole(its), "nvidia-fabricmanager": Package("580.105.08-1")}
    assert its.missing(replace(seen, packages=packages)) == ["nvidia-fabricmanager"]
    packages["nvidia-fabricmanager"] = Package("580.95.05-1")  # another build of the same
    assert its.missing(replace(seen, packages=packages)) == []


def test_what_is_held_is_the_driver_and_with_signed_modules_the_kernel():
    others = {"linux-headers-generic": "6.8", "nvidia-container-toolkit": "1.19.0-1"}
    seen = node(packages={**NVIDIAS, "nvidia-firmware-580": "580.95.05-0ubuntu1", **others})
    its = wanted(seen, "580", "auto")
    assert its.loose(seen) == ["libnvidia-compute-580", "nvidia-dkms-580-open", "nvidia-firmware-580"]
    signed = node(packages={"linux-modules-nvidia-580-server-open-generic": "6.8", "linux-generic": "6.8"})
    assert wanted(signed, "580", "auto").loose(signed) == [
        "linux-generic", "linux-image-generic", "linux-modules-nvidia-580-server-open-generic",
    ]  # fmt: skip


def run(fact, *words, root=None, environment=None):
    """A fact asked on this machine; with a root, of what stands there instead."""
    command = fact().command(*words)
    for path in (
        ("/sys/", "/etc/", "/usr/bin/", "/boot/", "/var/lib/dpkg/updates", "/var/lib/apt/lists")
        if root
        else ()
    ):
        command = command.replace(path, f"{root}{path}")
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env={**os.environ, **(environment or {})}
    )
    assert done.returncode == 0, done.stderr
    return fact().process(done.stdout.splitlines())


def device(root, address, vendor, kind, vpd=b""):
    folder = root / "sys/bus/pci/devices" / address
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")
    if vpd:
        (folder / "vpd").write_bytes(vpd)


@pytest.mark.parametrize(("kernel", "lists", "found"), [
    ("6.8.0-31-generic", True,
     {"linux-headers-6.8.0-90-generic", "linux-headers-generic", f"{SIGNED}-virtual"}),
    ("6.8.0-31-lowlatency", True, {"linux-headers-generic", f"{SIGNED}-virtual"}),
    ("6.8.0-31-generic", False, set()),
])  # fmt: skip
def test_what_apt_has_for_kernels_is_asked_where_no_module_is_there(tmp_path, kernel, lists, found):
    for name, says in {
        "uname": f"echo {kernel}", "modinfo": 'test -e "$(dirname "$0")/module"',
        "apt-cache": "printf '%s\\n' linux-headers-6.8.0-90-generic linux-headers-6.8.0-90-aws"
        f" linux-headers-6.8.0-90 linux-headers-generic {SIGNED}-virtual | grep \"^$2\"",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "var/lib/apt/lists").mkdir(parents=True)
    if lists:
        (tmp_path / "var/lib/apt/lists/archive_main_binary-amd64_Packages.lz4").touch()
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert run(Look, root=tmp_path, environment=path).known == found
    (tmp_path / "module").touch()
    assert run(Look, root=tmp_path, environment=path).known == set()


def test_this_machine_can_be_looked_at():
    seen = run(Look)
    assert seen.distribution and seen.machine == os.uname().machine and seen.kernel == os.uname().release


def test_a_host_that_did_not_answer_is_not_a_host_without_gpus():
    assert Look().process(["os ubuntu 24.04"]) is None


def test_gpus_and_switches_are_found_on_the_bus(tmp_path):
    for n in range(3):
        device(tmp_path, f"0000:1{n}:00.0", "0x10de", "0x030200")
    device(tmp_path, "0000:20:00.0", "0x10de", "0x030000")  # with a display
    device(tmp_path, "0000:20:00.1", "0x10de", "0x040300")  # its sound
    device(tmp_path, "0000:30:00.0", "0x10de", "0x068000")
    device(tmp_path, "0000:40:00.0", "0x1002", "0x030000")
    device(tmp_path, "0000:50:00.0", "0x15b3", "0x020700", b"\x82\x01ConnectX\0")
    seen = run(Look, root=tmp_path)
    assert (seen.gpus, seen.switches, seen.nvlink5) == (4, 1, False)
    device(tmp_path, "0000:60:00.0", "0x15b3", "0x020700", b"\x82\x01\0SW_MNG\0")
    assert run(Look, root=tmp_path).nvlink5


@pytest.mark.parametrize(
    ("value", "on"), [(b"\x06\0\0\0\x01", True), (b"\x06\0\0\0\0", False), (None, False)]
)
def test_secure_boot_is_what_the_firmware_says(tmp_path, value, on):
    folder = tmp_path / "sys/firmware/efi/efivars"
    folder.mkdir(parents=True)
    if value:
        (folder / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(value)
    assert run(Look, root=tmp_path).secure_boot == on


AT = "https://a/compute/cuda/repos/debian12/x86_64/"
#: What apt does not read.
UNREAD = {
    "cuda.list": f"# deb {AT} /\n #deb {AT} /\ndeb https://b/ / # as {AT}\n",
    "cuda.list.save": f"deb {AT} / multiverse\n",
    "cuda.sources.distUpgrade": f"Types: deb\nURIs: {AT}\nSuites: /\nComponents: multiverse\n",
    "comment.sources": f"Types: deb\n#URIs: {AT}\nURIs: https://b/\nSuites: /\n#Components: multiverse\n",
    "off.sources": f"Enabled: No\nTypes: deb\nURIs: {AT}\nSuites: /\nComponents: multiverse\n\n"
    "Types: deb\nURIs: https://b/\nSuites: bookworm\nComponents: main # multiverse\n",
}


def test_of_apts_files_what_apt_reads_counts(tmp_path):
    folder = tmp_path / "etc/apt/sources.list.d"
    folder.mkdir(parents=True)
    for name, text in UNREAD.items():
        (folder / name).write_text(text)
    unread = run(Look, root=tmp_path)
    assert (unread.sources, unread.components) == ((), ())
    on = f"Types: deb\nURIs: https://b/\n {AT}\nSuites: /\nSigned-By: /k\n"
    read = {"one.list": f"deb\t[signed-by=/k] {AT} /\n", "two.sources": f"{UNREAD['off.sources']}\n{on}"}
    for name, text in read.items():
        (folder / name).write_text(text)
    (tmp_path / "etc/apt/sources.list").write_text("deb\t[arch=amd64] https://b/ bookworm main\tcontrib\n")
    seen = run(Look, root=tmp_path)
    assert seen.sources == tuple(str(folder / name) for name in read)
    assert seen.components == ("contrib",)


def test_what_else_is_looked_at(tmp_path):
    for path, content in {
        "sys/module/nvidia/version": "580.95.05\n", "usr/bin/nvidia-uninstall": "",
        "etc/os-release": 'ID=rocky\nVERSION_ID="9.4"\n', "var/lib/dpkg/updates/0001": "",
        "etc/apt/sources.list.d/mine.list": "deb https://a/compute/cuda/repos/debian12/x86_64/ /\n",
        "etc/apt/sources.list.d/other.list": "deb https://a/d bookworm main contrib\n# deb / x multiverse\n",
        "etc/apt/sources.list.d/ubuntu.sources": "Types: deb\nComponents: main restricted universe\n",
        **{f"etc/apt/sources.list.d/{name}": text for name, text in UNREAD.items()},
    }.items():  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    seen = run(Look, root=tmp_path)
    assert (seen.loaded, seen.run_file, seen.distribution, seen.interrupted) == (
        "580.95.05", True, "rocky 9.4", True,
    )  # fmt: skip
    assert seen.sources == (f"{tmp_path}/etc/apt/sources.list.d/mine.list",)
    assert seen.components == ("contrib", "restricted")


def test_a_replica_is_known_by_its_units():
    rows = ["unit rackserve-replica-0-vllm.service loaded", "unit rackserve-replica-0-gang.service loaded",
            "unit rackserve-replica-1000-ray.service", "asked"]  # fmt: skip
    assert Look().process(rows).serving == ("replica-0", "replica-1000")


def test_kernels_are_known_by_their_metapackages():
    names = ("linux-image-6.8.0-31-generic", "linux-image-unsigned-6.8.0-31-generic", "linux-headers-generic",
             "linux-image-generic-hwe-24.04", "linux-image-extra-virtual")  # fmt: skip
    assert Seen(packages={name: Package("1") for name in names}).flavours == ["generic-hwe-24.04"]


def test_an_initramfs_is_stale_when_it_is_older_than_the_blacklist(tmp_path):
    conf, image = tmp_path / "nouveau.conf", tmp_path / f"boot/initrd.img-{os.uname().release}"
    conf.touch()
    assert run(Initramfs, str(conf), root=tmp_path) == "none"
    image.parent.mkdir()
    image.touch()
    os.utime(conf, (1, 1))
    assert run(Initramfs, str(conf), root=tmp_path) == "fresh"
    os.utime(image, (0, 0))
    assert run(Initramfs, str(conf), root=tmp_path) == "stale"


# A real apt and dpkg, with a system of their own.

RELEASES = ("580.95.05", "580.105.08")
UBUNTU_SOURCE = wanted(node(secure_boot=True, **HGX), "580", "auto")
NVIDIA_SOURCE = wanted(node(**HGX), "580", "auto")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """NVIDIA's, with two releases of 580 and one of 595, and Ubuntu's, with a newer 580 of the same names."""
    folder = tmp_path_factory.mktemp("repositories")
    nvidia, ubuntu = Repository(folder / "nvidia"), Repository(folder / "ubuntu", UBUNTU)
    its = NVIDIA_SOURCE
    driver = [Empty(name, f"{version}-0ubuntu1") for name in its.driver for version in RELEASES]
    fabric = [Empty(its.fabric[0], f"{version}-1") for version in RELEASES]  # other builds: they are NVIDIA's
    newer = [Empty(name, "595.71.05-1ubuntu1") for name in ("nvidia-persistenced", its.fabric[0])]
    nvidia.add([*driver, *fabric, *newer, *(Empty(name, "4.5.2-1") for name in its.monitoring),
                *(Empty(name, "13.0.88-1") for name in its.compiler)])  # fmt: skip
    kernels = {*its.modules, *UBUNTU_SOURCE.modules, "linux-image-generic"}
    ubuntu.add([Empty(name, "580.173.02-0ubuntu0.24.04.1") for name in {*its.driver, *UBUNTU_SOURCE.exact}])
    ubuntu.add([Empty(name, "6.8.0-31.31") for name in kernels])
    return nvidia, ubuntu


@pytest.fixture
def system(tmp_path, repositories):
    """A fresh apt that knows both."""
    made = Apt(tmp_path / "apt")
    for name, repository in zip(("nvidia", "ubuntu"), repositories, strict=True):
        made.knows(name, repository)
    made.run("apt-get -y install linux-image-generic")
    return made


class Node:
    """A host whose facts are asked of that apt, and on which what an operation yields is run."""

    def __init__(self, system, on_host, seen):
        self.system, self.seen, self.on_host = system, seen, on_host

    def look(self):
        packages = {
            name: Package(row.split()[1], held=row[0] == "h") for name, row in self.system.installed.items()
        }
        broken = bool(self.system.run("dpkg --audit"))
        return replace(self.seen, packages=packages, interrupted=broken)

    def offered(self, names):
        return Offered().process(self.system.run(Offered().command(names)).splitlines())

    def staged(self, names, versions, pins=""):
        return Staged().process(self.system.run(Staged().command(names, versions, pins)).splitlines())

    def room(self, names, versions, pins=""):
        return Room().process(self.system.run(Room().command(names, versions, pins)).splitlines())

    def pin(self, its):
        (self.system.folder / "etc/preferences.d/rackserve-nvidia").write_text(apt.preferences(its))

    def do(self, operation, its, **more):
        """Run it; what it ran."""
        facts = {Look: self.look, Offered: self.offered, Staged: self.staged, Room: self.room}
        host = self.on_host(facts, executing=True)
        self.host, ran = host, []
        with ctx_state.use(host.state), ctx_host.use(host):
            for command in operation._inner(its=its, **more):
                ran.append(command.get_raw_value())
                self.system.run(ran[-1])
        return ran

    def provide(self, driver="580", source="auto"):
        its = wanted(self.look(), driver, source)
        self.pin(its)
        return self.do(operations.packages, its) + self.do(operations.held, its)


def versions(system, names):
    return {system.installed[name] for name in names}


def test_a_driver_comes_from_nvidia_alone_of_its_branch_and_held(system, on_host):
    its, host = NVIDIA_SOURCE, Node(system, on_host, node(**HGX))
    host.provide()
    assert versions(system, its.driver) == {"hi 580.105.08-0ubuntu1"}
    assert versions(system, its.fabric) == {"hi 580.105.08-1"}
    assert versions(system, its.monitoring) == {"hi 4.5.2-1"}
    assert versions(system, its.compiler) == {"ii 13.0.88-1"}
    assert host.provide() == [] and host.host.noop_description == "the driver is held"


def test_signed_modules_come_from_ubuntu_alone_with_their_kernel_and_monitoring_from_nvidia(system, on_host):
    its, host = UBUNTU_SOURCE, Node(system, on_host, node(secure_boot=True, **HGX))
    host.provide()
    assert versions(system, its.exact) == {"hi 580.173.02-0ubuntu0.24.04.1"}
    assert versions(system, (*its.modules, "linux-image-generic")) == {"hi 6.8.0-31.31"}
    assert versions(system, its.monitoring) == {"hi 4.5.2-1"}
    assert host.provide() == []


def test_an_upgrade_replaces_nothing_that_is_held(tmp_path, on_host):
    """Also not when there is a newer one of the branch."""
    repository = Repository(tmp_path / "nvidia")
    its = wanted(node(), "580", "auto")
    repository.add([Empty(name, "580.95.05-0ubuntu1") for name in its.driver])
    repository.add([Empty(name, "1") for name in (*its.others, "linux-image-generic")])
    system = Apt(tmp_path / "apt")
    system.knows("nvidia", repository)
    system.run("apt-get -y install linux-image-generic")
    host = Node(system, on_host, node())
    host.provide()
    before = system.installed
    repository.add([Empty(name, "580.105.08-0ubuntu1") for name in its.driver])
    system.run("apt-get -q update && apt-get -y dist-upgrade")
    assert system.installed == before and host.provide() == []
    host.provide("580.105.08")
    assert versions(system, its.driver) == {"hi 580.105.08-0ubuntu1"}
    host.provide("580.95.05")
    assert versions(system, its.driver) == {"hi 580.95.05-0ubuntu1"}, "back to an older one, when asked for"


def test_a_fabric_manager_that_comes_later_is_of_the_version_that_is_there(system, on_host):
    host = Node(system, on_host, node())
    host.provide("580.95.05")
    host.seen = node(**HGX)
    ran = host.provide()
    assert "nvidia-fabricmanager=580.95.05-1" in ran[1]
    assert versions(system, ("nvidia-fabricmanager",)) == {"hi 580.95.05-1"}


def test_what_a_cut_connection_left_is_finished(system, on_host):
    its, host = NVIDIA_SOURCE, Node(system, on_host, node(**HGX))
    host.pin(its)
    system.run("cd $(mktemp -d) && apt-get download nvidia-utils-580=580.95.05-0ubuntu1 &&"
               f" dpkg {shlex.join(system.dpkg_options)} --unpack nvidia-utils-580*.deb")  # fmt: skip
    assert host.look().interrupted
    system.run(f"apt-get -y install {its.driver[0]}=580.95.05-0ubuntu1 2>&1 || true")
    host.provide()
    assert not host.look().interrupted
    assert len({version.split("-")[0] for version in versions(system, its.exact)}) == 1


def test_a_version_that_is_not_to_be_had_is_said_and_nothing_is_installed(system, on_host):
    host, its = Node(system, on_host, node()), wanted(node(), "580.1.1", "auto")
    host.pin(its)
    with pytest.raises(RuntimeError):  # `false`, which fails the host
        host.do(operations.packages, its)
    assert any(
        "libnvidia-compute-580 580.1.1-* is not to be had from nvidia" in line for line in host.host.said
    )
    assert list(system.installed) == ["linux-image-generic"]


def behind(tmp_path, ready=True):
    """An apt whose Fabric Manager is one release behind, with a driver whose parts name each other's version.

    + ready: there is a driver's release that the Fabric Manager is of
    """
    repository, its = Repository(tmp_path / "nvidia"), NVIDIA_SOURCE
    part = "nvidia-kernel-source-580-open"
    for version in RELEASES[0 if ready else 1 :]:
        needs = {"Depends": f"{part} (= {version}-0ubuntu1)"}
        repository.add([Empty(part, f"{version}-0ubuntu1"),
                        *(Empty(name, f"{version}-0ubuntu1", needs) for name in its.driver)])  # fmt: skip
    repository.add([Empty(its.fabric[0], f"{RELEASES[0]}-1")])
    repository.add([Empty(name, "1") for name in (*its.others, "linux-image-generic")])
    system = Apt(tmp_path / "apt")
    system.knows("nvidia", repository, "copy")
    system.run("apt-get -y install linux-image-generic")
    return system


def test_a_driver_is_of_the_newest_release_that_all_of_it_is_to_be_had_in(tmp_path, on_host):
    system = behind(tmp_path)
    host = Node(system, on_host, node(**HGX))
    host.provide()
    names = (*NVIDIA_SOURCE.exact, "nvidia-kernel-source-580-open")
    assert {version.split("-")[0] for version in versions(system, names)} == {"hi 580.95.05"}
    assert host.provide() == []
    system.run("apt-get -y --allow-change-held-packages purge 'nvidia-*' 'libnvidia-*'")
    host.seen = node(serving=("replica-0",), loaded="570.86.15", **HGX)
    host.do(operations.staged, NVIDIA_SOURCE)
    assert host.do(operations.staged, NVIDIA_SOURCE) == []
    host.seen = node(**HGX)
    host.do(operations.packages, NVIDIA_SOURCE, staged=True)
    assert {version.split("-")[0] for version in versions(system, names)} == {"ii 580.95.05"}


def test_what_is_behind_the_only_release_is_named(tmp_path, on_host):
    host = Node(behind(tmp_path, ready=False), on_host, node(**HGX))
    with pytest.raises(RuntimeError):  # `false`, which fails the host
        host.provide()
    assert "nvidia-fabricmanager 580.* is not to be had from nvidia" in host.host.said[-1]


def test_a_bare_host_whose_kernel_is_gone_from_the_archive_fails_in_words(system, on_host):
    """Before its lists were fetched nobody could know."""
    gone = replace(node(), kernel="6.8.0-30-generic")
    host = Node(system, on_host, gone)
    with pytest.raises(RuntimeError):  # `false`, which fails the host
        host.provide()
    assert host.host.said[-1] == f"no linux-headers-6.8.0-30-generic to be had: {UPGRADE}"
    host.seen = replace(gone, secure_boot=True)
    with pytest.raises(RuntimeError):
        host.provide()
    assert host.host.said[-1] == f"no {SIGNED}-6.8.0-30-generic to be had: {UPGRADE}"
    assert list(system.installed) == ["linux-image-generic"]


@pytest.fixture
def waiting(tmp_path, on_host):
    """A host with a driver under a replica, NVIDIA's repository with a newer one, and what is to be done."""
    repository = Repository(tmp_path / "nvidia")
    its = wanted(node(), "580", "auto")
    sized = {"Installed-Size": "1000"}
    repository.add([Empty(name, f"{version}-0ubuntu1", sized) for name in its.driver for version in RELEASES])
    repository.add([Empty(name, "1") for name in (*its.others, "linux-image-generic")])
    system = Apt(tmp_path / "apt")
    system.knows("nvidia", repository, "copy")
    system.run("apt-get -y install linux-image-generic")
    host = Node(system, on_host, node())
    host.provide("580.95.05")
    host.seen = node(serving=("replica-0",), loaded="580.95.05")
    its = wanted(host.look(), "580.105.08", "auto")
    host.pin(its)
    return host, its, repository


def test_a_driver_that_waits_for_a_replica_is_at_hand_and_then_nobody_is_asked(waiting):
    host, its, repository = waiting
    before = host.system.installed
    assert its.waits(host.look())
    assert host.do(operations.staged, its)[0] == debian.refreshed()
    assert host.host.said == [
        "driver 580.105.08-* waits until replica-0 is out: rackserve rollout --reboot due installs it then"
    ]
    assert host.system.installed == before and not host.look().interrupted
    assert host.do(operations.staged, its) == [] and host.host.noop_description
    shutil.rmtree(repository.folder)
    host.seen = node(loaded="580.95.05")
    (installing,) = host.do(operations.packages, its, staged=True)
    assert "libnvidia-compute-580=580.105.08-0ubuntu1" in installing
    host.do(operations.held, its)
    assert versions(host.system, its.driver) == {"hi 580.105.08-0ubuntu1"}


def test_what_is_at_hand_no_more_is_fetched_again(waiting):
    host, its, _ = waiting
    host.do(operations.staged, its)
    host.system.run("apt-get clean")
    assert host.do(operations.packages, its, staged=True)[0] == debian.refreshed()
    assert its.missing(host.look()) == []


def test_what_would_be_in_the_way_of_a_driver_is_said_while_a_replica_is_up(waiting):
    host, its, repository = waiting
    before = host.system.installed
    host.room = lambda **_: Space(needed=3 * 2**20, free=2**20)
    for _ in range(2):  # also when it is at hand
        with pytest.raises(RuntimeError):  # `false`, which fails the host
            host.do(operations.staged, its)
        assert "needs 3.0 GiB in /usr and /var, 1.0 GiB are free there: make room" in host.host.said[1]
    host.system.run("apt-get clean")
    repository.add([Empty(its.driver[1], "580.105.08-0ubuntu1", {"Depends": "not-there"})])
    with pytest.raises(RuntimeError, match="not-there"):
        host.do(operations.staged, its)
    absent = wanted(host.look(), "580.1.1", "auto")
    host.pin(absent)
    with pytest.raises(RuntimeError):
        host.do(operations.staged, absent)
    assert "libnvidia-compute-580 580.1.1-* is not to be had from nvidia" in host.host.said[1]
    assert host.system.installed == before


def test_the_room_that_a_driver_needs_is_that_of_all_that_comes_and_of_what_is_built(waiting):
    host, its, _ = waiting
    missing = its.missing(host.look())
    room = host.room(missing, dict.fromkeys(missing, "580.105.08-0ubuntu1"))
    assert room.needed == BUILD + 1000 * len(its.driver) and room.free > 0


def test_of_debian_its_driver_is_kept_out_and_what_a_driver_needs_is_not(tmp_path, on_host):
    nvidia, debian = Repository(tmp_path / "nvidia"), Repository(tmp_path / "debian", DEBIAN)
    its = wanted(node("debian 12"), "580", "auto")
    needs = {"Depends": "libcuda1, nvidia-support"}
    nvidia.add([Empty(name, "580.95.05-1", needs) for name in its.driver])
    nvidia.add([Empty(name, "4.5.2-1") for name in (*its.monitoring, *its.compiler)])
    debian.add([
        Empty("libcuda1", "535.247.01-1~deb12u1", {"Source": "nvidia-graphics-drivers"}),
        Empty("nvidia-support", "20220217+3", {"Source": "nvidia-support"}),
        *(Empty(name, "6.1") for name in (*its.modules, "linux-image-amd64")),
    ])  # fmt: skip
    system = Apt(tmp_path / "apt")
    system.knows("nvidia", nvidia)
    system.knows("debian", debian)
    system.run("apt-get -y install linux-image-amd64")
    host = Node(system, on_host, node("debian 12"))
    with pytest.raises(RuntimeError, match="libcuda1"):
        host.provide()
    nvidia.add([Empty("libcuda1", "580.95.05-1")])
    host.provide()
    assert versions(system, (*its.driver, "libcuda1")) == {"hi 580.95.05-1"}
    assert system.installed["nvidia-support"] == "ii 20220217+3"


def test_asking_apt_for_a_pattern_would_mix_the_sources(system):
    """Why whole versions are asked for: a pin against a source does not keep a pattern from finding it."""
    (system.folder / "etc/preferences.d/rackserve-nvidia").write_text(apt.preferences(NVIDIA_SOURCE))
    simulated = system.run("apt-get -s install 'libnvidia-compute-580=580.*'")
    assert "Inst libnvidia-compute-580 (580.173.02-0ubuntu0.24.04.1" in simulated


def test_the_labs_driver_is_what_a_node_looks_at(tmp_path):
    """Its packages are those of Debian's row; kmod, where there is one, reads its module's version."""
    its = wanted(node("debian 12", **HGX), "580", "auto")
    made = [*release("580.95.05", "6.1.0-31-amd64"), *monitoring(), *compiler()]
    assert {package.name for package in made} == {*its.exact, *its.monitoring, *its.compiler}
    for package in made:
        subprocess.run(["dpkg-deb", "-x", package.build(tmp_path), tmp_path / "root"], check=True)
    built = tmp_path / "root/lib/modules/6.1.0-31-amd64/updates/dkms/nvidia.ko"
    assert b"\0version=580.95.05\0" in b"\0" + built.read_bytes()[64:]
    if shutil.which("modinfo"):
        read = subprocess.run(["modinfo", "--field", "version", built], capture_output=True, text=True)
        assert read.stdout == "580.95.05\n"
    for unit in (PERSISTENCE, *its.services):
        program = tmp_path / "root/usr/bin" / unit.removesuffix(".service")
        assert os.access(program, os.X_OK) and (tmp_path / "root/lib/systemd/system" / unit).exists()


def fetch_key(repository, keyring, fingerprint):
    """Run what fetches the key, from that repository to that keyring."""
    its = replace(NVIDIA_SOURCE, folder=f"file://{repository.folder}")
    command = apt.key(its).replace(apt.KEY, str(keyring)).replace(FINGERPRINT, fingerprint)
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True)


def test_another_apt_is_waited_for_and_a_mistake_is_not_repeated(system):
    lists = system.folder / "state/lists/lock"
    hold = (
        f"import fcntl, time; f = open({str(lists)!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True)"
    )
    command = debian.refreshed().replace("sleep 20", "sleep 0.2")
    with subprocess.Popen([sys.executable, "-c", f"{hold}; time.sleep(1)"], stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        began = time.monotonic()
        system.run(command)
        assert time.monotonic() - began > 0.5, "apt-get alone would have failed at once"
    (system.folder / "etc/sources.list.d/wrong.list").write_text("deb file:///nowhere/ /\n")
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="nowhere"):
        system.run(debian.refreshed())
    assert time.monotonic() - began < 20, "that is how long it waits for a lock"


def test_a_key_with_another_fingerprint_is_not_kept(tmp_path, repositories):
    nvidia, keyring = repositories[0], tmp_path / KEYRING
    assert fetch_key(nvidia, keyring, FINGERPRINT).returncode != 0
    assert not keyring.exists()
    done = fetch_key(nvidia, keyring, nvidia.fingerprint)
    assert done.returncode == 0, done.stderr
    assert keyring.read_bytes() == (nvidia.folder / KEYRING).read_bytes()
    command = Fingerprints().command().replace(apt.KEY, str(keyring))
    read = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert Fingerprints().process(read.stdout.splitlines()) == [nvidia.fingerprint]


# Operations, of known facts.


def test_a_plan_installs_without_versions_that_it_cannot_know(on_host):
    seen, its = node(**HGX), NVIDIA_SOURCE
    host = on_host({Look: seen})
    assert host.commands(operations.packages, its=its) == [
        debian.refreshed(), debian.patiently(INSTALL + NAMES["ubuntu 24.04", "nvidia", "580"]),
    ]  # fmt: skip
    assert host.commands(operations.held, its=its) == [apt.held([*its.exact, *its.monitoring])]
    assert host.commands(operations.built, its=its) == []


def test_a_kernel_without_a_module_fails_the_host_and_says_where_to_look(on_host):
    seen = node(module="")
    its = wanted(seen, "580", "auto")
    there = replace(seen, packages={**seen.packages, **whole(its)})
    host = on_host({Look: there}, executing=True)
    assert host.commands(operations.built, its=its) == ["false"]
    assert host.said == [
        "no nvidia module 580.95.05 for kernel 6.8.0-31-generic: see /var/lib/dkms/nvidia/*/build/make.log"
    ]
    assert on_host({Look: replace(there, module="580.95.05")}, True).commands(operations.built, its=its) == []


@pytest.mark.parametrize(("now", "changes", "ran"), [
    ("none", True, False), ("fresh", False, False), ("fresh", True, True), ("stale", False, True),
])  # fmt: skip
def test_an_initramfs_is_made_anew_when_it_does_not_know_the_blacklist(on_host, now, changes, ran):
    written = type("Meta", (), {"will_change": changes})()
    host = on_host({Initramfs: now})
    commands = host.commands(operations.initramfs, path=NOUVEAU, changed=[written])
    assert commands == (["update-initramfs -u -k all"] if ran else [])


ON, OFF = UnitState(active=True, enabled=True), UnitState()


def test_services_are_enabled_and_wait_for_the_reboot_that_loads_the_driver(on_host):
    units = ["nvidia-fabricmanager.service", "nvidia-dcgm.service"]
    for loaded, started in (("", False), ("570.133.20", False), ("580.95.05", True)):
        host = on_host({Look: node(loaded=loaded, module="580.95.05"), Unit: OFF})
        commands = host.commands(operations.running, units=units)
        assert commands[0] == "systemctl enable --quiet nvidia-fabricmanager.service nvidia-dcgm.service"
        assert (commands[1:] == [f"systemctl restart {' '.join(units)}"]) == started
    host = on_host({Look: node(loaded="580.95.05", module="580.95.05"), Unit: ON})
    assert host.commands(operations.running, units=units) == []


def test_a_persistence_daemon_with_another_configuration_is_restarted(on_host):
    stale = UnitState(active=True, enabled=True, needs_reload=True, stale=("/x",))
    host = on_host({Look: node(loaded="580.95.05", module="580.95.05"), Unit: stale})
    assert host.commands(operations.running, units=[PERSISTENCE], drop_ins=["/x"]) == [
        "systemctl daemon-reload", f"systemctl restart {PERSISTENCE}",
    ]  # fmt: skip


def test_systemd_reads_the_persistence_daemons_drop_in(tmp_path):
    """Ubuntu's unit has no [Install]: with ours it can be enabled."""
    unit = tmp_path / "usr/lib/systemd/system" / PERSISTENCE
    unit.parent.mkdir(parents=True)
    unit.write_text("[Unit]\nStopWhenUnneeded=true\n[Service]\nType=forking\nExecStart=/bin/true\n")
    drop_in = tmp_path / f"etc/systemd/system/{PERSISTENCE}.d/rackserve.conf"
    drop_in.parent.mkdir(parents=True)
    systemctl = ["systemctl", f"--root={tmp_path}"]
    assert subprocess.run([*systemctl, "is-enabled", PERSISTENCE], capture_output=True).stdout == b"static\n"
    drop_in.write_text(PERSISTENT)
    subprocess.run([*systemctl, "enable", "--quiet", PERSISTENCE], check=True, capture_output=True)
    assert subprocess.run([*systemctl, "is-enabled", PERSISTENCE], capture_output=True).stdout == b"enabled\n"


def test_a_reboot_that_is_due_is_said(on_host):
    host = on_host({Look: node(module="580.95.05", loaded="")})
    assert host.commands(operations.said) == []
    assert host.said == [
        "driver 580.95.05 is installed, none is loaded: rackserve rollout --reboot due reboots for it"
    ]
    quiet = on_host({Look: node(module="580.95.05", loaded="580.95.05")})
    assert quiet.commands(operations.said) == [] and quiet.said == []


def test_nouveau_is_named_as_modprobe_reads_it():
    assert {"blacklist nouveau", "options nouveau modeset=0"} <= set(BLACKLIST.splitlines())


# The playbook, over hosts that are not there.

LOOKED = ["machine x86_64", "kernel 6.8.0-31-generic", "secure", "loaded", "module", "pci 0x030200", "asked"]
PROVISION = """\
NVIDIA | Take the driver from one source
NVIDIA | Keep nouveau off
NVIDIA | Install the driver
NVIDIA | Hold the driver
NVIDIA | The kernel has its module
NVIDIA | Tell the initramfs of it
NVIDIA | Keep the GPUs initialised
NVIDIA | Enable persistence
NVIDIA | Enable its services
NVIDIA | Say whether a reboot is due for it
""".splitlines()


@pytest.fixture
def provision(tmp_path):
    """provision({host: (lines that it answers, its data)}): the finished `pyinfra --dry --json`."""

    def run(hosts, *words, deploy="provision"):
        all_ = {"fake_delay": 0, "fake_delay_jitter": 0, "interface": "lo", "gpus": 1}
        rows = [
            (
                f"@fake/{name}",
                {**all_, "address": f"10.0.0.{n}", "fake_responses": {"echo asked": lines}, **data},
            )
            for n, (name, (lines, data)) in enumerate(hosts.items(), 1)
        ]
        inventory = tmp_path / "inventory.py"
        inventory.write_text(f"head, workers = {rows[:1]}, {rows[1:]}\n")
        return pyinfra(inventory, f"deploys/{deploy}.py", "--dry", "--json", *words)

    return run


def test_a_driver_is_provisioned_where_it_is_served_from_and_not_left_to_the_user(provision):
    hosts = {
        "gpu1": (["os ubuntu 24.04", *LOOKED], {}),
        "gpu2": (["os debian 12", "component contrib", *LOOKED], {}),
        "gpu3": (["os fedora 40", *LOOKED], {"driver": False}),
        "head": (["os ubuntu 24.04", *LOOKED], {"gpus": 0}),
    }
    done = provision(hosts)
    assert done.returncode == 0, done.stderr
    plan = [op for op in json.loads(done.stdout)["plan"] if op["name"].startswith("NVIDIA")]
    assert [op["name"] for op in plan] == PROVISION
    installing = next(op for op in plan if op["name"] == "NVIDIA | Install the driver")
    assert installing["hosts_with_change"] == ["@fake/gpu1", "@fake/gpu2"]
    assert all(len(op["names"]) == 1 for op in plan)


def test_what_is_in_the_way_on_any_host_is_said_at_once_and_nothing_is_changed(provision):
    hosts = {
        "gpu1": (["os ubuntu 24.04", *LOOKED], {"gpus": 8}),
        "gpu2": (["os fedora 40", *LOOKED], {}),
        "gpu3": (["os debian 12", *LOOKED], {"driver": "560", "driver_source": "ubuntu"}),
        "gpu4": (["os debian 12", "component contrib", *LOOKED], {}),
        "gpu5": (["os fedora 40", *LOOKED], {"gpus": 2, "driver": False}),
        "gpu6": (["os fedora 40", *LOOKED], {"gpus": 0, "driver": False}),
    }
    done = provision(hosts)
    assert done.returncode == 1 and not done.stdout
    said = " ".join(done.stderr.split())
    for problem in (
        "@fake/gpu1: 8 GPUs promised, 1 on the PCI bus",
        "@fake/gpu2: fedora 40 is not one of ubuntu 22.04",
        "@fake/gpu3: driver is 560: must be of branch 580 or 595",
        "@fake/gpu3: debian 12 has no driver from ubuntu",
        "@fake/gpu5: 2 GPUs promised, 1 on the PCI bus",
    ):
        assert problem in said, said
    assert not any(name in said for name in ("gpu4:", "gpu6:"))


@pytest.mark.parametrize(("deploy", "reboots"), [("serve_llama", ["gpu1", "gpu2"]), ("serve", [])])
def test_a_first_deploy_reboots_for_the_driver_that_it_brings(provision, deploy, reboots):
    """The order is made before anything is installed, so that what is coming counts as what is there."""
    hosts = {name: (["os ubuntu 24.04", *LOOKED], {}) for name in ("gpu1", "gpu2")}
    data = {"model": "smollm2-135m-instruct", "tensor_parallel": 1, "pipeline_parallel": 2, "reboot": "due"}
    done = provision(hosts, *(f"--data={key}={value}" for key, value in data.items()), deploy=deploy)
    assert done.returncode == 0, done.stderr
    names = [name.rpartition(" | ")[2] for op in json.loads(done.stdout)["plan"] for name in op["names"]]
    found = {name for name in names if name.startswith("Reboot")}
    assert found == {f"Reboot @fake/{name}" for name in reboots}
    if reboots:
        order = [names.index(name) for name in ("Install the driver", "Reboot @fake/gpu1", "Start replica-0")]
        assert order == sorted(order)


def up_with(version, *more):
    """What a host answers that has a driver, under a replica that is up."""
    its = wanted(Seen(distribution="debian 12", kernel="6.8.0-31-generic"), "580", "auto")
    packages = [f"package hi  {name} {version}-1" for name in (*its.exact, *its.others)]
    rows = [*(row for row in LOOKED if row not in ("loaded", "module")), *more]
    return ["os debian 12", "component contrib", f"loaded {version}", f"module {version}", *packages,
            "unit rackserve-replica-0-gang.service", *rows]  # fmt: skip


SERVED = {"model": "smollm2-135m-instruct", "tensor_parallel": 1, "pipeline_parallel": 2}


def test_a_driver_is_changed_while_the_replica_is_out_and_is_at_hand_before(provision):
    hosts = {
        "gpu1": (up_with("580.95.05"), {}),
        "gpu2": (up_with("580.105.08"), {}),
        "gpu3": (["os debian 12", "component contrib", *LOOKED], {}),
    }
    data = [f"--data={key}={value}" for key, value in {**SERVED, "driver": "580.105.08"}.items()]
    done = provision(hosts, *data, "--data=reboot=due", deploy="rolling_redeploy")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    named = [(op["name"].partition(" | ")[2], op["hosts_with_change"]) for op in plan]
    at_hand, installed, stopped, rebooted = (
        [place for place, (name, _) in enumerate(named) if name == wanted_name]
        for wanted_name in (
            "NVIDIA | Have the driver at hand", "NVIDIA | Install the driver", "replica-0 is stopped",
            "Reboot @fake/gpu1",
        )
    )  # fmt: skip
    first, second = installed
    assert named[at_hand[0]][1] == ["@fake/gpu1"] and named[first][1] == ["@fake/gpu3"]
    assert at_hand[0] < stopped[0] < second < rebooted[0] and named[second][1] == ["@fake/gpu1"]
    assert "driver 580.105.08-* waits until replica-0 is out" in done.stderr


def test_without_a_reboot_it_is_refused_and_nothing_is_changed(provision):
    hosts = {name: (up_with("580.95.05"), {}) for name in ("gpu1", "gpu2")}
    done = provision(hosts, "--data=driver=580.105.08", deploy="provision")
    assert done.returncode == 1 and not done.stdout
    said = " ".join(done.stderr.split())
    for name in hosts:
        assert f"@fake/{name}: replica-0 serves with driver 580.95.05; 580.105.08-* from NVIDIA" in said, said
    assert "rackserve rollout --reboot due" in said
