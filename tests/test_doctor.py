"""The checks: all pass on healthy hosts, and each has what makes it speak up."""

import dataclasses
import json
import re

import pytest

from roles.doctor import CHECKS, Expected, Host, examine, registry
from roles.doctor.check import STATUSES
from tests.seen import H100, NCCL_IB, NVLINK, RECORDED, SMI, WEIGHTS, GiB, healthy, kernel

OTHERS = "/user.slice/session-3.scope"
STRAY = [31, "raylet", OTHERS]
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.105\n"
IB = "infiniband mlx5_0/1 "
NET = "units 0 network "


def set_to(path, value):
    """A change: the value at a path of words in what was seen on gpu2."""

    def change(seen):
        *way, last = path.split(" ")
        for word in way:
            seen = seen[int(word) if word.isdigit() and isinstance(seen, list) else word]
        seen[last] = value

    return change


def smi(old, new):
    assert old in SMI
    return set_to("nvidia_smi", SMI.replace(old, new))


class measuring:
    """A change of what was measured on both."""

    def __init__(self, key, found):
        self.measured = {key: found}


def promised(**other):
    """A change of what is expected, not of what is seen."""
    return other


#: {check: (what makes it speak, its verdict, words of the evidence)}. GPUs' rows are changed from the
#: recorded output of a healthy one, in its own words; see tests/seen.py for what is synthetic.
BROKEN = {
    "cache.disk": (set_to("mounts", "srv:/x / nfs4 rw 0 0\n"), "warn", "nfs4"),
    "cpu.governor": (set_to("hardware governors", ["powersave"]), "warn", "powersave"),
    "disk.full": (set_to("folders /tmp free", 20 * GiB), "warn", "98.0% full"),
    "disk.inodes": (set_to("folders /tmp inodes_free", 12), "fail", "12 inodes"),
    "disk.speed": (measuring("disk", {"folder": "/srv", "direct": True, "wrote": [GiB, 9], "read": [GiB, 4]}),
                   "warn", "reads 0.268 GB/s, writes 0.119 GB/s"),
    "disk.space": (set_to("folders /opt/rackserve free", 200 * 2**20), "fail", "/opt/rackserve: 200 MiB"),
    "env.there": (set_to("installed", ["torch-2.14.0"]), "fail", "no ray"),
    "gpu.allreduce": (measuring("allreduce replica-0", {"rows": [[GiB, 1.0]], "nccl": NCCL_IB}),
                      "fail", "busbw 1.61 GB/s at 1 GiB"),
    "gpu.count": (set_to("nvidia_smi", H100), "fail", "2 promised, 1 found, 2 on the bus"),
    "gpu.cuda": (smi(": 13.0", ": 12.2"), "fail", "CUDA 12.2, vLLM's environment has 13.0.96"),
    "gpu.compiler": (set_to("nvcc", None), "warn", "no nvcc"),
    "gpu.driver": (set_to("nvidia_smi", MISMATCH), "fail", "module 580.95.05, library 580.105"),
    "gpu.ecc": (smi("DRAM Uncorrectable            : 0", "DRAM Uncorrectable            : 3"), "fail",
                "3 uncorrectable"),
    "gpu.fabric": (smi(": Completed", ": In Progress"), "fail", "In Progress"),
    "gpu.mig": (smi("Current                           : Disabled", "Current : Enabled"), "fail", "19:00.0"),
    "gpu.model": (smi("H100 80GB HBM3", "A100-SXM4-80GB"), "fail", "the inventory says H100"),
    "gpu.nouveau": (set_to("modules", "nouveau 1 1 - Live 0x0\n"), "fail", "nouveau"),
    "gpu.nvlink": (lambda seen: seen.update(nvlink=seen["nvlink"].replace("26.562 GB/s", "<inactive>", 1)),
                   "fail", "11 on GPU 0; 12 on the others"),
    "gpu.packages": (set_to("packages", "install installed nvidia-open-580 580.95.05-1\n"), "warn",
                     "not held"),
    "gpu.pcie": (smi("Current                   : 16x", "Current                   : 8x"), "warn",
                 "8x of 16x"),
    "gpu.processes": (set_to("gpu_cgroups 700", OTHERS), "fail", "pid 700 holds 70000 MiB"),
    "gpu.rows": (smi("Pending                           : No", "Pending : Yes"), "fail", "pending"),
    "gpu.slowdown": (set_to("nvidia_smi", H100), "fail", "HW Power Brake Slowdown on 00000000:19:00.0"),
    "gpu.xid": (set_to("kernel", kernel("sxid")), "fail",
                "Xid 79 on 0000:91:00, SXid 20034 on 0000:06:00.0, SXid 20034 on 0000:05:00.0"),
    "host.clock": (set_to("synchronized", False), "warn", "nothing"),
    "host.firewall": (set_to("ufw", "ENABLED=yes\nLOGLEVEL=low\n"), "warn", "ufw"),
    "host.name": (set_to("host addresses", ["127.0.1.1"]), "fail", "127.0.1.1"),
    "host.reach": (None, "fail", "no sudo"),
    "host.reboot": (set_to("reboot", "linux-image-6.1.0-31-amd64\nlibc6\n"), "warn", "linux-image"),
    "host.system": (set_to("os", 'PRETTY_NAME="Plan 9"\nID=plan9\n'), "warn", "Plan 9"),
    "ib.direct": (set_to("driver", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05\n"), "warn",
                  "closed"),
    "ib.gid": (set_to("infiniband mlx5_1/1 gids", [["fe80::1", "RoCE v1"]]), "fail", "mlx5_1/1"),
    "ib.ports": (set_to(IB + "state", "1: DOWN"), "warn", "1 of 2 down: mlx5_0/1 1: DOWN"),
    "ib.verbs": (set_to("verbs", False), "fail", "libibverbs"),
    "kernel.numa": (set_to("numa_balancing", "1\n"), "warn", "1"),
    "memory.cache": (set_to("meminfo", "MemTotal: 50000000 kB\n"), "warn", "of weights"),
    "memory.killed": (set_to("kernel", kernel("oom")), "warn", "Out of memory: Killed process 955 (gnome-"),
    "nccl.hcas": (set_to("nccl", "NCCL_SOCKET_IFNAME==eth1\nNCCL_IB_HCA==mlx5_4:1\n"), "warn",
                  "not told NCCL_IB_HCA==mlx5_0:1, told NCCL_IB_HCA==mlx5_4:1"),
    "net.address": (set_to("net", None), "fail", "no interface has 10.0.0.2"),
    "net.reach": (measuring("connecting", {"rows": [["gpu2", 20000, "silent"]]}), "fail",
                  "silent from gpu1, gpu2 to 20000"),
    "net.errors": (set_to("net rx_errors", 10**6), "warn", "1000000 errors"),
    "net.path": (set_to("peers 10.0.0.1", [True, False]), "fail", "9000 bytes do not reach gpu1"),
    "pci.acs": (set_to("bridges 0000:00:01.1", 0x1D), "warn", "1 of 2 bridges: 0000:00:01.1"),
    "pci.iommu": (set_to("hardware iommu_types", ["DMA-FQ", "identity"]), "warn", "DMA-FQ, identity"),
    "plan.made": (promised(no_plan="no model: set it"), "warn", "no model"),
    "ports.range": (set_to("port_range", "1024\t65535\n"), "warn", "1024"),
    "ports.taken": (set_to("listeners", [[8000, 9, "nginx", OTHERS]]), "fail", "8000 by nginx (pid 9)"),
    "same.clock": ("offset", "fail", "+61.0 s"),
    "same.driver": (set_to("driver", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15"),
                    "fail", "570.86.15; 580.95.05 on gpu1"),
    "same.environment": (set_to("installed", ["ray-2.59.0"]), "fail", "ray-2.59.0 only here"),
    "same.gpu": (smi("H100 80GB HBM3", "H200"), "fail", "NVIDIA H200; NVIDIA H100 80GB HBM3 on gpu1"),
    "same.mtu": (set_to("net mtu", 1500), "fail", "MTU 1500; MTU 9000 on gpu1"),
    "same.nccl": (set_to("installed", ["nvidia_nccl_cu13-2.29.1"]), "fail", "2.29.1; 2.30.7 on gpu1"),
    "same.ports": (set_to(IB + "state", "1: DOWN"), "fail", "1 x 400 Gb/sec (4X NDR); 2 x"),
    "same.python": (set_to("python", "Python 3.12.3\n"), "fail", "Python 3.12.3; Python 3.12.11 on gpu1"),
    "same.ray": (set_to("installed", ["ray-2.59.0"]), "fail", "2.59.0; 2.60.0 on gpu1"),
    "same.speed": (set_to("net speed", "25000\n"), "warn", "25000 Mbit/s"),
    "same.weights": (set_to("weights digest", "beef" * 16), "fail", "beefbeef"),
    "shm.size": (set_to("folders /dev/shm free", 64 * 2**20), "fail", "64 MiB free"),
    "shm.stale": (set_to("shm", [{"name": "nccl-x", "bytes": 600 * GiB, "age": 900, "used": False}]), "fail",
                  "nccl-x"),
    "units.address": (set_to(NET + "VLLM_HOST_IP", "192.168.0.2"), "fail", "192.168.0.2, not 10.0.0.2"),
    "units.memlock": (set_to("units 0 LimitMEMLOCK", "8388608"), "fail", "LimitMEMLOCK=8388608"),
    "units.nofile": (set_to("units 0 LimitNOFILE", "1024"), "fail", "LimitNOFILE=1024"),
    "units.state": (set_to("units 0 NRestarts", "17"), "fail", "17 times"),
    "units.strays": (set_to("processes", [STRAY]), "fail", "raylet (pid 31)"),
    "weights.disk": (set_to("mounts", "srv:/x / nfs4 rw 0 0\n"), "warn", "on nfs4"),
    "weights.whole": (set_to("weights broken", ["a.safetensors.incomplete"]), "fail", "incomplete"),
}  # fmt: skip


def all_down(seen):
    for port in seen["infiniband"].values():
        port["state"] = "1: DOWN"


def mixed(seen):
    first, second = SMI.rsplit("GPU 00000000:", 1)
    seen["nvidia_smi"] = f"{first}GPU 00000000:{second.replace('H100 80GB HBM3', 'H200')}"


#: leptonai/gpud 3abba84, components/accelerator/nvidia/sxid/README.md: what nvidia-smi says after Xid 79.
NO_HANDLE = "Unable to determine the device handle for GPU0000:91:00.0: Unknown Error\n"
LOW = "Max locked memory         8388608              8388608              bytes     \n"

#: What else makes a check speak: (check, what, its verdict, words of the evidence).
BRANCHES = [
    ("host.name", set_to("host addresses", []), "fail", "gpu2 resolves to nothing"),
    ("host.name", set_to("host name", "1002"), "fail", "1002 is all digits"),
    ("host.name", promised(peers={}), "pass", "it is alone"),
    ("net.address", set_to("net up", False), "fail", "eth1 is down"),
    ("net.address", promised(interface="eth0"), "fail", "10.0.0.2 is on eth1, not on eth0"),
    ("net.path", set_to("peers 10.0.0.1", [False, False]), "warn", "no answer from gpu1: cut off, or"),
    ("ib.ports", all_down, "fail", "mlx5_0/1 1: DOWN, mlx5_1/1 1: DOWN"),
    ("gpu.driver", set_to("nvidia_smi", NO_HANDLE), "fail", "it does not answer: Unable to determine"),
    ("gpu.model", mixed, "fail", "different ones: NVIDIA H100 80GB HBM3, NVIDIA H200"),
    ("gpu.model", promised(gpu=None), "warn", "the inventory names none"),
    ("gpu.model", promised(gpu="H9000"), "warn", "the inventory says H9000"),
    ("gpu.rows", smi("Failure Occurred        : No", "Failure Occurred : Yes"), "fail", "remapping failed"),
    ("gpu.ecc", smi("ECC Mode\n        Current                           : Enabled",
                    "ECC Mode\n        Current : Disabled"), "warn", "ECC is off on 00000000:19:00.0"),
    ("units.state", lambda seen: seen["units"][0].update(ActiveState="failed", SubState="failed",
                                                         Result="exit-code"),
     "fail", "rackserve-replica-0-vllm.service is failed (exit-code), 0 restarts"),
    ("units.memlock", set_to("units 0 limits", LOW), "fail", "vllm.service runs with 8388608 bytes"),
    ("weights.disk", set_to("mounts", "/dev/sda1 / ext4 ro,relatime 0 0\n"), "pass", "on ext4"),
]  # fmt: skip


@pytest.mark.parametrize(("id", "change", "status", "words"), BRANCHES)
def test_a_check_speaks_of_what_else_may_be(id, change, status, words):
    (found,) = [one for one in examine(broken(change)) if (one.id, one.host) == (id, "gpu2")]
    assert found.status == status and words in found.evidence and bool(found.fix) == (status != "pass")


def test_a_disk_that_takes_nothing_is_a_failure_where_weights_are_to_come():
    _, two = broken(set_to("mounts", "/dev/sda1 / ext4 ro,relatime 0 0\n"))
    bare = dataclasses.replace(two, expected=dataclasses.replace(two.expected, weights=""))
    bare.seen["folders"]["/var/lib/rackserve"]["there"] = "/var/lib"
    (found,) = [one for one in examine([bare]) if one.id == "weights.disk"]
    assert (found.status, found.evidence) == ("fail", "ext4, read-only") and "remount,rw" in found.fix


def broken(change):
    one, two = healthy()
    if change is None:
        return one, Host(name=two.name, expected=two.expected, lacks="no sudo (install it)")
    if change == "offset":
        return one, dataclasses.replace(two, offset=61.0)
    if isinstance(change, measuring):
        measured = [{**host.measured, **change.measured} for host in (one, two)]
        return [dataclasses.replace(h, measured=m) for h, m in zip((one, two), measured, strict=True)]
    if isinstance(change, dict):
        return one, dataclasses.replace(two, expected=dataclasses.replace(two.expected, **change))
    change(two.seen)
    return one, two


def test_every_check_passes_on_healthy_hosts_and_says_what_it_saw():
    findings = examine(healthy())
    assert [one for one in findings if one.status != "pass"] == []
    assert {one.id for one in findings} == set(CHECKS)
    assert all(one.evidence and not one.fix for one in findings)


@pytest.mark.parametrize("id", sorted(BROKEN))
def test_a_check_speaks_when_its_case_is_there(id):
    change, status, words = BROKEN[id]
    on = "gpu1" if id == "gpu.allreduce" else "gpu2"  # where a replica has its first rank
    (finding,) = [one for one in examine(broken(change)) if one.id == id and one.host == on]
    assert (finding.status, finding.title, finding.reference) == (
        status, CHECKS[id].title, CHECKS[id].reference,
    )  # fmt: skip
    assert words in finding.evidence and finding.fix
    assert not {"{host}", "{address}", "{interface}", "{hostname}"} & set(finding.fix.split())


@pytest.mark.parametrize(
    ("id", "words"),
    [
        (
            "same.driver",
            "`driver` of gpu2 to the others' version in the inventory; rackserve rollout --reboot",
        ),
        ("gpu.fabric", "rackserve deploy provision; "),
    ],
)
def test_what_provision_and_a_rollout_mend_is_left_to_them(id, words):
    (finding,) = [one for one in examine(broken(BROKEN[id][0])) if (one.id, one.host) == (id, "gpu2")]
    assert finding.fix.startswith(words) and "apt" not in finding.fix


WAITS = {"state": "waiting", "why": "nothing is heard of gpu1", "row": 1, "recent": []}
FALLS = {"state": "starting", "why": "", "row": 3, "recent": [{"when": 0.0, "why": "gpu1: it ended"}]}


@pytest.mark.parametrize(
    ("gang", "said"),
    [
        (WAITS, "replica-0 is waiting: nothing is heard of gpu1"),
        (FALLS, "replica-0 fell 3 times in a row: gpu1: it ended"),
    ],
)
def test_a_replica_that_waits_or_falls_again_and_again_is_a_failure(gang, said):
    found = examine(broken(set_to("gangs", {"replica-0": gang})))
    assert [
        (one.status, one.evidence) for one in found if one.id == "units.state" and one.host == "gpu2"
    ] == [("fail", said)]


def test_every_check_has_a_case():
    assert set(BROKEN) == set(CHECKS)


def test_of_a_recorded_node_that_serves_only_what_its_machine_forbids_is_wrong():
    seen = json.loads((RECORDED / "look.lab-node.json").read_text())
    promised = Expected(
        address="10.77.44.11", gpus=1, gpu="cpu", ports=[(8000, 8000), (20000, 20999)],
        peers={"node2": "10.77.44.12"}, replicas=["replica-0"],
    )  # fmt: skip
    found = examine([Host(name="node1", expected=promised, seen=seen)])
    wrong = [(one.id, one.evidence) for one in found if one.status in ("fail", "warn")]
    assert wrong == [("units.memlock", "rackserve-replica-0-ray.service runs with 8388608 bytes")]
    assert len([one for one in found if one.status == "pass"]) > 15


def test_an_ethernet_port_that_nobody_set_up_is_no_link_that_is_down():
    _, two = healthy()
    # As ibstat has three of an H100 node's: leptonai/gpud, ibstat.47.0.h100.some.down.0.
    two.seen["infiniband"]["mlx5_1/1"].update(state="1: DOWN", phys_state="3: Disabled")
    (found,) = [one for one in examine([two]) if one.id == "ib.ports"]
    assert (found.status, found.evidence) == ("pass", "1 at 400 Gb/sec (4X NDR)")
    two.seen["infiniband"]["mlx5_1/1"].update(phys_state="2: Polling")
    (found,) = [one for one in examine([two]) if one.id == "ib.ports"]
    assert found.status == "warn"


def test_findings_come_worst_first():
    _, two = broken(BROKEN["shm.stale"][0])
    two.seen["numa_balancing"], two.seen["ip"] = "1\n", None
    order = [STATUSES.index(one.status) for one in examine([two])]
    assert order == sorted(order) and set(order) == {0, 1, 2, 3}


def test_on_a_host_without_gpus_nothing_is_said_of_them():
    hosts = [dataclasses.replace(h, expected=dataclasses.replace(h.expected, gpu="cpu")) for h in healthy()]
    said = {one.id for one in examine(hosts)}
    assert said == {id for id, check in CHECKS.items() if not check.gpus_only} - {"memory.cache"}


def test_a_host_that_has_none_of_the_gpus_it_was_promised():
    one, two = healthy()
    two.seen.update(nvidia_smi=None, driver=None, hardware={**two.seen["hardware"], "gpus": 0})
    failed = {row.id: row for row in examine([one, two]) if row.status == "fail" and row.host == "gpu2"}
    assert "2 promised; there is no nvidia-smi, 0 on the bus" in failed["gpu.count"].evidence
    assert "driver" in failed["gpu.count"].fix


def test_what_could_not_be_read_is_unknown_never_a_pass():
    one, two = healthy()
    bare = dict.fromkeys(two.seen)
    findings = [row for row in examine([one, Host(name="gpu2", expected=two.expected, seen=bare)])
                if row.host == "gpu2"]  # fmt: skip
    passing = {row.id for row in findings if row.status == "pass"}
    # What is away when there is nothing to say of it, and the time, which is our own measurement.
    assert passing == {"host.reach", "host.reboot", "same.clock"}
    assert len([row for row in findings if row.status == "unknown"]) > 30


def test_what_is_not_understood_is_unknown_with_what_was_odd():
    _, two = broken(set_to("port_range", "many\n"))
    (finding,) = [one for one in examine([two]) if one.id == "ports.range"]
    assert finding.status == "unknown" and "not understood" in finding.evidence


def test_what_a_check_of_all_hosts_does_not_understand_ends_no_other():
    hosts = broken(set_to(IB + "rate", ""))  # active, and no word of how fast
    rows = [row for row in examine(hosts) if row.status == "unknown"]
    assert {row.id for row in rows} == {"gpu.allreduce"} and "not understood: IndexError" in rows[0].evidence
    assert {row.id for row in examine(hosts)} == set(CHECKS)


def test_a_host_out_of_reach_is_a_result_and_the_others_are_judged():
    one, _ = healthy()
    away = Host(name="gpu2", expected=Expected(address="10.0.0.2"), lacks="cannot be reached over SSH")
    findings = examine([one, away])
    (finding,) = [row for row in findings if row.host == "gpu2"]
    assert (finding.id, finding.status, finding.evidence) == ("host.reach", "fail", away.lacks)
    assert len([row for row in findings if row.host == "gpu1"]) > 40


def test_of_several_hosts_the_odd_one_is_named_with_what_most_have():
    hosts = [*healthy(), healthy()[0]]
    hosts = [dataclasses.replace(host, name=name) for name, host in zip("abc", hosts, strict=True)]
    hosts[1].seen["net"]["mtu"] = 1500
    rows = {row.host: row for row in examine(hosts) if row.id == "same.mtu"}
    assert {name: row.status for name, row in rows.items()} == {"a": "pass", "b": "fail", "c": "pass"}
    assert rows["b"].evidence == "MTU 1500; MTU 9000 on a, c"
    assert rows["b"].fix.startswith("sudo ip link set eth1 mtu")


#: The names are those of NVIDIA/gpu-driver-container#186 and of roles/nvidia/table.py.
@pytest.mark.parametrize("row", [
    "linux-modules-nvidia-550-server-6.8.0-51-generic 6.8.0-51.52+1",
    "libnvidia-compute-580-server:amd64 580.95.05-0ubuntu0.24.04.1", "nvidia-fabricmanager-580 580.95.05-1",
    "libcuda1 1:580.95.05-1",
])  # fmt: skip
def test_what_an_upgrade_would_break_is_named(row):
    name, _ = row.split()
    gone = "deinstall config-files nvidia-dkms-580 580.95.05-1"
    _, two = broken(set_to("packages", f"install installed {row}\n{gone}\n"))
    (found,) = [one for one in examine([two]) if one.id == "gpu.packages"]
    assert (found.status, found.fix) == ("warn", f"sudo apt-mark hold {name}")


WELL = dict.fromkeys(("gpu.ecc", "gpu.rows", "gpu.slowdown"), ("pass", "none"))
WELL |= {"gpu.mig": ("pass", "off"), "gpu.pcie": ("pass", "full")}


@pytest.mark.parametrize(("name", "other"), [
    ("h200", {}),
    ("gh200", {"gpu.ecc": ("warn", "1 uncorrectable in its life on 00000000:DD:00.0")}),
    ("rtx5090", {"gpu.pcie": ("warn", "8x of 16x on 00000000:02:00.0")}),
])  # fmt: skip
def test_what_gpus_and_drivers_of_other_kinds_say_is_understood(name, other):
    text = (RECORDED / f"nvidia-smi-q.{name}.txt").read_text()
    _, two = broken(set_to("nvidia_smi", text))
    found = {one.id: (one.status, one.evidence) for one in examine([two])}
    assert {id: found[id] for id in WELL} == {**WELL, **other}


def test_ports_of_infiniband_and_ethernet_say_what_they_do():
    text = (RECORDED / "ibstatus.a100.txt").read_text()
    keys = (("state", "state"), ("phys state", "phys_state"), ("rate", "rate"), ("link_layer", "link_layer"))
    ports = {
        re.match(r"\S+ device '(\w+)' port (\d)", block).expand(r"\1/\2"): {
            key: re.search(rf"(?m)^ +{name}: +(.*)", block)[1] for name, key in keys
        } | {"gids": []}
        for block in text.split("\n\n")
    }  # fmt: skip
    found = {one.id: one for one in examine([broken(set_to("infiniband", ports))[1]])}
    assert found["ib.ports"].evidence == "3 at 200 Gb/sec (4X HDR), 40 Gb/sec (4X QDR)"
    # Of what has no GID at all, as Azure's card for the network beside its HCAs, nothing goes over RoCE.
    assert "ib.gid" not in found


def test_an_error_in_sram_is_counted_once_in_its_life():
    at, text = H100.rindex("SRAM Uncorrectable Parity     : 0"), H100
    for name in ("SRAM Uncorrectable Parity     ", "SRAM L2                       "):
        text = text[:at] + text[at:].replace(f"{name}: 0", f"{name}: 2")
    _, two = broken(set_to("nvidia_smi", text))
    (found,) = [one for one in examine([two]) if one.id == "gpu.ecc"]
    assert (found.status, found.evidence) == ("warn", "2 uncorrectable in its life on 00000000:19:00.0")


def test_a_bridge_that_only_validates_sources_redirects_nothing():
    # As `SrcValid+ TransBlk- ReqRedir- CmpltRedir- UpstreamFwd-` in nccl#606.
    _, two = broken(set_to("bridges 0000:00:01.1", 0x1))
    assert [one.status for one in examine([two]) if one.id == "pci.acs"] == ["pass"]


def test_an_older_kernel_says_at_boot_what_its_iommu_does():
    _, two = broken(set_to("hardware iommu_types", []))
    assert [one.status for one in examine([two]) if one.id == "pci.iommu"] == ["pass"]
    two.seen["cmdline"] = "quiet\n"
    assert [one.status for one in examine([two]) if one.id == "pci.iommu"] == ["warn"]


LOST = "NVRM: GPU 0000:29:00.0: GPU has fallen off the bus.\n"  # leptonai/gpud 2acd894, xid/kmsg_test.go
#: Of the same: the last line of three, and the only one that is asked for.
SILENT = "NVRM: fallen off the bus and is not responding to commands.\n"
#: The text is as NVIDIA's catalogue has it for Xid 154; after a reset.
MENDED = (
    "NVRM: Xid (PCI:0008:01:00): 154, "
    "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)\n"
)


@pytest.mark.parametrize(("log", "status", "said"), [
    (kernel("xid-149"), "fail", "Xid 149 on 0009:01:00, Xid 149 on 0008:01:00, 0009:01:00 needs: Drain and "
                                "Reset, 0008:01:00 needs: GPU Reset Required"),
    (MENDED, "pass", "no failure; seen: Xid 154 on 0008:01:00"),
    (kernel("xid-145"), "pass", "no failure; seen: Xid 145 on 0018:01:00"),
    (kernel("sxid-nonfatal"), "pass", "none since it booted"),
    (kernel("xid-45"), "pass", "no failure; seen: Xid 45 on 0000:dc:00, Xid 45 on 0000:ed:00"),
    (kernel("xid-13"), "pass", "no failure; seen: Xid 13 on 0000:cb:00, Xid 31 on 0000:cb:00"),
    (kernel("xid-13") + kernel("xid-109"), "warn", "Xid 109 on 0000:cb:00"),
    (LOST, "fail", "0000:29:00.0 fell off the bus"), (SILENT, "fail", "? fell off the bus"),
])  # fmt: skip
def test_what_the_kernel_says_of_gpus(log, status, said):
    (found,) = [one for one in examine([broken(set_to("kernel", log))[1]]) if one.id == "gpu.xid"]
    assert (found.status, found.evidence) == (status, said)


def test_a_control_group_that_ran_out_of_memory_counts_too():
    _, two = broken(set_to("kernel", kernel("oom-cgroup")))
    (found,) = [one for one in examine([two]) if one.id == "memory.killed"]
    assert found.status == "warn" and "1 since it booted, last: Memory cgroup out of memory" in found.evidence


def test_firewalld_is_a_firewall_too():
    _, two = broken(set_to("services", "Id=firewalld.service\nActiveState=active\n"))
    assert [one.evidence.split()[0] for one in examine([two]) if one.id == "host.firewall"] == ["firewalld"]


def test_links_that_are_unused_on_every_gpu_are_no_fault():
    (finding,) = [one for one in examine(healthy()[:1]) if one.id == "gpu.nvlink"]
    assert (finding.status, finding.evidence) == ("pass", "12 on each")


#: leptonai/gpud#1085 (B200, 2025-09), in the two spellings of NVIDIA/open-gpu-kernel-modules#1150.
ALL_DOWN = (
    "GPU 2: NVIDIA B200 (UUID: GPU-xxx)\nNVML: Unable to retrieve {} information as all links are inActive\n"
)


@pytest.mark.parametrize("word", ["NVLink", "Nvlink"])
def test_a_gpu_that_lost_every_link_has_fewer_than_the_others(word):
    whole = NVLINK.replace("<inactive>", "26.562 GB/s")  # as on a board with switches
    _, two = broken(set_to("nvlink", whole + ALL_DOWN.format(word)))
    (finding,) = [one for one in examine([two]) if one.id == "gpu.nvlink"]
    assert (finding.status, finding.evidence) == ("fail", "0 on GPU 2; 18 on the others")


def test_a_card_without_a_bridge_beside_two_that_have_one_is_no_fault():
    _, two = broken(set_to("nvlink", NVLINK + ALL_DOWN.format("NVLink")))
    (finding,) = [one for one in examine([two]) if one.id == "gpu.nvlink"]
    assert finding.status == "pass"


@pytest.mark.parametrize("text", [ALL_DOWN, NVLINK.replace("26.562 GB/s", "<inactive>"), ""])
def test_without_a_link_on_any_gpu_there_is_no_nvlink(text):
    _, two = broken(set_to("nvlink", text))
    (finding,) = [one for one in examine([two]) if one.id == "gpu.nvlink"]
    assert (finding.status, finding.evidence) == ("pass", "no NVLink")


def test_a_little_that_a_dead_process_left_is_a_warning():
    _, two = broken(set_to("shm", [{"name": "psm_1", "bytes": GiB, "age": 900, "used": False}]))
    (finding,) = [one for one in examine([two]) if one.id == "shm.stale"]
    assert (finding.status, finding.fix) == ("warn", "sudo rm /dev/shm/psm_1")


def test_what_was_just_made_in_shared_memory_is_not_called_left():
    _, two = broken(set_to("shm", [{"name": "psm_1", "bytes": GiB, "age": 5, "used": False}]))
    assert [one.status for one in examine([two]) if one.id == "shm.stale"] == ["pass"]


def test_hosts_of_different_models_may_have_different_gpus_and_weights():
    one, two = broken(smi("H100 80GB HBM3", "H200"))
    two.seen["weights"]["digest"] = "beef" * 16
    apart = dataclasses.replace(two, expected=dataclasses.replace(two.expected, weights="/elsewhere"))
    checks = {"same.gpu", "same.weights"}
    assert {finding.id for finding in examine([one, two]) if finding.status == "fail"} >= checks
    assert not {finding.id for finding in examine([one, apart]) if finding.status == "fail"} & checks


def test_a_head_without_gpus_and_hcas_is_well_beside_nodes_that_have_them():
    hosts = healthy()
    own = dataclasses.replace(hosts[0].expected, gpus=0, gpu=None, weights="", weights_bytes=0, ports=(),
                              replicas=(), ranks=(), nccl="", reaches={}, listens=())  # fmt: skip
    bare = {"nvidia_smi": None, "nvlink": None, "driver": None, "packages": None, "weights": None,
            "bridges": {}, "infiniband": {}, "nccl": None, "units": [], "gangs": {}}  # fmt: skip
    head = dataclasses.replace(hosts[0], name="head", expected=own, seen={**hosts[0].seen, **bare})
    said = [row for row in examine([head, *hosts]) if row.status != "pass"]
    assert said == []
    assert "same.ports" in {row.id for row in examine([head, *hosts]) if row.host == "gpu1"}


def test_hosts_of_different_models_may_have_different_ports():
    one, two = broken(set_to("infiniband", {}))
    apart = dataclasses.replace(two, expected=dataclasses.replace(two.expected, weights="/elsewhere"))
    assert [row.status for row in examine([one, two]) if row.id == "same.ports"] == ["fail", "pass"]
    assert [row for row in examine([one, apart]) if row.id == "same.ports"] == []


def test_weights_to_come_need_room():
    _, two = broken(set_to(f"folders {WEIGHTS} free", 30 * GiB))
    two.seen["weights"].update(files=0, bytes=0)
    (finding,) = [one for one in examine([two]) if one.id == "disk.space"]
    assert finding.status == "fail" and "140 GiB of weights to come, 30 GiB free" in finding.evidence


def test_the_registry_can_be_listed_and_each_row_is_whole():
    rows = registry()
    assert {row["id"] for row in rows} == set(CHECKS) and len(rows) >= 40
    for row in rows:
        assert set(row) == {"id", "title", "looks_at", "fix", "reference", "deep"}
        assert all(value for key, value in row.items() if key != "deep")
    assert {row["id"] for row in rows if row["deep"]} == {"disk.speed", "net.reach", "gpu.allreduce"}


@pytest.mark.parametrize(("change", "status", "words"), [
    (promised(no_nccl="hcas: mlx5_9 is not there; there are: none"), "fail", "mlx5_9 is not there"),
    (promised(nccl="NCCL_IB_HCA==mlx5_0:1,mlx5_1\n"), "warn", "not told NCCL_IB_HCA==mlx5_0:1,mlx5_1"),
    (promised(nccl="NCCL_SOCKET_IFNAME==eth1\n"), "warn", "told NCCL_IB_HCA==mlx5_0:1"),
    (set_to(IB + "state", "1: DOWN"), "fail", "mlx5_0:1 of mlx5_0:1 is down"),
    (set_to("nccl", None), "warn", "not told NCCL_SOCKET_IFNAME==eth1 NCCL_IB_HCA==mlx5_0:1"),
])  # fmt: skip
def test_what_nccl_is_told_is_compared_with_what_is_there(change, status, words):
    (found,) = [one for one in examine(broken(change)) if one.id == "nccl.hcas" and one.host == "gpu2"]
    assert found.status == status and words in found.evidence and found.fix


def test_a_link_of_several_that_is_down_is_what_nccl_goes_without():
    hcas = "NCCL_IB_HCA==mlx5_0:1,mlx5_1\n"
    _, two = broken(promised(nccl=hcas))
    two.seen.update(nccl=hcas)
    assert [f.status for f in examine([two]) if f.id == "nccl.hcas"] == ["pass"]
    two.seen["infiniband"]["mlx5_1/1"]["state"] = "1: DOWN"
    (found,) = [f for f in examine([two]) if f.id == "nccl.hcas"]
    assert (found.status, found.evidence) == ("warn", "mlx5_1 of mlx5_0:1, mlx5_1 is down: NCCL goes without")


def test_of_a_host_that_serves_without_gpus_nothing_is_said_of_nccl():
    assert [found for found in examine(healthy(nccl="")) if found.id == "nccl.hcas"] == []
