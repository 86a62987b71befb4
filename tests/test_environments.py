"""Which environments of a node nothing uses any more, and how they go."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

from roles import runtime
from roles.runtime.facts import SCRIPT, Environments
from roles.runtime.operations import GONE, pruned
from tests.test_nvidia import LOOKED, provision

__all__ = ["provision"]  # a fixture

OLD, NEW = "/opt/rackserve/runtime/cuda-000000000000", "/opt/rackserve/runtime/cuda-111111111111"


@pytest.fixture
def node(tmp_path):
    """A root with two environments of a mebibyte each, and this machine's processes."""
    for path in (OLD, NEW):
        written(tmp_path, f"{path}/lib/x.so", "x" * 2**20)
    (tmp_path / "proc").symlink_to("/proc")
    return tmp_path


def written(root, path, text):
    file = root / path[1:]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def looked(root):
    """{path: what the node's own program says of it}"""
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root)], check=True, capture_output=True, text=True
    ).stdout  # fmt: skip
    return {one["path"]: one for one in Environments().process(said.splitlines())}


def removed(root, on_host, *keep):
    """Prune that node; returns what was said of it."""
    host = on_host({Environments: list(looked(root).values())})
    for command in host.commands(pruned, keep=keep):
        subprocess.run(command.replace("/opt/", f"{root}/opt/"), shell=True, check=True)
    return host.said


def left(root):
    return sorted(path.name for path in (root / "opt/rackserve/runtime").iterdir())


def test_what_no_file_names_is_removed_and_said_with_its_size(node, on_host):
    written(node, "/etc/rackserve/releases/replica-0/c0ffee.json", json.dumps({"files": [f"{NEW}/bin/vllm"]}))
    assert removed(node, on_host) == [f"{OLD}: frees 0.00 GB"]
    assert left(node) == ["cuda-111111111111"]
    assert removed(node, on_host) == []


@pytest.mark.parametrize(
    "file",
    [
        "/etc/rackserve/releases/replica-0/c0ffee.json", "/etc/rackserve/replica-0/vllm.yaml",
        "/etc/systemd/system/rackserve-replica-0-vllm.service",
    ],
)  # fmt: skip
def test_what_a_release_or_a_unit_names_stays(node, on_host, file):
    written(node, file, f'ExecStart={OLD}/bin/vllm serve\nEnvironment="PATH={OLD}/bin:/usr/bin"\n')
    assert looked(node)[OLD] == {"path": OLD, "used": file, "bytes": 0}
    removed(node, on_host, NEW)
    assert left(node) == ["cuda-000000000000", "cuda-111111111111"]


def test_a_name_that_begins_alike_is_another(node):
    written(node, "/etc/rackserve/replica-0/vllm.yaml", f"{OLD}0/bin/vllm")
    assert looked(node)[OLD]["used"] == ""
    assert looked(node)[OLD]["bytes"] >= 2**20


@contextmanager
def process(root, name):
    """One that runs from the old environment, under that name."""
    program = root / OLD[1:] / "bin/sleep"
    program.parent.mkdir(exist_ok=True)
    shutil.copy("/bin/sleep", program)
    started = subprocess.Popen([name or str(program), "600"], executable=program)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@pytest.mark.parametrize("name", ["", "ray::worker"])
def test_what_a_process_runs_from_stays_whatever_it_calls_itself(node, on_host, name):
    with process(node, name) as its:
        assert looked(node)[OLD]["used"] == f"process {its.pid}"
        removed(node, on_host, NEW)
        assert OLD.rpartition("/")[2] in left(node)
    removed(node, on_host, NEW)
    assert left(node) == ["cuda-111111111111"]


def test_what_the_inventory_wants_stays_also_half_installed(node, on_host):
    shutil.rmtree(node / NEW[1:] / "lib")
    removed(node, on_host, NEW)
    assert left(node) == ["cuda-111111111111"]


def test_a_removal_that_broke_off_is_finished_and_a_broken_off_installs_scratch_with_it(node, on_host):
    os.rename(node / OLD[1:], node / f"{OLD[1:]}{GONE}")
    written(node, f"{OLD}/lib/x.so", "made again, and wanted no more")
    written(node, "/opt/rackserve/tmp/x", "unpacked")
    removed(node, on_host, NEW)
    assert left(node) == ["cuda-111111111111"]
    assert os.listdir(node / "opt/rackserve") == ["runtime"]


def test_half_gone_it_is_not_taken_for_half_installed(on_host):
    one = {"path": OLD, "used": "", "bytes": 3_200_000_000}
    host = on_host({Environments: [one]})
    first, second = host.commands(pruned, keep=[NEW])
    assert first == f"rm -rf {OLD}{GONE} && mv {OLD} {OLD}{GONE}"
    assert second == f"rm -rf {OLD}{GONE}"
    assert host.said == [f"{OLD}: frees 3.20 GB"]


def test_the_playbook_keeps_what_each_hosts_inventory_wants(provision):
    wanted = {kind: runtime.path(kind) for kind in ("cuda", "cpu")}
    there = [{"path": path, "used": "", "bytes": 10**9} for path in wanted.values()]
    said = {"echo asked": ["os ubuntu 24.04", *LOOKED], "json.dumps": [json.dumps(there)]}
    hosts = {
        "gpu1": ([], {"fake_responses": said}),
        "gpu2": ([], {"fake_responses": {**said, "json.dumps": []}}),
    }
    done = provision(hosts, deploy="prune_environments")
    assert done.returncode == 0, done.stderr
    plan = {op["name"]: op["hosts_with_change"] for op in json.loads(done.stdout)["plan"]}
    (name,) = [name for name in plan if "Remove old environments" in name]
    assert plan[name] == ["@fake/gpu1"]
    assert f"{wanted['cpu']}: frees 1.00 GB" in done.stderr
    assert f"{wanted['cuda']}: frees" not in done.stderr
