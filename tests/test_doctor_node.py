"""What runs on a node to look at it, run here: it ends well whatever is missing, on any Python."""

import importlib.util
import json
import re
import socket
import struct
import subprocess
import sys

import pytest

from roles.doctor import examine
from roles.doctor.facts import MODULES, NODE, program
from tests.seen import healthy, kernel

#: Every key that a check may ask for on any host.
KEYS = {
    "cmdline", "meminfo", "modules", "mounts", "driver", "numa_balancing", "release", "port_range", "os",
    "reboot", "ufw", "ip", "nvidia_smi", "nvlink", "gpu_processes", "fabricmanager", "services", "kernel",
    "host", "listeners", "folders", "shm", "processes", "installed", "weights", "synchronized", "hardware",
    "bridges", "infiniband", "verbs", "net", "peers", "gpu_cgroups", "units", "gangs", "time",
}  # fmt: skip


def looked(**asked):
    done = subprocess.run(
        [sys.executable, "-I", "-c", program(), json.dumps({"address": "127.0.0.1", **asked})],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def imported():
    """imported("hardware"): node/hardware.py as it is imported there."""

    def module(name):
        spec = importlib.util.spec_from_file_location(f"doctor_{name}", NODE / f"{name}.py")
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return made

    sys.path.insert(0, str(NODE))
    try:
        yield module
    finally:
        sys.path.remove(str(NODE))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def hardware(imported):
    return imported("hardware")


def test_every_key_is_there():
    found = looked()
    assert set(found) >= KEYS
    assert found["net"]["name"] == "lo" and found["folders"]["/"]["size"] > 0
    assert "MemTotal" in found["meminfo"]


def test_a_listener_on_a_port_of_the_plan_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        rows = looked(ports=[[port, port]])["listeners"]
    assert [row[0] for row in rows] == [port] and "python" in rows[0][2] or "pytest" in rows[0][2]


def test_weights_have_one_fingerprint_for_the_same_names_and_sizes(tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("abc" if name != "three" else "abcd")
    digests = [looked(weights=str(tmp_path / name))["weights"]["digest"] for name in ("one", "two", "three")]
    assert digests[0] == digests[1] != digests[2]


def test_a_broken_off_download_is_seen(tmp_path):
    (tmp_path / "a.safetensors.incomplete").write_text("")
    assert looked(weights=str(tmp_path))["weights"]["broken"] == ["a.safetensors.incomplete"]


@pytest.mark.parametrize(("command", "runs"), [
    ("vllm serve llama", "vllm"), ("/opt/venv/bin/python3.12 /opt/venv/bin/vllm serve llama", "vllm"),
    ("python3 -I -X dev -m vllm.entrypoints.openai.api_server", "vllm"), ("python /usr/bin/ray start", "ray"),
    ("tail -f vllm", "tail"), ("vim /etc/vllm", "vim"), ("python3 train.py vllm", "train.py"),
    ("python3 -c vllm", "-c"), ("python3", ""), ("", ""),
])  # fmt: skip
def test_a_process_is_what_it_runs_not_what_it_reads(imported, command, runs):
    assert imported("system").program(command.split(" ")) == runs


def test_packages_of_an_environment_are_listed(tmp_path):
    packages = tmp_path / "lib/python3.12/site-packages"
    for name in ("ray-2.60.0", "torch-2.14.0"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
    assert looked(environment=str(tmp_path))["installed"] == ["ray-2.60.0", "torch-2.14.0"]


@pytest.mark.parametrize("name", ["sxid", "xid-149", "xid-45", "xid-109", "oom", "oom-cgroup"])
def test_what_the_checks_judge_is_asked_of_the_kernels_log(imported, name):
    def judged(log):
        one, _ = healthy()
        one.seen["kernel"] = log
        return [row.evidence for row in examine([one]) if row.id in ("gpu.xid", "memory.killed")]

    asked = re.compile(imported("look").KERNEL_SAYS)  # journalctl's are Perl's, as ours
    fetched = [line for line in kernel(name).splitlines(True) if asked.search(line)]
    assert fetched and judged("".join(fetched)) == judged(kernel(name)) != judged("")


def test_the_control_register_is_found_behind_other_capabilities(hardware):
    # Synthetic: AER at 0x100, then ACS at 0x2a0, where AMD's root ports have it (nccl#606), of the
    # value that lspci shows as SrcValid+ ReqRedir+ CmpltRedir+ UpstreamFwd+ (nccl#523).
    config = bytearray(4096)
    struct.pack_into("<I", config, 0x100, 0x0001 | 2 << 16 | 0x2A0 << 20)
    struct.pack_into("<IHH", config, 0x2A0, 0x000D | 1 << 16, 0x5F, 0x001D)
    assert hardware.acs(bytes(config)) == 0x1D


#: Synthetic, as the kernel lays it out: a switch with a GPU and an HCA, and a disk behind a port of its own.
SYSFS = {
    "pci0000:15/0000:15:01.0": ("0x8086", "0x060400", 0x1C),
    "pci0000:15/0000:15:01.0/0000:16:00.0": ("0x1000", "0x060400", None),
    "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:00.0": ("0x1000", "0x060400", 0x1),
    "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:00.0/0000:18:00.0": ("0x10de", "0x030200", None),
    "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0": ("0x1000", "0x060400", 0x0),
    "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0/0000:19:00.0": ("0x15b3", "0x020700", None),
    "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:1f.0": ("0x10de", "0x068000", None),
    "pci0000:00/0000:00:0c.0": ("0x8086", "0x060400", 0x1D),
    "pci0000:00/0000:00:0c.0/0000:01:00.0": ("0x144d", "0x010802", None),
}
PORT = {"state": "4: ACTIVE\n", "phys_state": "5: LinkUp\n", "rate": "400 Gb/sec (4X NDR)\n",
        "link_layer": "InfiniBand\n", "gids/0": "fe80:0000:0000:0000:0000:0000:0000:0001\n",
        "gids/1": "0000:0000:0000:0000:0000:0000:0000:0000\n",
        "gid_attrs/types/0": "IB/RoCE v1\n"}  # fmt: skip


@pytest.fixture
def sysfs(hardware, tmp_path, monkeypatch):
    """node/hardware.py that looks at SYSFS."""

    def put(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)

    for at, (vendor, kind, acs) in SYSFS.items():
        folder = tmp_path / "devices" / at
        put(folder / "vendor", f"{vendor}\n")
        put(folder / "class", f"{kind}\n")
        capability = b"" if acs is None else struct.pack("<IHH", 0x000D | 1 << 16, 0x5F, acs)
        put(folder / "config", b"\0" * 256 + capability + b"\0" * 64)
        link = tmp_path / "bus/pci/devices" / folder.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)
        if vendor == "0x15b3":
            (folder / "infiniband/mlx5_0").mkdir(parents=True)
    for name, text in PORT.items():
        put(tmp_path / "class/infiniband/mlx5_0/ports/1" / name, text)
    put(tmp_path / "kernel/iommu_groups/0/type", "identity\n")
    put(tmp_path / "devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n")
    monkeypatch.setattr(hardware, "SYS", str(tmp_path))
    return hardware


def test_bridges_are_those_above_a_gpu_or_an_hca(sysfs):
    assert sysfs.bridges({}) == {"0000:15:01.0": 0x1C, "0000:17:00.0": 0x1, "0000:17:01.0": 0x0}


def test_what_is_on_the_bus_is_counted_whatever_the_driver_says(sysfs):
    assert sysfs.hardware({}) == {
        "gpus": 1, "nvswitches": 1, "iommu_groups": 1, "iommu_types": ["identity"],
        "governors": ["performance"],
    }  # fmt: skip


def test_a_port_has_its_states_and_the_gids_that_are_set(sysfs):
    assert sysfs.infiniband({}) == {
        "mlx5_0/1": {
            "state": "4: ACTIVE", "phys_state": "5: LinkUp", "rate": "400 Gb/sec (4X NDR)",
            "link_layer": "InfiniBand",
            "gids": [["fe80:0000:0000:0000:0000:0000:0000:0001", "IB/RoCE v1"]],
        }
    }  # fmt: skip


@pytest.mark.parametrize("config", [b"", b"\0" * 64, b"\0" * 256, b"\xff" * 4096])
def test_a_bridge_without_that_register_has_none(hardware, config):
    assert hardware.acs(config) is None


def test_a_capability_that_points_at_itself_ends(hardware):
    config = bytearray(4096)
    struct.pack_into("<I", config, 0x100, 0x0001 | 0x100 << 20)
    assert hardware.acs(bytes(config)) is None
