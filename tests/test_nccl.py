"""The fabric: which HCAs NCCL is told, what else, what is refused, and how a node is asked."""

import json
import os
import re
import subprocess
from dataclasses import replace

import pytest

from roles import base, runtime
from roles.nccl import PACKAGES, Asked, Seen, Wanted, everywhere, operations, packages, problems
from roles.nccl.choice import BEGIN, END, ETHERNET, Device, Port
from roles.nccl.choice import wanted as wanted_of
from roles.nccl.facts import Loaded, Look
from tests.test_nvidia import LOOKED, provision

__all__ = ["provision"]  # a fixture

DOWN = "1: DOWN"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15"


def behind(switch, place, numa=0):
    """A device behind one of a socket's PCI switches: root port, the switch's two bridges, device."""
    root = f"/sys/devices/pci0000:{numa}0/0000:{numa}0:0{switch}.0/0000:{numa}{switch}:00.0"
    return Device(f"{root}/0000:{numa}{switch}:0{place}.0/0000:{numa}{place}:00.0", numa)


def rooted(place, numa=0):
    """A device at a root port of its own."""
    return Device(f"/sys/devices/pci0000:{numa}8/0000:{numa}8:0{place}.0/0000:{numa}9:00.{place}", numa)


def roce(name, device, **more):
    return Port(name, link=ETHERNET, device=device, gids=(3,), interfaces=("eth2",), **more)


def host(*ports, **more):
    return Seen(interface="eth1", ports=ports, kernel="6.8.0-31-generic", driver=OPEN, **more)


def asked(hcas="auto", **more):
    return Asked("10.0.0.2", hcas=hcas, **more)


def told(seen, *words, **more):
    """The lines between ours in the file."""
    lines = wanted_of(seen, asked(*words, **more)).conf.splitlines()
    return lines[lines.index(BEGIN) + 1 : lines.index(END)]


# Eight GPUs on two sockets, each with an HCA behind its switch; two more HCAs at root ports, for storage.
PLACES = [(switch, numa) for numa in (0, 1) for switch in (1, 2, 3, 4)]
GPUS = tuple(behind(switch, 5, numa) for switch, numa in PLACES)
COMPUTE = tuple(Port(f"mlx5_{n}", device=behind(switch, 6, numa)) for n, (switch, numa) in enumerate(PLACES))
STORAGE = (Port("mlx5_8", device=rooted(1)), Port("mlx5_9", device=rooted(1, numa=1)))
HGX = host(*COMPUTE, *STORAGE, gpus=GPUS)
EIGHT = ",".join(f"mlx5_{n}:1" for n in range(8))


def test_those_behind_the_gpus_switches_are_chosen_and_not_the_storages():
    assert told(HGX) == ["NCCL_SOCKET_IFNAME==eth1", f"NCCL_IB_HCA=={EIGHT}"]
    assert wanted_of(HGX, asked()).hcas == tuple(EIGHT.split(","))


def test_without_switches_those_of_the_gpus_sockets_are_chosen():
    gpus = (rooted(3), rooted(4))
    seen = host(Port("mlx5_0", device=rooted(1)), Port("mlx5_1", device=rooted(1, numa=1)), gpus=gpus)
    assert told(seen)[1] == "NCCL_IB_HCA==mlx5_0:1"


def test_an_hca_that_all_gpus_share_is_chosen_however_far():
    near, far = Port("mlx5_0", device=rooted(1)), Port("mlx5_0", device=rooted(1, numa=1))
    for port in (near, far):
        assert told(host(port, gpus=(rooted(3), rooted(4))))[1] == "NCCL_IB_HCA==mlx5_0:1"
    assert told(host(near, gpus=(rooted(3), rooted(3, numa=1))))[1] == "NCCL_IB_HCA==mlx5_0:1"
    assert told(host(far))[1] == "NCCL_IB_HCA==mlx5_0:1", "no GPU was found"


def down(port):
    return replace(port, state=DOWN)


def test_a_port_that_is_down_is_not_chosen_and_no_storage_in_its_place():
    seen = host(*COMPUTE[:3], down(COMPUTE[3]), *COMPUTE[4:], *STORAGE, gpus=GPUS)
    assert told(seen)[1] == "NCCL_IB_HCA==" + EIGHT.replace("mlx5_3:1,", "")


def test_gpus_of_a_socket_without_a_switch_have_its_hcas():
    gpus, hcas = (behind(1, 5), rooted(3, numa=1)), (COMPUTE[0], *STORAGE)
    assert told(host(*hcas, gpus=gpus))[1] == "NCCL_IB_HCA==mlx5_0:1,mlx5_9:1"


def test_a_port_that_was_told_and_is_down_stays_so_that_the_file_does_not_flap():
    before = wanted_of(HGX, asked()).conf
    ports = [down(port) for port in COMPUTE]
    assert wanted_of(host(ports[0], *COMPUTE[1:], *STORAGE, gpus=GPUS, conf=before), asked()).conf == before
    ethernet = roce("mlx5_8", rooted(1))
    assert wanted_of(host(*ports, ethernet, gpus=GPUS, conf=before), asked()).conf == before
    gone = host(*COMPUTE[1:], *STORAGE, gpus=GPUS, conf=before)
    assert told(gone)[1] == "NCCL_IB_HCA==" + EIGHT.replace("mlx5_0:1,", "")


def test_infiniband_comes_before_ethernet_and_is_not_mixed_with_it():
    seen = host(roce("mlx5_0", behind(1, 7)), *COMPUTE[1:], gpus=GPUS)
    assert "mlx5_0:1" not in told(seen)[1] and "mlx5_1:1" in told(seen)[1]


def test_infiniband_that_is_storages_leaves_the_ethernet_beside_the_gpus():
    compute = [roce(port.hca, port.device) for port in COMPUTE]
    assert told(host(*compute, *STORAGE, gpus=GPUS))[1] == f"NCCL_IB_HCA=={EIGHT}"
    management = roce("mlx5_0", rooted(2))
    assert told(host(management, STORAGE[1], gpus=(rooted(3),)))[1] == "NCCL_IB_HCA==mlx5_9:1"


def test_of_ethernet_those_with_a_roce_v2_address_and_the_traffic_class_of_the_inventory():
    there, device = roce("mlx5_0", behind(1, 6)), behind(1, 7)
    seen = host(there, Port("mlx5_1", link=ETHERNET, device=device), gpus=GPUS)
    assert told(seen) == ["NCCL_SOCKET_IFNAME==eth1", "NCCL_IB_HCA==mlx5_0:1"]
    assert told(seen, traffic_class=104)[2:] == ["NCCL_IB_TC=104"]
    assert everywhere(104) == {"NCCL_IB_TC": "104"} and everywhere(None) == {}
    assert "NCCL_IB_TC=104" not in told(HGX, traffic_class=104)


@pytest.mark.parametrize("port", [
    Port("mlx5_0", state=DOWN), Port("mlx5_0", state="2: INIT"), Port("efa0", link="Unspecified"),
    roce("irdma0", rooted(1), node="4: RNIC"), Port("mlx5_0", link=ETHERNET),
])  # fmt: skip
def test_what_nccl_cannot_use_is_not_told(port):
    seen = host(port)
    assert told(seen) == ["NCCL_SOCKET_IFNAME==eth1"] and wanted_of(seen, asked()).unused


def test_a_node_without_hcas_is_told_its_interface_only():
    for hcas in ("auto", False):
        assert told(host(), hcas, traffic_class=104) == ["NCCL_SOCKET_IFNAME==eth1"]
    assert not wanted_of(host(), asked()).unused


def test_hcas_can_be_named_or_left_unused():
    assert told(HGX, "mlx5_8:1, mlx5_0")[1] == "NCCL_IB_HCA==mlx5_8:1,mlx5_0"
    assert told(HGX, False)[1:] == ["NCCL_IB_DISABLE=1"]
    assert wanted_of(HGX, asked(False)) == Wanted(wanted_of(HGX, asked(False)).conf)


@pytest.mark.parametrize(("seen", "its", "said"), [
    (Seen(), asked(), "no interface has the address 10.0.0.2; correct `address`"),
    (
        host(), asked(interface="eth0"),
        "interface is eth0, and 10.0.0.2 is on eth1: correct `interface`, or leave it out",
    ),
    (
        Seen(interface="lo"), asked(),
        "10.0.0.2 is on lo, where no other host reaches it: correct `address`",
    ),
    (host(), asked("mlx5_0"), "hcas: mlx5_0 is not there; there are: none"),
    (
        host(COMPUTE[0], roce("mlx5_1", rooted(1), state=DOWN)), asked("mlx5_0:2"),
        "hcas: mlx5_0:2 is not there; there are: mlx5_0:1 (InfiniBand, 4: ACTIVE), mlx5_1:1 (Ethernet,"
        " 1: DOWN)",
    ),
    (
        host(Port("mlx5_0", state=DOWN)), asked("mlx5_0"),
        "hcas: mlx5_0 is 1: DOWN: see ibstat mlx5_0, its cable and switch, or leave it out",
    ),
    (
        host(Port("mlx5_0", link=ETHERNET, interfaces=("eth2",))), asked("mlx5_0:1"),
        "hcas: mlx5_0:1 has no RoCE v2 address: give eth2 an IPv4 address, or leave it out",
    ),
    (
        host(COMPUTE[0], roce("mlx5_1", rooted(1))), asked("mlx5_0,mlx5_1:1"),
        "hcas: mlx5_0:1 is InfiniBand, mlx5_1:1 is Ethernet: NCCL connects only what is of one kind, name"
        " those",
    ),
    (
        host(COMPUTE[0], conf="NCCL_IB_HCA=mlx5_2\n"), asked(),
        "/etc/nccl.conf says NCCL_IB_HCA=mlx5_2: remove that line, and say it with `hcas` in the inventory",
    ),
    (
        host(conf="NCCL_SOCKET_IFNAME=eth0\n"), asked(),
        "/etc/nccl.conf says NCCL_SOCKET_IFNAME=eth0: remove that line, and say it with `interface` in the"
        " inventory",
    ),
    (
        host(roce("mlx5_0", rooted(1)), conf="NCCL_IB_TC=96\n"), asked(traffic_class=104),
        "/etc/nccl.conf says NCCL_IB_TC=96: remove that line, and say it with `roce_traffic_class` in the"
        " inventory",
    ),
])  # fmt: skip
def test_what_is_in_the_way_is_said_with_its_fix(seen, its, said):
    assert problems(seen, its) == [said]


def test_a_host_with_what_is_asked_of_it_has_no_problems():
    for its in (asked(), asked("mlx5_8"), asked(False), asked(interface="eth1")):
        assert problems(HGX, its) == []
    assert problems(Seen(interface="lo"), asked(alone=True)) == []


def test_lines_of_somebody_else_stay_behind_ours_and_a_second_time_changes_nothing():
    theirs = "# Azure's\nNCCL_IB_PCI_RELAXED_ORDERING=1\nNCCL_SOCKET_IFNAME==eth1\n"
    once = wanted_of(host(COMPUTE[0], conf=theirs), asked()).conf
    assert once == f"{BEGIN}\nNCCL_SOCKET_IFNAME==eth1\nNCCL_IB_HCA==mlx5_0:1\n{END}\n{theirs}"
    assert problems(host(COMPUTE[0], conf=once), asked()) == []
    assert wanted_of(host(COMPUTE[0], conf=once), asked()).conf == once
    assert wanted_of(host(conf=once), asked()).conf == once.replace("NCCL_IB_HCA==mlx5_0:1\n", "")


@pytest.mark.parametrize(("driver", "kernel", "peermem", "due"), [
    (OPEN, "6.8.0-31-generic", "loadable", False), (CLOSED, "6.8.0-31-generic", "loadable", True),
    (OPEN, "5.4.0-200-generic", "loadable", True), (CLOSED, "6.8.0-31-generic", "", False),
    ("", "6.8.0-31-generic", "loadable", False),
])  # fmt: skip
def test_nvidia_peermem_is_for_what_has_no_dma_buf(driver, kernel, peermem, due):
    seen = Seen(interface="eth1", ports=COMPUTE, driver=driver, kernel=kernel, peermem=peermem)
    assert wanted_of(seen, asked()).peermem == due
    assert not wanted_of(seen, asked(False)).peermem


def test_the_locked_nccl_finds_the_gid_by_itself():
    """From 2.21 on; an older one would have to be told NCCL_IB_GID_INDEX."""
    (version,) = runtime.pins(*runtime.locks("cuda"))["nvidia-nccl-cu13"]
    assert tuple(map(int, version.split(".")[:2])) >= (2, 21)


def test_the_library_for_rdma_is_for_nodes_that_use_it():
    assert packages(wanted_of(HGX, asked())) == PACKAGES
    assert {"rdma-core", "infiniband-diags", "libibverbs1", "ibverbs-providers"} == set(PACKAGES)
    assert packages(wanted_of(host(), asked())) == packages(None) == ()


# The node. What stands in its files is what the kernel's documentation says of them.


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def hca(root, name, place, link, state="4: ACTIVE", gids=(), net="", numa=0):
    """An HCA with one port, its class a link to its device as in sysfs."""
    device = f"sys/devices/{place}"
    its = f"{device}/infiniband/{name}"
    write(root, f"{device}/numa_node", numa)
    write(root, f"{its}/node_type", "1: CA")
    for key, value in (("state", state), ("link_layer", link), ("rate", "400 Gb/sec (4X NDR)")):
        write(root, f"{its}/ports/1/{key}", value)
    for index, (gid, kind) in enumerate(gids):
        write(root, f"{its}/ports/1/gids/{index}", gid)
        if kind:  # else the kernel refuses to read it
            write(root, f"{its}/ports/1/gid_attrs/types/{index}", kind)
    if net:
        (root / device / "net" / net).mkdir(parents=True)
    (root / its / "device").symlink_to(root / device)
    listed = root / "sys/class/infiniband" / name
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.symlink_to(root / its)


def pci(root, place, vendor, kind, numa=0):
    for key, value in (("vendor", vendor), ("class", kind), ("numa_node", numa)):
        write(root, f"sys/devices/{place}/{key}", value)
    listed = root / "sys/bus/pci/devices" / place.rpartition("/")[2]
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.symlink_to(root / "sys/devices" / place)


def look(root, fact=Look, programs=(), **words):
    """The fact, asked of a tree instead of this machine."""
    command = re.sub(r"(?<![\w$])/(sys|etc|proc)/", rf"{root}/\1/", fact().command(**words))
    for name in programs:
        write(root, f"bin/{name}", "#!/bin/sh")
        (root / "bin" / name).chmod(0o755)
    path = f"{root}/bin:{os.environ['PATH']}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env={"PATH": path})
    assert done.returncode == 0 and not done.stderr, done.stderr
    return fact().process(done.stdout.splitlines())


V1 = ("fe80:0000:0000:0000:0ac0:ebff:fe12:3456", "IB/RoCE v1")
V2 = ("fe80:0000:0000:0000:0ac0:ebff:fe12:3456", "RoCE v2")
V4_V1 = ("0000:0000:0000:0000:0000:ffff:0a00:0102", "IB/RoCE v1")
V4_V2 = ("0000:0000:0000:0000:0000:ffff:0a00:0102", "RoCE v2")
NONE = ("0000:0000:0000:0000:0000:0000:0000:0000", "")
SWITCHED = "pci0000:10/0000:10:01.0/0000:11:00.0"


def test_what_a_node_has_is_read_from_sysfs(tmp_path):
    hca(tmp_path, "mlx5_0", f"{SWITCHED}/0000:12:00.0/0000:13:00.0", "InfiniBand", net="ib0",
        gids=[("fe80:0000:0000:0000:0ac0:eb03:0012:3456", "IB/RoCE v1")])  # fmt: skip
    hca(tmp_path, "mlx5_1", "pci0000:20/0000:20:01.0/0000:21:00.0", "Ethernet", net="eth2", numa=1,
        gids=[V1, V2, V4_V1, V4_V2, NONE])  # fmt: skip
    hca(tmp_path, "mlx5_2", "pci0000:20/0000:20:02.0/0000:22:00.0", "Ethernet", state="1: DOWN", numa=-1)
    pci(tmp_path, f"{SWITCHED}/0000:12:01.0/0000:14:00.0", "0x10de", "0x030200")
    pci(tmp_path, f"{SWITCHED}/0000:12:02.0/0000:15:00.0", "0x10de", "0x068000")
    pci(tmp_path, "pci0000:20/0000:20:03.0/0000:23:00.0", "0x1a03", "0x030000")
    write(tmp_path, "etc/nccl.conf", "NCCL_DEBUG=WARN\n# a|b")
    write(tmp_path, "proc/driver/nvidia/version", f"{OPEN}\nGCC version:  gcc version 13.3.0")
    seen = look(tmp_path, address="127.0.0.1")
    one, two, three = seen.ports
    assert (one.name, one.link, one.state, one.rate, one.interfaces, one.gids) == (
        "mlx5_0:1", "InfiniBand", "4: ACTIVE", "400 Gb/sec (4X NDR)", ("ib0",), (),
    )  # fmt: skip
    assert one.usable and one.device.numa == 0 and "0000:11:00.0" in one.device.bridges
    assert (two.name, two.gids, two.device.numa, two.interfaces, two.usable) == (
        "mlx5_1:1", (3,), 1, ("eth2",), True,
    )  # fmt: skip
    assert (three.name, three.gids, three.device.numa, three.up) == ("mlx5_2:1", (), -1, False)
    assert [gpu.path.rpartition("/")[2] for gpu in seen.gpus] == ["0000:14:00.0"]
    assert (seen.interface, seen.conf, seen.kernel) == ("lo", "NCCL_DEBUG=WARN\n# a|b\n", os.uname().release)
    assert seen.driver == OPEN and seen.dma_buf and seen.peermem == ""
    assert told(seen)[1] == "NCCL_IB_HCA==mlx5_0:1"


def test_a_node_without_a_fabric_has_none(tmp_path):
    seen = look(tmp_path, address="192.0.2.7")
    assert seen == Seen(kernel=os.uname().release)
    assert Look().process(["kernel|6.8.0"]) is None, "it did not answer to the end"


def test_nvidia_peermem_is_loadable_where_infinibands_core_takes_it(tmp_path):
    write(tmp_path, "proc/kallsyms", "0000000000000000 T ib_register_client\t[ib_core]")
    assert look(tmp_path, programs=["modinfo"], address="127.0.0.1").peermem == ""
    write(tmp_path, "proc/kallsyms", "0000000000000000 T ib_register_peer_memory_client\t[ib_core]")
    assert look(tmp_path, programs=["modinfo"], address="127.0.0.1").peermem == "loadable"
    assert not look(tmp_path, Loaded)
    (tmp_path / "sys/module/nvidia_peermem").mkdir(parents=True)
    assert look(tmp_path, address="127.0.0.1").peermem == "loaded"
    assert look(tmp_path, Loaded)


def test_this_machine_can_be_looked_at():
    done = subprocess.run(["sh", "-c", Look().command("127.0.0.1")], capture_output=True, text=True)
    assert done.returncode == 0 and Look().process(done.stdout.splitlines()).interface == "lo"


# Operations and playbooks.


def test_a_module_that_is_loaded_is_not_loaded_again(on_host):
    assert on_host({Loaded: False}).commands(operations.peermem) == ["modprobe nvidia_peermem"]
    assert on_host({Loaded: True}).commands(operations.peermem) == []


def test_tcp_where_there_are_hcas_is_said(on_host):
    node = on_host({})
    assert node.commands(operations.said, its=Wanted("", unused=True)) == []
    assert node.said and "NCCL goes over TCP" in node.said[0]
    quiet = on_host({})
    assert quiet.commands(operations.said, its=Wanted("")) == [] and quiet.said == []


PORT = "port|mlx5_0|1|4: ACTIVE|InfiniBand|400 Gb/sec (4X NDR)|1: CA|/sys/devices/x|0|ib0|"
ON = "interface|2: eth1    inet 10.0.0.1/24 brd 10.0.0.255 scope global eth1"
FABRIC = ["kernel|6.8.0-31-generic", f"driver|{OPEN}", ON, "fabric"]


def answers(*rows):
    return {"interface": "eth1", "fake_responses": {
        "echo asked": ["os ubuntu 24.04", *LOOKED], "echo fabric": [*rows, *FABRIC],
    }}  # fmt: skip


def test_provision_tells_nccl_on_hosts_that_serve_with_gpus(provision):
    hosts = {
        "gpu1": ([], answers(PORT)), "gpu2": ([], answers()), "gpu3": ([], {**answers(PORT), "hcas": False}),
        "head": ([], {**answers(PORT), "gpus": 0}),
    }  # fmt: skip
    done = provision(hosts)
    assert done.returncode == 0, done.stderr
    plan = {op["name"]: op["hosts_with_change"] for op in json.loads(done.stdout)["plan"]}
    ours = [name for name in plan if name.startswith("NCCL")]
    assert ours == ["NCCL | Tell NCCL its fabric", "NCCL | Say what it goes over"]
    assert plan[ours[0]] == ["@fake/gpu1", "@fake/gpu2", "@fake/gpu3"]


def test_the_distributions_packages_for_rdma_come_where_nvidias_do_not(provision):
    def host(*more, **data):
        its = answers(PORT)
        its["fake_responses"]["libgomp1"] = [f"ii  {name}" for name in (*base.PACKAGES, *more)]
        its["fake_responses"]["echo asked"].insert(-1, "card")
        return [], {**its, "driver": False, **data}

    done = provision({"gpu1": host(), "gpu2": host(doca_ofed="3.2.1"), "gpu3": host(*PACKAGES)})
    assert done.returncode == 0, done.stderr
    plan = {op["name"]: op["hosts_with_change"] for op in json.loads(done.stdout)["plan"]}
    assert plan["Base | Install system packages"] == ["@fake/gpu1"]


def test_what_is_in_the_way_on_any_host_is_said_at_once_and_nothing_is_changed(provision):
    hosts = {
        "gpu1": ([], {**answers(PORT), "hcas": "mlx5_7"}),
        "gpu2": ([], {**answers(PORT.replace("4: ACTIVE", DOWN)), "hcas": "mlx5_0"}),
        "gpu3": ([], {**answers(PORT), "interface": "eth0"}),
        "gpu4": ([], answers(PORT)),
    }
    done = provision(hosts)
    assert done.returncode == 1 and not done.stdout
    said = " ".join(done.stderr.split())
    for problem in (
        "@fake/gpu1: hcas: mlx5_7 is not there; there are: mlx5_0:1",
        "@fake/gpu2: hcas: mlx5_0 is 1: DOWN",
        "@fake/gpu3: interface is eth0, and 10.0.0.3 is on eth1",
    ):
        assert problem in said, said
    assert "gpu4:" not in said


def test_provision_loads_nvidia_peermem_where_it_is_due(provision):
    rows = [PORT, "kernel|6.8.0-31-generic", f"driver|{CLOSED}", "peermem|loadable", ON, "fabric"]
    looked = ["os ubuntu 24.04", *LOOKED]
    responses = {"echo asked": looked, "echo fabric": rows}
    done = provision({"gpu1": ([], {"interface": "eth1", "fake_responses": responses})})
    assert done.returncode == 0, done.stderr
    plan = {op["name"]: op["hosts_with_change"] for op in json.loads(done.stdout)["plan"]}
    for name in ("Load nvidia-peermem at boot", "Load nvidia-peermem"):
        assert plan[f"NCCL | {name}"] == ["@fake/gpu1"]


def test_hosts_that_serve_without_gpus_are_left_alone(provision):
    done = provision({"gpu1": ([], {**answers(PORT), "runtime": "cpu"})})
    assert done.returncode == 0 and "NCCL" not in done.stdout
