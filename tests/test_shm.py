"""Shared memory of processes that were killed: what goes, what stays."""

import mmap
import os
import subprocess
import sys
import time

import pytest
import shm

OWN = os.getuid()


@pytest.fixture
def left(tmp_path):
    """left(name, age): a file of ours there, as of a process that is gone."""

    def make(name, age=60.0):
        path = tmp_path / name
        path.write_bytes(b"x" * 4096)
        os.utime(path, (time.time() - age, time.time() - age))
        return path

    return make


@pytest.fixture
def sweep(tmp_path):
    """Sweeps the test's own folder instead of /dev/shm, where others have theirs."""
    return lambda user=OWN: shm.sweep(user, str(tmp_path))


def test_what_vllm_nccl_python_and_torch_leave_goes(left, sweep):
    names = ["nccl-aB3", "psm_1f2e", "sem.mp-x1", "torch_700_1", "vllm_9"]
    paths = [left(name) for name in names]
    assert sweep() == names and not any(path.exists() for path in paths)


def test_what_is_of_others_or_too_young_or_of_another_kind_stays(left, sweep, tmp_path):
    (tmp_path / "psm_folder").mkdir()
    (tmp_path / "psm_link").symlink_to(left("plasma"))
    left("psm_young", age=1)
    before = sorted(tmp_path.iterdir())
    assert sweep() == []
    left("psm_other")
    assert sweep(OWN + 1) == []
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "psm_other"])


HOLDS = """
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
if sys.argv[2] == "mapped":
    memory = mmap.mmap(file, 4096)
    os.close(file)
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["mapped", "open"])
def test_what_another_process_has_stays_until_it_is_gone(left, sweep, how):
    path = left("psm_held")
    command = [sys.executable, "-IS", "-c", HOLDS, path, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert sweep() == [] and path.exists()
        process.kill()
    assert sweep() == ["psm_held"] and not path.exists()


def test_a_mapping_is_seen_by_itself_and_a_descriptor_too(left):
    path, own = str(left("psm_held")), f"/proc/{os.getpid()}"
    with open(path, "r+b") as file:
        assert path in shm._open(own) and path not in shm._mapped(own)
        with mmap.mmap(file.fileno(), 4096):
            assert path in shm._mapped(own)


def test_a_process_that_ends_meanwhile_is_no_error():
    assert shm._mapped("/proc/0") == [] and list(shm._open("/proc/0")) == []
