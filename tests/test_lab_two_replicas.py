"""Two replicas on one real node behind the gateway; each test goes on where the one before ended.

test_lab_two_rollout.py goes on from there, and tears down.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.lab.node import Node
from tests.lab.shell import wait_until
from tests.lab.testing import Outcome, api_key, greedy, pyinfra, rackserve
from tests.lab.two import PORT, TWO, gateway, states, streams

pytestmark = pytest.mark.lab


def test_two_replicas_on_a_node_answer_alike_also_through_the_gateway(
    lab: list[Node], inventory: str, two: set[str]
) -> None:
    answers = [greedy(lab[0], port) for port in (8000, 8001, PORT)]
    assert answers[0] == answers[1] == answers[2] and all(answers[0])
    assert lab[0].sudo("grep -h CUDA /etc/systemd/system/rackserve-replica-*-vllm.service").split() == [
        'Environment="CUDA_VISIBLE_DEVICES=0"', 'Environment="CUDA_VISIBLE_DEVICES=1"',
    ]  # fmt: skip
    shown = rackserve("status", "-i", inventory).said
    assert "port 8080  replica-0 UP" in shown and ", replica-1 UP" in shown
    assert rackserve("chat", "-i", inventory, "Hello", "--max-tokens", "8").code == 0


def test_a_second_run_changes_nothing(lab: list[Node], inventory: str) -> None:
    again = serve(inventory)
    assert (again.code, again.changed) == (0, {}), again.said


def test_what_the_key_does_not_guard_is_not_let_through(lab: list[Node]) -> None:
    base = f"http://{lab[0].address}:{PORT}"
    assert requests.get(f"{base}/health", timeout=10).status_code == 200
    assert requests.get(f"{base}/metrics", timeout=10).status_code == 404
    assert requests.get(f"{base}/v1/models", timeout=10).status_code == 401
    key = api_key(lab[0])
    assert key not in lab[0].sudo("cat /etc/rackserve/gateway/* /run/rackserve-gateway/*.state; true")


def test_a_replica_that_is_drained_finishes_its_answers_and_gets_no_more(lab: list[Node]) -> None:
    with streams(lab[0], 8) as running:
        wait_until(lambda: all(sessions(lab[0]).values()), 30, "both replicas to answer")
        gateway(lab[0], "drain replica-1")
        left = sessions(lab[0])["replica-1"]
        assert all(greedy(lab[0], PORT)) and sessions(lab[0])["replica-1"] <= left
        lab[0].sudo("systemctl reload rackserve-gateway-haproxy")
        assert [one["in"] for one in states(lab[0])] == [True, False]
    assert [one.split()[-1] for one in running] == ["[DONE]"] * 8
    gateway(lab[0], "ready replica-1")
    assert [one["in"] for one in states(lab[0])] == [True, True]


def test_when_one_replica_is_killed_requests_go_on(lab: list[Node]) -> None:
    lab[0].sudo("systemctl kill --signal=KILL --kill-who=all rackserve-replica-1-vllm")
    begun = time.monotonic()
    while time.monotonic() - begun < 8:
        assert all(as_clients_do(lambda: greedy(lab[0], PORT)))
    wait_until(
        lambda: [one["status"][:2] for one in states(lab[0])] == ["UP", "UP"], 180, "replica-1 to be back"
    )
    assert all(greedy(lab[0], 8001))


def test_an_engine_that_hangs_leaves_the_gateway_and_is_started_anew(lab: list[Node]) -> None:
    """Its API server answers /health with 200 all the while."""
    unit = "rackserve-replica-1-vllm"
    server = f"$(systemctl show --property=MainPID --value {unit})"
    engine = lab[0].sudo(f"pgrep --parent {server} --full EngineCore").split()[0]
    before = state(lab[0])["falls"]
    lab[0].sudo(f"kill -STOP {engine}")
    begun = time.monotonic()
    wait_until(lambda: states(lab[0])[1]["status"].startswith("DOWN"), 60, "the gateway to notice")
    assert time.monotonic() - begun <= 30
    assert all(greedy(lab[0], PORT))
    wait_until(lambda: state(lab[0])["falls"] == before + 1, 30, "the replica to fall")
    assert state(lab[0])["recent"][-1]["why"] == "no step and no token for 25 s"
    wait_until(lambda: states(lab[0])[1]["status"].startswith("UP"), 180, "replica-1 to be back")
    assert all(greedy(lab[0], 8001))


def as_clients_do(ask: Callable[[], Any]) -> Any:
    """OpenAI's try again where a connection breaks before an answer, as in the instant of a kill."""
    try:
        return ask()
    except requests.ConnectionError:
        return ask()


def serve(inventory: str) -> Outcome:
    return pyinfra("serve", inventory=inventory, **TWO)


def state(node: Node) -> dict[str, Any]:
    """How the gang of replica-1 says that it is."""
    return json.loads(node.sudo("cat /run/rackserve/replica-1/state.json"))


def sessions(node: Node) -> dict[str, int]:
    return {one["name"]: one["sessions"] for one in states(node)}
