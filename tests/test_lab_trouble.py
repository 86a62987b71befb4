"""Bad input on real nodes: one line that names the place, an honest exit code, nothing changed."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roles.lock import SCRIPT as LOCK_SCRIPT
from tests.lab import Lab
from tests.lab.cluster import READER, STRANGER
from tests.lab.node import Node
from tests.lab.paths import MODELS
from tests.lab.shell import wait_until
from tests.lab.testing import BIN, REPOSITORY, belongings, pyinfra, rackserve

pytestmark = pytest.mark.lab

TINY = {"model": "tiny-llama", "tensor_parallel": 1, "pipeline_parallel": 2}
GATED = {**TINY, "model": "tiny-llama-gated"}
OTHER = {"who": "ada@laptop", "pid": 12}


@pytest.fixture(scope="module", autouse=True)
def provisioned(lab: list[Node]) -> None:
    assert pyinfra("provision").code == 0


@pytest.fixture
def untouched(lab: list[Node]) -> Iterator[None]:
    """The test changes nothing on the second node; our own scripts may be brought up to date."""
    assert pyinfra("stage_weights", **TINY).code == 0
    before = belongings(lab[1])
    yield
    assert belongings(lab[1]) ^ before == set()


def refused(*words: str, code: int = 1, **data: object) -> str:
    """Run `rackserve deploy`, which must fail with that code; returns its one line of error."""
    outcome = rackserve("deploy", *words, "-i", "lab", **data)
    assert outcome.code == code, outcome.said
    (line,) = [line for line in outcome.said.splitlines() if line.startswith("rackserve: ")]
    return line


@pytest.mark.usefixtures("untouched")
def test_tp_that_does_not_divide_the_heads(lab: list[Node]) -> None:
    line = refused("serve", code=2, model="smollm2-135m-instruct", tensor_parallel=2, pipeline_parallel=1)
    assert "TP 2 does not divide 9 attention heads" in line and "1, 3" in line


@pytest.mark.usefixtures("untouched")
def test_unreachable_host(lab: list[Node]) -> None:
    lab[2].cut()
    try:
        by_us, by_pyinfra = refused("provision"), pyinfra("provision")
    finally:
        lab[2].heal()
    assert "node3" in by_us
    assert by_pyinfra.code == 1 and "node3" in by_pyinfra.said


@pytest.mark.parametrize("program", ["sudo", "python3"])
def test_host_without_what_everything_needs(lab: list[Node], program: str) -> None:
    there = lab[1].root / f"usr/bin/{program}"
    there.rename(there.with_suffix(".away"))
    try:
        line = refused("provision", code=2)
    finally:
        there.with_suffix(".away").rename(there)
    assert "node2" in line and f"no {program}" in line


def test_host_whose_systemd_does_not_run(lab: list[Node]) -> None:
    there = "/run/systemd/system"  # how sd_booted(3) tells
    lab[1].sudo(f"mv {there} {there}.away")
    try:
        line = refused("provision", code=2)
    finally:
        lab[1].sudo(f"mv {there}.away {there}")
    assert "node2" in line and "systemd is not running" in line


def test_host_whose_root_hides_what_it_installs(lab: list[Node]) -> None:
    there = "/etc/sudoers.d/hardened"
    lab[1].sudo(f"echo Defaults umask=0077, umask_override > {there}")
    try:
        line = refused("provision", code=2)
    finally:
        lab[1].sudo(f"rm {there}")
    assert "node2" in line and "umask" in line


@pytest.mark.usefixtures("untouched")
def test_gated_model_without_a_token(lab: list[Node]) -> None:
    line = refused("stage_weights", **GATED)
    assert "node1" in line and "gated" in line and "HF_TOKEN" in line


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("token", [STRANGER, "hf_unknown"])
def test_gated_model_with_a_token_that_does_not_open_it(lab: list[Node], token: str) -> None:
    line = refused("stage_weights", **GATED, hf_token=token)
    assert "node1" in line and "token" in line and token not in line


def test_gated_model_with_the_right_token_which_is_kept_nowhere(lab: list[Node]) -> None:
    assert rackserve("deploy", "stage_weights", "-i", "lab", **GATED, hf_token=READER).code == 0
    # The pattern does not match itself in sudo's own log.
    places = "/var/lib /etc /root /tmp; journalctl --no-pager | grep"
    assert not lab[0].sudo(f"grep -rs hf_lab_[r]eader {places} hf_lab_[r]eader || true")


@pytest.mark.usefixtures("untouched")
def test_hub_that_is_down(lab: list[Node]) -> None:
    line = refused("stage_weights", **TINY, revision="v2", hf_endpoint="http://10.77.44.1:9")
    assert "node1" in line and "http://10.77.44.1:9 does not answer" in line


@pytest.mark.usefixtures("untouched")
def test_revision_that_is_not_there(lab: list[Node]) -> None:
    assert "has no revision v9" in refused("stage_weights", **TINY, revision="v9")


def test_full_disk(lab: list[Node]) -> None:
    smollm2 = {**TINY, "model": "smollm2-135m-instruct"}
    lab[1].sudo("rm -rf /var/lib/rackserve/weights/HuggingFaceTB*")
    lab[1].fill_disk(leave_mib=20)
    try:
        line = refused("stage_weights", **smollm2)
    finally:
        lab[1].heal()
    assert "node2" in line and "free" in line
    assert rackserve("deploy", "stage_weights", "-i", "lab", **smollm2).code == 0


def test_config_that_contradicts_the_catalogue(lab: list[Node]) -> None:
    folder = MODELS / "rackserve-lab/tiny-llama"
    other = folder / ".revisions/contradicts"
    other.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 4}))
    line = refused("stage_weights", **TINY, revision="contradicts")
    assert "num_key_value_heads is 4 there and 2 in the model's file" in line
    assert "contradicts" not in lab[1].sudo("ls /var/lib/rackserve/weights/rackserve-lab--tiny-llama")


@pytest.mark.usefixtures("untouched")
def test_folder_that_is_no_model(lab: list[Node]) -> None:
    line = refused("stage_weights", **TINY, weights_path="/srv/nothing")
    assert "/srv/nothing has no config.json" in line


@pytest.mark.usefixtures("untouched")
def test_serving_what_was_not_staged(lab: list[Node]) -> None:
    line = refused("serve", model="smollm2-135m-instruct", revision="v3")
    assert "run the deploy stage_weights" in line


def test_a_plan_reads_the_hub(lab: list[Node], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", Lab().hub_url)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    planned = rackserve("plan", "rackserve-lab/tiny-llama", "--gpus", "1xH100")
    assert planned.code == 0 and "tiny-llama fits: TP 1 x PP 1 on 1 H100" in planned.said
    for what, said in (
        ("rackserve-lab/tiny-llama-gated", "is gated: ask for access"),
        ("rackserve-lab/nothing", "no such repository"),
    ):
        outcome = rackserve("plan", what, "--gpus", "1xH100")
        assert outcome.code == 2 and said in outcome.said and outcome.said.count("\n") == 1, outcome.said


def test_lock_names_its_holder_is_ignored_by_dry_and_is_broken_by_name(lab: list[Node]) -> None:
    hold(lab[0], seconds=100)
    assert pyinfra("provision", "--dry").code == 0
    unwrapped = pyinfra("provision")
    assert unwrapped.code == 1 and "locked by ada@laptop" in unwrapped.said
    assert "Install system packages" not in unwrapped.said  # on no host
    line = refused("provision")
    assert "node1: locked by ada@laptop (pid 12) since 20" in line and "rackserve unlock -i" in line
    unlocked = rackserve("unlock", "-i", "lab")
    assert unlocked.code == 0 and "node1: the lock was taken from ada@laptop (pid 12)" in unlocked.said
    assert rackserve("unlock", "-i", "lab").said == "nobody held the lock\n"
    assert pyinfra("provision").changed == {}


def test_lock_lapses_without_renewal(lab: list[Node]) -> None:
    hold(lab[0], seconds=1)
    time.sleep(1.5)
    assert pyinfra("provision").code == 0


def test_of_two_runs_at_once_one_is_refused(lab: list[Node]) -> None:
    lab[0].sudo("rm -rf /opt/rackserve/tools")  # something to do for the first
    command: list[str | Path] = [BIN / "pyinfra", "inventories/lab.py", "deploys/provision.py", "-y"]
    first = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: "pid" in lab[0].sudo("cat /run/rackserve/lock 2>&1 || true"), 30, "the lock")
    second = refused("provision")
    assert first.poll() is None and f"(pid {first.pid})" in second
    said = first.communicate()[1]
    assert first.returncode == 0, said
    assert "No such file" in lab[0].sudo("cat /run/rackserve/lock 2>&1 || true")


def hold(node: Node, seconds: int) -> None:
    """Take the lock as someone else would."""
    command = f"sudo python3 - take someone-else {seconds} '{json.dumps(OTHER)}'"
    subprocess.run(node.ssh(command), input=LOCK_SCRIPT, text=True, check=True)
