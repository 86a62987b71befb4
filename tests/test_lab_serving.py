"""The main job on real nodes, from bare OS; each test goes on where the one before ended."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import requests

from scripts.report.against import CACHE
from tests.lab.node import Node
from tests.lab.shell import wait_until
from tests.lab.testing import (
    api_key,
    belongings,
    executions,
    greedy,
    pyinfra,
    rackserve,
    reference,
    unit_started,
)

pytestmark = pytest.mark.lab

SMOLLM2 = "/var/lib/rackserve/weights/HuggingFaceTB--SmolLM2-135M-Instruct/main"
TP3 = {"tensor_parallel": 3, "pipeline_parallel": 1}
#: What a run without changes still does not report, and what tests compare.
NOTHING: dict[str, list[str]] = {}

#: What is reported of a replica on all three nodes that is replaced.
REPLACED = {
    "Say in the history what begins": ["node1"],
    "Stop replica-0": ["node1"],
    "Stop replica-0 here, too": ["node2", "node3"],
    "Put replica-0 in place": ["node1", "node2", "node3"],
    "Start replica-0": ["node1", "node2", "node3"],
    "Keep what replica-0 answers": ["node1", "node2", "node3"],
    "Say in the history that it is done": ["node1"],
}

seen: dict[str, Any] = {}


@pytest.mark.bare
def test_dry_works_on_bare_nodes_and_changes_nothing(lab: list[Node]) -> None:
    before = belongings(lab[0])
    outcome = pyinfra("serve_llama", "--dry", **TP3)
    assert outcome.code == 0, outcome.said
    assert belongings(lab[0]) ^ before == set()


@pytest.mark.bare
def test_provision_from_bare_os(lab: list[Node]) -> None:
    outcome = pyinfra("provision", **TP3)
    assert outcome.code == 0, outcome.said


@pytest.mark.bare
def test_a_trial_generates_without_weights_and_leaves_nothing(lab: list[Node]) -> None:
    before = [belongings(node) for node in lab]
    outcome = pyinfra("trial", tensor_parallel=1, pipeline_parallel=1)
    assert outcome.code == 0 and "generates" in outcome.said, outcome.said
    assert "load_format=dummy" in lab[0].sudo(
        "journalctl -u rackserve-trial-replica-0-vllm -o cat --no-pager"
    )
    assert pyinfra("teardown").code == 0  # the programs that look after a replica stay until then
    for node, there in zip(lab, before, strict=True):
        left = belongings(node) ^ there
        assert {row for row in left if not row.startswith("/opt/rackserve/libexec/weights/")} == set()


@pytest.mark.bare
def test_staging(lab: list[Node]) -> None:
    outcome = pyinfra("stage_weights", **TP3)
    assert outcome.code == 0, outcome.said
    seen["before serve"] = [belongings(node) for node in lab]
    seen["reference"] = reference(lab[0], SMOLLM2)


def test_tp3_over_three_nodes_through_ray(lab: list[Node]) -> None:
    outcome = pyinfra("serve", **TP3)
    assert outcome.code == 0, outcome.said
    assert greedy(lab[0]) == seen["reference"]
    assert planned_kv(tp=3, pp=1) == logged_kv(lab[0])
    assert "Paris" in rackserve("chat", "-i", "lab", "What is the capital of France?").said


def test_the_whole_job_again_changes_nothing(lab: list[Node]) -> None:
    outcome = pyinfra("serve_llama", **TP3)
    assert (outcome.code, outcome.changed) == (0, NOTHING), outcome.said


def test_a_run_that_changes_nothing_asks_each_host_a_handful_of_times(lab: list[Node]) -> None:
    assert pyinfra("provision").changed == NOTHING  # learns what such a run asks
    outcome = pyinfra("provision", "-y", "--debug")
    assert outcome.changed == NOTHING
    # A look at what is needed, all facts at once, and on the head the lock's two.
    assert executions(outcome.said) <= 4 * len(lab)


def test_an_api_key_is_needed_and_is_in_no_log_or_process_list(lab: list[Node]) -> None:
    url = f"http://{lab[0].address}:8000/v1/models"
    assert requests.get(url, timeout=10).status_code == 401
    key = api_key(lab[0])
    for node in lab:
        assert key not in node.sudo(
            "cat /proc/[0-9]*/cmdline; journalctl --no-pager; cat /etc/systemd/system/*.service"
        )
    assert node.sudo("stat -c %a:%U /etc/rackserve/replica-0/ray.token").strip() == "440:root"
    assert lab[0].sudo("stat -c %a:%U /etc/rackserve/replica-0/vllm.env").strip() == "600:root"


def test_hand_edits_and_stopped_units_are_repaired(lab: list[Node]) -> None:
    lab[0].sudo("echo enforce-eager: true >> /etc/rackserve/replica-0/vllm.yaml")
    lab[1].sudo("systemctl stop rackserve-replica-0-gang; rm /etc/security/limits.d/60-rackserve.conf")
    outcome = pyinfra("serve_llama", **TP3)
    assert outcome.code == 0, outcome.said
    stopped = {**REPLACED, "Stop replica-0 here, too": ["node3"]}
    assert outcome.changed == {"Base | Raise the limits of the serving user": ["node2"], **stopped}
    assert greedy(lab[0]) == seen["reference"]


def test_diff_shows_why_a_changed_argument_would_replace_the_replica(lab: list[Node]) -> None:
    diff = pyinfra("serve", "--dry", "--diff", **TP3, vllm_args={"max-num-seqs": 4})
    assert diff.code == 0 and "max-num-seqs: 4" in diff.said, diff.said
    assert greedy(lab[0]) == seen["reference"]


def test_a_worker_without_power_and_one_without_a_cable_rejoin_and_the_replica_comes_back_as_one(
    lab: list[Node],
) -> None:
    before = [unit_started(node, "ray") for node in lab]
    lab[2].poweroff()
    lab[1].cut()
    try:
        wait_until(lambda: state(lab[0])["state"] == "waiting", 60, "the replica to fall and to wait")
        assert state(lab[0])["why"] == "nothing is heard of node2; nothing is heard of node3"
        wait_until(lambda: not has_ray(lab[1]), 60, "node2 to end its part")
    finally:
        lab[1].heal()
        lab[2].poweron()
    wait_until(lambda: _answers(lab[0]), 180, "the endpoint to serve again")
    assert greedy(lab[0]) == seen["reference"]
    assert not {*before} & {unit_started(node, "ray") for node in lab}


def test_pp2_over_two_nodes_through_ray(lab: list[Node]) -> None:
    outcome = pyinfra("serve", tensor_parallel=1, pipeline_parallel=2)
    assert outcome.code == 0, outcome.said
    assert greedy(lab[0]) == seen["reference"]
    assert planned_kv(tp=1, pp=2) == logged_kv(lab[0])
    assert not lab[2].sudo("systemctl list-unit-files --no-legend rackserve-* || true").strip()


def test_pp2_over_two_nodes_through_vllms_own_executor(lab: list[Node]) -> None:
    outcome = pyinfra("serve", tensor_parallel=1, pipeline_parallel=2, executor="mp")
    assert outcome.code == 0, outcome.said
    assert greedy(lab[0]) == seen["reference"]
    assert "ray" not in lab[0].sudo("systemctl list-unit-files --no-legend rackserve-*")


def test_a_rank_of_vllms_own_executor_that_dies_takes_the_others_along_and_all_come_back(
    lab: list[Node],
) -> None:
    before = unit_started(lab[0], "vllm")
    lab[1].sudo("systemctl kill --signal=KILL rackserve-replica-0-vllm")
    wait_until(lambda: unit_started(lab[0], "vllm") not in (before, "0", ""), 60, "the head's to start anew")
    wait_until(lambda: _answers(lab[0]), 180, "the endpoint to serve again")
    assert greedy(lab[0]) == seen["reference"]
    (fall,) = state(lab[0])["recent"]
    assert fall["why"] == "node2: rackserve-replica-0-vllm ended (signal 9)"


def test_one_node_alone(lab: list[Node], tmp_path: Path) -> None:
    outcome = pyinfra("serve", tensor_parallel=1, pipeline_parallel=1)
    assert outcome.code == 0, outcome.said
    assert greedy(lab[0]) == seen["reference"]
    assert planned_kv(tp=1, pp=1) == logged_kv(lab[0])
    log = tmp_path / "vllm.log"
    log.write_text(lab[0].sudo("journalctl -u rackserve-replica-0-vllm -o cat --no-pager"))
    beside = rackserve("plan", "-i", "lab", "--tp", "1", "--pp", "1", "--against-log", str(log))
    assert beside.code == 0 and re.search(r"KV cache, tokens +(\d+) +\1 +[+-]0\.0 %", beside.said), (
        beside.said
    )
    assert "TP 1 x PP 1" in rackserve("status", "-i", "lab").said


def test_while_a_host_is_out_of_reach_the_others_are_shown_and_asked(lab: list[Node]) -> None:
    lab[2].cut()
    try:
        shown = rackserve("status", "-i", "lab")
        asked = rackserve("chat", "-i", "lab", "What is the capital of France?")
    finally:
        lab[2].heal()
    assert shown.code == 1 and shown.said.endswith("rackserve: node3: cannot be reached over SSH\n")
    assert re.search(r"node1 +replica-0 +vllm +active \(running\) +since 20\S+ [\d:]+ UTC", shown.said)
    assert asked.code == 0 and "Paris" in asked.said


def test_teardown_leaves_the_nodes_as_they_were_before_serve(lab: list[Node]) -> None:
    outcome = pyinfra("teardown")
    assert outcome.code == 0, outcome.said
    for node, before in zip(lab, seen["before serve"], strict=True):
        assert belongings(node) ^ before == set()
    assert pyinfra("teardown").changed == NOTHING


def planned_kv(tp: int, pp: int) -> int:
    """The tokens of the KV cache in the plan that `serve` follows."""
    planned = rackserve("plan", "-i", "lab", "--tp", str(tp), "--pp", str(pp), "--json")
    assert planned.code == 0, planned.said
    return json.loads(planned.said)["replicas"][0]["kv_cache_tokens"]


def logged_kv(node: Node) -> int:
    """The tokens of the KV cache that vLLM wrote into its log when it last started."""
    log = node.sudo("journalctl -u rackserve-replica-0-vllm -o cat --no-pager")
    return int(CACHE.findall(log)[-1][0].replace(",", ""))


def state(node: Node) -> dict[str, Any]:
    """How the gang of the replica says that it is."""
    return json.loads(node.sudo("cat /run/rackserve/replica-0/state.json"))


def has_ray(node: Node) -> bool:
    """Seen from the machine below: a node without a cable cannot be asked."""
    comms = [Path(f"/proc/{pid}/comm") for pid in node._processes()]
    return "raylet" in [comm.read_text().strip() for comm in comms if comm.exists()]


def _answers(node: Node) -> bool:
    try:
        return bool(greedy(node))
    except (requests.RequestException, KeyError, ValueError):
        return False
