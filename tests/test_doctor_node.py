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


@pytest.mark.parametrize("config", [b"", b"\0" * 64, b"\0" * 256, b"\xff" * 4096])
def test_a_bridge_without_that_register_has_none(hardware, config):
    assert hardware.acs(config) is None


def test_a_capability_that_points_at_itself_ends(hardware):
    config = bytearray(4096)
    struct.pack_into("<I", config, 0x100, 0x0001 | 0x100 << 20)
    assert hardware.acs(bytes(config)) is None
