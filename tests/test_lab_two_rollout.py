"""What is served is changed under load, on real nodes; each test goes on where the one before ended."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.lab.driver_node import KERNEL, gpus, loaded, repository
from tests.lab.drivers import compiler, monitoring, release
from tests.lab.node import Node
from tests.lab.paths import MODELS
from tests.lab.shell import wait_until
from tests.lab.testing import BIN, REPOSITORY, Outcome, api_key, belongings, pyinfra, rackserve
from tests.lab.two import OTHER, PORT, SEVERAL, TWO, states, streams
from tests.load.driver import Load, summary, troubled
from tests.load.expected import record

pytestmark = pytest.mark.lab

USERS, PAUSE = 3, 1.0  # so that the processor has time for who starts
SHORT, LONG = (4, 64), (200, 400)
CALM = {"watch": 3}
#: Of the second node the driver is ours, of the first, which has no GPUs, its user's.
LENT = """
_lend = importlib.import_module("tests.lab.driver_node").lend
_lend({url!r}, {fingerprint!r}, lambda own: own.driver is not False)
head[0][1]["driver"] = False
"""
HIDDEN = shutil.ignore_patterns(".*")  # of the lab's hub, and none of the model's
BOOT = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture(scope="module")
def expected(lab: list[Node], two: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("load") / "expected.json"
    record(file, f"http://{lab[0].address}:8000", api_key(lab[0]), TWO["model"], LONG[1])
    return file


@pytest.fixture(scope="module")
def first(lab: list[Node], two: set[str]) -> set[str]:
    return weights(lab[0])


@pytest.fixture(scope="module")
def another() -> Iterator[dict[str, str]]:
    """Another revision of the model, with the same weights."""
    folder = MODELS / "rackserve-lab/tiny-llama"
    shutil.copytree(folder, folder / ".revisions/next", ignore=HIDDEN, dirs_exist_ok=True)
    (folder / ".revisions/next/README.md").write_text("Another revision.\n")
    yield {"revision": "next"}
    shutil.rmtree(folder / ".revisions/next")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of an inventory whose second node serves another model."""
    file = tmp_path_factory.mktemp("inventory") / "several.py"
    file.write_text(SEVERAL)
    return str(file)


@contextmanager
def load(node: Node, expected: Path) -> Iterator[Load]:
    """While it lasts 3 users ask the gateway; at its end every answer must have been right and whole."""
    with Load(
        expected.parent / "load", f"http://{node.address}:{PORT}", api_key(node), model=TWO["model"],
        expected=expected, users=USERS, pause=PAUSE, limit=400, short=SHORT, long=LONG,
    ) as load:  # fmt: skip
        yield load
    said, wrong = summary(load.lines()), troubled(load.lines())
    assert said["requests"] > 12 and not wrong, f"{said}\n{wrong}\n{logged(node, wrong)}"


def logged(node: Node, lines: list[dict[str, Any]]) -> str:
    """What its gateway has in its log of these requests' connections, and of its own reloads."""
    its = "".join(f":{line.get('port')} |" for line in lines) + "worker"
    return node.sudo(f'journalctl --unit rackserve-gateway-haproxy --no-pager | grep -E "{its}" || true')


def unserving(several: str, folder: Path) -> Path:
    """That inventory, whose second node serves nothing."""
    file = folder / "without.py"
    file.write_text(Path(several).read_text().replace('"gpus": 1', '"gpus": 0'))
    return file


def arguments(**more: Any) -> dict[str, Any]:
    return {**TWO, **CALM, "vllm_args": {"max-num-seqs": 64, **more}}


def rollout(inventory: str, **data: Any) -> Outcome:
    return rackserve("rollout", "-i", inventory, **data)


def running(node: Node) -> list[str]:
    """The arguments that tell one release of these tests from another, of each replica."""
    said = node.sudo('grep -H -E "max-num-seqs|load-format" /etc/rackserve/replica-*/vllm.yaml || true')
    return sorted(line.split("/")[3] + line.split("vllm.yaml")[1] for line in said.splitlines())


def weights(node: Node) -> set[str]:
    """The folders that its replicas have theirs from."""
    return set(node.sudo("grep -ho /.*/weights/.* /etc/rackserve/replica-*/vllm.yaml").split())


def listens(node: Node) -> bool:
    """Whether it is a gateway that is well."""
    try:
        return requests.get(f"http://{node.address}:{PORT}/health", timeout=5).ok
    except requests.ConnectionError:
        return False


def all_well(node: Node) -> bool:
    return all(one["in"] for one in states(node)) and up(node) == ["replica-0", "replica-1"]


def up(node: Node) -> list[str]:
    """Also one that is `UP 1/3`: a check was late, on a busy machine."""
    return [one["name"] for one in states(node) if one["status"].split()[0] == "UP"]


def test_what_cannot_be_is_refused_and_changes_nothing(
    lab: list[Node], inventory: str, expected: Path
) -> None:
    """Its second replica is stopped, and stays so: the next test finds it down."""
    new, before = arguments(), running(lab[0])
    absent = rackserve("rollout", "--replica", "replica-7", "-i", inventory, **new)
    assert absent.code == 2 and "no replica replica-7; there are: replica-0, replica-1" in absent.said
    lab[0].sudo("systemctl stop rackserve-replica-1-gang")
    degraded = pyinfra("serve", inventory=inventory, _replica="replica-0", **new)
    assert degraded.code == 1 and "replica-0 cannot be spared" in degraded.said, degraded.said
    assert running(lab[0]) == before and up(lab[0]) == ["replica-0"]


def test_a_rollout_whose_controller_is_killed_is_finished_by_the_next_and_two_at_once_are_refused(
    lab: list[Node], inventory: str, expected: Path, first: set[str], another: dict[str, str]
) -> None:
    """Flags and weights change. The replica that is down comes first; the other is drained when it is up."""
    old, new = running(lab[0]), {**arguments(), **another}
    dry = rackserve("rollout", "--dry", "-i", inventory, **new)
    assert dry.code == 0 and "replica-1: " in dry.said and running(lab[0]) == old, dry.said
    with load(lab[0], expected):
        with begun("rollout", "-i", inventory, **new) as run:
            wait_until(lambda: not states(lab[0])[0]["in"], 200, "replica-0 to leave the gateway")
            assert "replica-1" in up(lab[0])
            second = rollout(inventory, **new)
            assert second.code == 1 and f"(pid {run.pid})" in second.said, second.said
            wait_until(lambda: running(lab[0])[0] != old[0], 60, "replica-0 to be replaced")
            run.kill()
        assert "did not end" in rackserve("history", "-i", inventory).said
        done = rollout(inventory, **new)
    assert done.code == 0, done.said
    assert running(lab[0]) == ["replica-0:max-num-seqs: 64", "replica-1:max-num-seqs: 64"]
    assert len(weights(lab[0])) == len(first) == 1 and weights(lab[0]) != first
    assert all_well(lab[0])
    again = rollout(inventory, **new)
    assert again.code == 0 and "nothing to change" in again.said, again.said
    assert pyinfra("serve", inventory=inventory, **new).changed == {}


def test_a_rollback_brings_back_what_ran_before_both_runs(
    lab: list[Node], inventory: str, expected: Path, first: set[str]
) -> None:
    done = rackserve("rollback", "--watch", "3", "-i", inventory, **TWO)
    assert done.code == 0, done.said
    assert running(lab[0]) == ["replica-0:max-num-seqs: 8", "replica-1:max-num-seqs: 8"]
    assert weights(lab[0]) == first
    assert all_well(lab[0])


def test_a_version_that_answers_wrongly_is_put_back_and_the_others_are_not_touched(
    lab: list[Node], inventory: str, expected: Path
) -> None:
    """One that does not start is among the cases of `make bench-rollout`: this has ten minutes in all."""
    before, started = running(lab[0]), unit_starts(lab[0])
    done = rollout(inventory, **arguments(**{"load-format": "dummy"}))
    (line,) = [line for line in done.said.splitlines() if line.startswith("rackserve: ")]
    assert done.code == 1 and "replica-0 was put back: " in line and "it answers " in line, done.said
    assert running(lab[0]) == before and all_well(lab[0])
    assert unit_starts(lab[0])[1] == started[1]
    assert "failed: replica-0 was put back" in rackserve("history", "-i", inventory).said


def test_a_drain_limit_that_is_shorter_than_an_answer_ends_the_run_and_cuts_nothing(
    lab: list[Node], inventory: str, two: set[str]
) -> None:
    before = running(lab[0])
    with streams(lab[0], 6) as answers:
        wait_until(lambda: bool(states(lab[0])[0]["sessions"]), 30, "replica-0 to answer")
        with paused(lab[0], "rackserve-replica-0-vllm"):  # so that it answers still
            done = pyinfra("serve", inventory=inventory, drain_timeout=0, **arguments())
    assert done.code == 1 and "replica-0 still answers" in done.said, done.said
    assert "--data drain_timeout=SECONDS waits longer" in done.said
    assert running(lab[0]) == before and all_well(lab[0])
    assert [answer.split()[-1] for answer in answers] == ["[DONE]"] * 6


def test_another_model_comes_to_the_gateway_and_each_is_found_by_its_name(
    lab: list[Node], expected: Path, several: str
) -> None:
    started = unit_starts(lab[0])
    done = rollout(several)
    assert done.code == 0 and unit_starts(lab[0]) == started, done.said
    assert up(lab[0]) == ["replica-0", "replica-1", "replica-1000"]
    for model in (TWO["model"], OTHER):
        said = rackserve("chat", "--model", model, "--max-tokens", "4", "-i", several, "Hello")
        assert said.code == 0, said.said
    there = rackserve("chat", "--model", "third", "-i", several, "Hello")
    assert there.code == 1 and f"third is not served; there are: {TWO['model']}, {OTHER}" in there.said
    assert pyinfra("serve", inventory=several).changed == {}


def test_a_node_gets_its_driver_and_a_reboot_while_its_replica_is_out_and_no_other_is_touched(
    lab: list[Node], several: str, tmp_path: Path
) -> None:
    started, boot, file = unit_starts(lab[0]), lab[1].sudo(BOOT), tmp_path / "driver.py"
    refused = rollout(several, reboot="all")
    assert refused.code and "node1: a gateway that is to be rebooted" in refused.said, refused.said
    with repository(tmp_path / "cuda") as (nvidia, url), gpus(lab[1]) as node:
        nvidia.add([*release("580.95.05", KERNEL), *monitoring(), *compiler()])
        file.write_text(Path(several).read_text() + LENT.format(url=url, fingerprint=nvidia.fingerprint))
        refused = rollout(str(file))
        assert refused.code and "node2: replica-1000 serves with driver unknown; 580.*" in refused.said
        done = rollout(str(file), reboot="due")
        assert done.code == 0 and "replica-1000: " in done.said and "node2 rebooted" in done.said, done.said
        assert loaded(node) == "580.95.05" and node.sudo(BOOT) != boot
        assert unit_starts(lab[0]) == started
        assert up(lab[0]) == ["replica-0", "replica-1", "replica-1000"]


def test_a_node_that_is_to_serve_no_more_is_drained_and_the_others_are_not_touched(
    lab: list[Node], several: str, tmp_path: Path
) -> None:
    started = unit_starts(lab[0])
    done = rollout(str(unserving(several, tmp_path)))
    assert done.code == 0 and "replica-1000: removed" in done.said, done.said
    assert [one["name"] for one in states(lab[0])] == ["replica-0", "replica-1"]
    assert unit_starts(lab[0]) == started and not lab[1].sudo("ls -d /etc/rackserve/replica-* || true")


def test_a_gateway_that_moves_hands_over_and_cuts_nothing(
    lab: list[Node], two: set[str], several: str, tmp_path: Path
) -> None:
    inventory = str(unserving(several, tmp_path))
    assert pyinfra("provision", inventory=inventory, gateway="node2").code == 0  # so that it is quick below
    with begun("deploy", "serve", "-i", inventory, **CALM, gateway="node2") as run:
        wait_until(lambda: listens(lab[1]), 60, "the new gateway")
        with streams(lab[0], 16) as answers:  # not before: a fast machine has given them by then
            wait_until(lambda: not listens(lab[0]), 60, "the old gateway to take no more requests")
            assert "" in answers and listens(lab[1])
        assert run.wait(120) == 0
    assert [answer.split()[-1] for answer in answers] == ["[DONE]"] * 16
    assert up(lab[1]) == ["replica-0", "replica-1"] and not listens(lab[0])
    back = pyinfra("serve", inventory=inventory, **CALM)
    assert back.code == 0 and up(lab[0]) == ["replica-0", "replica-1"], back.said
    assert not listens(lab[1]) and not lab[1].sudo("ls /run/systemd/system | grep gateway || true")


def test_teardown_leaves_the_node_as_it_was_before_serve(
    lab: list[Node], two: set[str], several: str
) -> None:
    done = pyinfra("teardown", inventory=several)
    assert done.code == 0, done.said
    left = belongings(lab[0])
    # The weights of another revision are kept, as long as `rackserve stage --prune` does not take them.
    assert two - left == set()
    assert {one for one in left - two if "/rackserve/weights/" not in one} == set()
    assert pyinfra("teardown", inventory=several).changed == {}


@contextmanager
def paused(node: Node, unit: str) -> Iterator[None]:
    """Its engine takes no step meanwhile."""
    server = f"$(systemctl show --property=MainPID --value {unit})"
    engine = node.sudo(f"pgrep --parent {server} --full EngineCore").split()[0]
    node.sudo(f"kill -STOP {engine}")
    try:
        yield
    finally:
        node.sudo(f"kill -CONT {engine}")


@contextmanager
def begun(*words: str, **data: Any) -> Iterator[subprocess.Popen]:
    settings = [word for key, value in data.items() for word in ("--data", f"{key}={_said(value)}")]
    with subprocess.Popen(
        [BIN / "rackserve", *words, *settings], cwd=REPOSITORY,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as run:  # fmt: skip
        try:
            yield run
        finally:
            run.kill()
            time.sleep(0.1)


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def unit_starts(node: Node) -> list[str]:
    units = " ".join(f"rackserve-replica-{n}-vllm" for n in (0, 1))
    said = node.sudo(f"systemctl show --property=ExecMainStartTimestampMonotonic --value {units}")
    return said.split()
