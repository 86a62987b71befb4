"""The order of every playbook, read from pyinfra's own plan over hosts that are not there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import models
from deploys import examination
from deploys.settings import Settings
from models import planner
from models.plan import Node
from models.release import Release
from roles import releases
from tests.lab.hub_testing import running_hub

REPOSITORY = Path(__file__).parents[1]
PYINFRA = Path(sys.executable).with_name("pyinfra")
INVENTORY = """
of_all = {"fake_delay": 0, "fake_delay_jitter": 0, "interface": "lo", "gpus": 1}
head = [("@fake/gpu1", {**of_all, "address": "10.0.0.1"})]
workers = [(f"@fake/gpu{n}", {**of_all, "address": f"10.0.0.{n}"}) for n in (2, 3)]
"""
SETTINGS = {"runtime": "cpu", "model": "smollm2-135m-instruct", "tensor_parallel": 3}
HEAD, WORKERS = ["@fake/gpu1"], ["@fake/gpu2", "@fake/gpu3"]

PROVISION = """\
Hold the lock
The lock is held
Base | Install system packages
Base | Create the user rackserve
Base | Own /var/lib/rackserve
Base | Own /var/cache/rackserve
Base | Raise the limits of the serving user
Base | Keep kernel settings over a boot
Base | Set kernel settings
Runtime | Upload tools.lock
Runtime | Install the tools environment
Runtime | Upload cpu.lock
Runtime | Install the cpu environment of vLLM
Make the cluster's secret
Every host is provisioned
""".splitlines()

STAGE_WEIGHTS = """\
Hold the lock
The lock is held
Weights | Install what stages weights
Resolve HuggingFaceTB/SmolLM2-135M-Instruct
The commit is known
Look for room
There is room everywhere
Download HuggingFaceTB/SmolLM2-135M-Instruct
What the hub has is here
Stage HuggingFaceTB/SmolLM2-135M-Instruct
Every copy is whole
Every replica has its weights
""".splitlines()

SERVE = """\
Hold the lock
The lock is held
What runs is as planned for
Stop what was tried
Forget what was tried
Remove what stood in for weights
Look for the weights
Every replica has its weights
Make the cluster's secret
Health | Install probe.py
Health | Install question.py
Gang | Install what supervises replicas
Releases | Install release.py
vLLM | Keep the API key from Ray's workers
Keep the release of replica-0
Say in the history what begins
Every release is on its nodes
Stop what is not planned
Remove what is not planned
Only planned replicas are left
Every replica that stays as it is generates
replica-0 answers nobody
Stop replica-0
replica-0 has ended its work
Stop replica-0 here, too
replica-0 is stopped
Put replica-0 in place
replica-0 is in place
Start replica-0
replica-0 starts
Wait until replica-0 generates
Compare what replica-0 answers
replica-0 was tried
Keep what replica-0 answers
replica-0 can be gone back to
replica-0 does well
replica-0 runs
Say in the history that it is done
""".splitlines()

TRIAL = [
    *STAGE_WEIGHTS[:2],
    "What runs is as planned for",
    "Stop what was tried",
    "Forget what was tried",
    "Remove what stood in for weights",
    "Nothing is tried",
    *STAGE_WEIGHTS[2:-1],
    *"""\
Put the description where the weights will be
Make the cluster's secret
Health | Install probe.py
Health | Install question.py
Gang | Install what supervises replicas
Releases | Install release.py
vLLM | Keep the API key from Ray's workers
Keep the release of trial-replica-0
Every release is on its nodes
Put trial-replica-0 in place
All is in place
Start trial-replica-0
Every replica starts
Wait until trial-replica-0 generates
Every replica was tried
Stop trial-replica-0
trial-replica-0 has ended its work
Stop trial-replica-0 here, too
trial-replica-0 is stopped
Remove trial-replica-0
Remove what it wrote
Stop what was tried
Forget what was tried
Remove what stood in for weights
trial-replica-0 generated
Every replica generated without weights
""".splitlines(),
]

TEARDOWN = """\
Hold the lock
The lock is held
Stop the gateway
Stop every replica
No replica runs
Remove their units
Remove the replicas' configuration
Remove what stood in for weights
vLLM | Remove the list of uncarried variables
Health | Remove /opt/rackserve/libexec/probe.py
Health | Remove /opt/rackserve/libexec/question.py
Gang | Remove what supervises replicas
Releases | Remove release.py
Releases | Remove what is put by
Gateway | Remove /opt/rackserve/libexec/gateway.py
Gateway | Remove /opt/rackserve/libexec/watch.py
Nothing is served
""".splitlines()


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """dry(deploy, **settings): the finished `pyinfra --dry --json` of a playbook."""
    inventory = tmp_path_factory.mktemp("inventory") / "three.py"
    inventory.write_text(INVENTORY)

    def run(deploy, **settings):
        data = [f"--data={key}={value}" for key, value in {**SETTINGS, **settings}.items()]
        return pyinfra(inventory, f"deploys/{deploy}.py", "--dry", "--json", *data)

    return run


def pyinfra(inventory, *words):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {
        **clean,
        "PYTHONPATH": str(REPOSITORY),
        "PYINFRA_PROGRESS": "off",
        "XDG_CACHE_HOME": str(inventory.parent),
    }
    return subprocess.run(
        [PYINFRA, inventory, *words],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def plan_of(dry):
    """plan_of(deploy, **settings): its operations, each once asked and kept."""
    known = {}

    def plan(deploy, **settings):
        key = (deploy, *settings.items())
        if key not in known:
            done = dry(deploy, **settings)
            assert done.returncode == 0, done.stderr
            known[key] = json.loads(done.stdout)["plan"]
        return known[key]

    return plan


SEVERAL = """
of_all = {"fake_delay": 0, "fake_delay_jitter": 0, "interface": "lo", "runtime": "cpu", "gateway": True,
          "replicas": 1}
smol, tiny = {**of_all, "model": "smollm2-135m-instruct"}, {**of_all, "model": "tiny-llama", "gpus": 2}
head = [("@fake/gpu1", {**of_all, "address": "10.0.0.1", "gpus": 0})]
workers = [
    ("@fake/gpu2", {**smol, "address": "10.0.0.2", "gpus": 3}),
    ("@fake/gpu3", {**tiny, "address": "10.0.0.3"}), ("@fake/gpu4", {**tiny, "address": "10.0.0.4"}),
]
"""


SEVERAL_MODELS = ["HuggingFaceTB/SmolLM2-135M-Instruct", "rackserve-lab/tiny-llama"]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """several(deploy): its operations over hosts that serve two models, beside one that serves none."""
    inventory = tmp_path_factory.mktemp("inventory") / "several.py"
    inventory.write_text(SEVERAL)

    def plan(deploy):
        done = pyinfra(inventory, f"deploys/{deploy}.py", "--dry", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["plan"]

    return plan


def name_of(operation, deploy=""):
    return operation["name"].removeprefix(f"deploys/{deploy}.py | ")


@pytest.mark.parametrize(
    ("deploy", "names"),
    [
        ("provision", PROVISION),
        ("stage_weights", STAGE_WEIGHTS),
        ("serve", SERVE),
        ("trial", TRIAL),
        ("teardown", TEARDOWN),
    ],
)
def test_the_order_of_a_playbook(plan_of, deploy, names):
    assert [name_of(operation) for operation in plan_of(deploy)] == names


def test_serve_llama_is_the_three_one_after_another(plan_of):
    expected = [
        f"deploys/{deploy}.py | {name}"
        for deploy, names in (("provision", PROVISION), ("stage_weights", STAGE_WEIGHTS), ("serve", SERVE))
        for name in names
    ]
    assert [operation["name"] for operation in plan_of("serve_llama")] == expected


ALL = [
    ("serve_llama", {}),
    ("serve_llama", {"executor": "mp"}),
    ("serve_llama", {"tensor_parallel": 1, "pipeline_parallel": 3}),
    ("serve_llama", {"tensor_parallel": 1, "pipeline_parallel": 2}),
    ("serve_llama", {"weights_path": "/srv/model"}),
    ("provision", {}),
    ("stage_weights", {}),
    ("serve", {}),
    ("trial", {}),
    ("teardown", {}),
]


@pytest.mark.parametrize(("deploy", "settings"), ALL, ids=str)
def test_no_operation_carries_two_names(plan_of, deploy, settings):
    # pyinfra tells operations apart by their line numbers written one after the other:
    # 1,23 and 12,3 are the same to it, and two operations become one.
    assert [op["names"] for op in plan_of(deploy, **settings) if len(op["names"]) != 1] == []


def there(*hosts):
    """What one of those hosts says of a replica on them that is up, of a release that is not wanted."""
    was = Release("replica-0", "old", hosts, "10.0.0.1", 8000, 30000, 256, (0,), "/w")
    kept = {"old": {"release": was.as_json(), "proven": 0.0, "answer": ""}}
    its = {"there": True, "installed": "old", "settled": True, "up": True, "kept": kept}
    return json.dumps({"replica-0": its})


@pytest.mark.parametrize(
    ("said", "folder"),
    [({}, "/var/cache/rackserve/triton"), ({"vllm_env": '{"TRITON_CACHE_DIR": "/srv/t"}'}, "/srv/t")],
    ids=str,
)
def test_rays_workers_keep_kernels_where_vllm_does_from_their_start_on(tmp_path, said, folder):
    inventory = tmp_path / "three.py"
    inventory.write_text(INVENTORY)
    data = [f"--data={key}={value}" for key, value in {**SETTINGS, **said}.items()]
    done = pyinfra(inventory, "deploys/serve.py", "--dry", "--diff", *data)
    assert done.returncode == 0
    # Of Ray on three hosts, and of vLLM on one.
    assert re.findall(r'Environment="TRITON_CACHE_DIR=(.*)"', done.stderr) == [folder] * 4


def test_a_trial_is_refused_where_something_is_served(tmp_path):
    says = {"release.py look": [there("@fake/gpu1", "@fake/gpu2")]}
    inventory = tmp_path / "serving.py"
    inventory.write_text(INVENTORY.replace('"10.0.0.1"}', f'"10.0.0.1", "fake_responses": {says!r}}}'))
    data = [f"--data={key}={value}" for key, value in SETTINGS.items()]
    done = pyinfra(inventory, "deploys/trial.py", "--dry", *data)
    assert done.returncode == 1
    assert "@fake/gpu1: something is served there, and a trial wants the GPUs for itself" in done.stderr


def test_a_trial_of_half_a_replica_is_refused(tmp_path):
    inventory = tmp_path / "three.py"
    inventory.write_text(INVENTORY)
    data = [f"--data={key}={value}" for key, value in SETTINGS.items()]
    done = pyinfra(inventory, "deploys/trial.py", "--dry", "--limit", "@fake/gpu1", *data)
    assert done.returncode == 1 and "@fake/gpu2 has a part in what is to be done" in done.stderr


def test_of_several_models_those_are_tried_whose_hosts_serve_nothing(tmp_path):
    says = {"release.py look": [there("@fake/gpu3").replace("replica-0", "replica-1000")]}
    inventory = tmp_path / "several.py"
    inventory.write_text(SEVERAL.replace('"10.0.0.3"}', f'"10.0.0.3", "fake_responses": {says!r}}}'))
    done = pyinfra(inventory, "deploys/trial.py", "--dry", "--json")
    assert done.returncode == 0, done.stderr
    names = [name_of(operation) for operation in json.loads(done.stdout)["plan"]]
    assert [name for name in names if name.startswith("Start ")] == ["Start trial-replica-0"]


def test_what_a_trial_left_that_broke_off_is_no_replica_to_go_back_to():
    its = {"there": True, "installed": "a", "settled": True, "up": True, "kept": {}}
    said = json.dumps({"trial-replica-0": its, "replica-0": its})
    assert list(releases.Kept().process([said])) == ["replica-0"]


SUDO = """#!/bin/sh
echo "sudo: a password is required" >&2
exit 1
"""


@pytest.mark.parametrize(
    "words", [("provision", "--dry"), ("provision", "-y"), ("preflight", "-y"), ("trial", "-y")], ids=str
)
def test_a_sudo_that_asks_for_a_password_is_said_of_its_host_with_the_fix(tmp_path, monkeypatch, words):
    for name, script in {"sudo": SUDO, "id": "#!/bin/sh\necho 1000\n"}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    inventory = tmp_path / "here.py"
    inventory.write_text(
        'head = [("@local", {"address": "127.0.0.1", "gpus": 1, "_sudo": True})]\nworkers = []\n'
    )
    data = [f"--data={key}={value}" for key, value in {**SETTINGS, "tensor_parallel": 1}.items()]
    done = pyinfra(inventory, f"deploys/{words[0]}.py", words[1], *data)
    assert done.returncode == 1
    assert re.search(r"@local.* sudo asks for a password \(allow NOPASSWD for the SSH user\)", done.stderr)
    assert "EOFError" not in done.stderr and "Traceback" not in done.stderr


def test_a_replica_that_had_a_part_on_a_host_that_left_the_inventory_is_replaced(tmp_path):
    says = {"release.py look": [there("@fake/gpu1", "@fake/gone")]}
    inventory = tmp_path / "left.py"
    inventory.write_text(INVENTORY.replace('"10.0.0.1"}', f'"10.0.0.1", "fake_responses": {says!r}}}'))
    data = [f"--data={key}={value}" for key, value in SETTINGS.items()]
    done = pyinfra(inventory, "deploys/serve.py", "--dry", "--json", *data)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    (place,) = places(plan, "Put replica-0 in place")
    assert plan[place]["hosts_with_change"] == [*HEAD, *WORKERS]


@pytest.fixture
def moving(tmp_path):
    """moving(*words): a plan to serve through gpu2, where gpu1 is the gateway of a replica of its own."""
    says = {
        "release.py look": [there(*HEAD)],
        "find /etc/systemd/system": ["/etc/systemd/system/rackserve-gateway-haproxy.service"],
    }
    inventory = tmp_path / "moving.py"
    inventory.write_text(INVENTORY.replace('"10.0.0.1"}', f'"10.0.0.1", "fake_responses": {says!r}}}'))
    settings = {**SETTINGS, "tensor_parallel": 1, "pipeline_parallel": 1,
                "replicas": 1, "gateway": "@fake/gpu2"}  # fmt: skip
    data = [f"--data={key}={value}" for key, value in settings.items()]
    return lambda *words: pyinfra(inventory, "deploys/serve.py", "--dry", "--json", *data, *words)


def test_a_gateway_that_moves_is_seen_to_work_before_the_old_one_ends(moving):
    done = moving()
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    (handed,), (stopped,) = places(plan, "Hand over to another gateway"), places(plan, "Stop replica-0")
    loaded = min(places(plan, "Gateway | Load haproxy.cfg"))
    (looked,) = places(plan, "Wait until this gateway sees replica-0")
    assert loaded < looked < handed < stopped
    assert plan[handed]["hosts_with_change"] == HEAD and plan[loaded]["hosts_with_change"] == ["@fake/gpu2"]


def test_a_gateway_does_not_end_when_limit_leaves_the_new_one_out(moving):
    done = moving("--limit", "@fake/gpu1", "--limit", "@fake/gpu3")
    assert done.returncode == 1 and not done.stdout
    assert "@fake/gpu2 is, or was, a gateway, and --limit leaves it out" in " ".join(done.stderr.split())


def test_operations_of_several_replicas_are_matched_one_to_one(plan_of):
    for operation in plan_of("serve_llama", tensor_parallel=1, replicas=3):
        alike = {name.replace("replica-1", "replica-0").replace("replica-2", "replica-0")
                 for name in operation["names"]}  # fmt: skip
        assert len(alike) == 1, operation["names"]


def test_replicas_that_share_a_node_are_all_started_there(plan_of):
    plan = plan_of("serve", tensor_parallel=1, replicas=5, gpus=2)
    second = [op for op in plan if any("Start replica-3" in name for name in op["names"])]
    assert [op["hosts_with_change"] for op in second] == [["@fake/gpu1", "@fake/gpu2"]]


def test_a_gateway_lets_in_what_was_tried(plan_of):
    plan = plan_of("serve", tensor_parallel=1, replicas=3, gateway="@fake/gpu2")
    title = "replica-0, replica-1, replica-2"
    (tried,), (let_in, last) = places(plan, f"{title} was tried"), places(plan, f"{title} is in the gateway")
    between = plan[tried + 1 : let_in]
    assert [name_of(op, "serve") for op in between] == [
        "Gateway | Install /opt/rackserve/libexec/gateway.py",
        "Gateway | Install /opt/rackserve/libexec/watch.py",
        "Gateway | Write rackserve-gateway-haproxy.service",
        "Gateway | Load haproxy.cfg",
        "Gateway | Run rackserve-gateway-haproxy.service",
        *(f"Let replica-{n} into the gateway" for n in range(3)),
        *(f"Wait until the gateway sees replica-{n}" for n in range(3)),
    ]
    assert {name for op in between for name in op["hosts_with_conditional_change"]} <= {"@fake/gpu2"}
    assert let_in < last


def test_a_gateway_that_cannot_be_is_refused(dry):
    done = dry("serve", gateway="gpu9")
    assert done.returncode == 1 and "gateway: no host gpu9 in the inventory" in done.stderr
    done = dry("serve", gateway=True, gateway_port=8000)
    assert done.returncode == 1 and "gateway_port is 8000, the port of replica-0" in done.stderr
    done = dry("serve", gateway=True, gateway_port=8404)
    assert done.returncode == 1 and "8404 is the port of the gateway's statistics" in done.stderr


def test_the_doctor_knows_the_ports_of_the_gateway_and_of_who_asks_for_it(monkeypatch):
    nodes = [Node(name, address, 8, "H100") for name, address in (("a", "10.0.0.1"), ("b", "10.0.0.2"))]
    (replica,) = planner.plan(models.get("llama-3.1-70b-instruct"), nodes).replicas
    own = Settings(address="10.0.0.1", gateway="b", gateway_port=9000)
    monkeypatch.setattr(examination, "_cluster", lambda: SimpleNamespace(hosts=dict.fromkeys("ab")))
    assert (30000, 30000) in examination._ports(replica, "a", own)
    assert (30000, 30000) not in examination._ports(replica, "b", own)
    assert examination._gateway_ports("a", own) == []
    assert examination._gateway_ports("b", own) == [(9000, 9000), (8404, 8404)]


def places(plan, name):
    return [place for place, operation in enumerate(plan) if name_of(operation, "serve") == name]


def test_a_release_is_on_all_its_nodes_before_one_is_touched_and_in_place_on_all_before_one_starts(plan_of):
    plan = plan_of("serve_llama")
    order = ["Keep the release of replica-0", "Every release is on its nodes", "Put replica-0 in place",
             "replica-0 is in place", "Start replica-0", "replica-0 starts"]  # fmt: skip
    found = [places(plan, name) for name in order]
    assert [len(one) for one in found] == [1] * 6 and found == sorted(found)
    for name in order[::2]:
        (place,) = places(plan, name)
        assert plan[place]["hosts_with_change"] == HEAD + WORKERS
    (generates,) = places(plan, "Wait until replica-0 generates")
    assert found[-1][0] < generates


def test_the_nodes_of_a_plan_that_has_none_of_it_are_left_alone(plan_of):
    plan = plan_of("serve_llama", tensor_parallel=1, pipeline_parallel=2)
    for name in ("Keep the release of replica-0", "Put replica-0 in place", "Start replica-0"):
        (place,) = places(plan, name)
        assert plan[place]["hosts_with_change"] == ["@fake/gpu1", "@fake/gpu2"]
    staged = [op for op in plan if "| Stage " in op["name"]]
    assert [op["hosts_with_change"] for op in staged] == [["@fake/gpu1", "@fake/gpu2"]]


def test_each_of_several_models_is_staged_and_served_on_its_own_nodes(several):
    staged, served = several("stage_weights"), several("serve")
    resolved = [op["names"] for op in staged if op["name"].startswith("Resolve ")]
    assert resolved == [[f"Resolve {name}"] for name in SEVERAL_MODELS]
    (stage,) = (op for op in staged if op["name"].startswith("Stage "))
    assert sorted(stage["names"]) == [f"Stage {name}" for name in SEVERAL_MODELS]
    assert stage["hosts_with_change"] == ["@fake/gpu2", "@fake/gpu3", "@fake/gpu4"]
    (put,) = (op for op in served if op["name"].startswith("Put "))
    assert sorted(put["names"]) == ["Put replica-0 in place", "Put replica-1000 in place"]
    assert put["hosts_with_change"] == ["@fake/gpu2", "@fake/gpu3", "@fake/gpu4"]
    assert places(served, "replica-0, replica-1000 is in the gateway")


def test_a_folder_of_the_users_is_checked_and_nothing_is_fetched(plan_of):
    names = [name_of(op, "stage_weights") for op in plan_of("serve_llama", weights_path="/srv/model")]
    assert "Check /srv/model" in names
    assert not [name for name in names if name.startswith(("Resolve", "Stage "))]


def test_the_first_thing_that_changes_comes_after_the_lock(plan_of):
    for deploy in ("provision", "stage_weights", "serve", "teardown"):
        plan = plan_of(deploy)
        assert [name_of(op) for op in plan[:2]] == ["Hold the lock", "The lock is held"]
        assert [op["hosts_with_change"] for op in plan[:2]] == [[], []]


def test_waiting_and_barriers_are_no_changes(plan_of):
    for name in (
        "replica-0 is stopped",
        "replica-0 does well",
        "Wait until replica-0 generates",
        "replica-0 was tried",
    ):
        (place,) = places(plan_of("serve"), name)
        assert plan_of("serve")[place]["hosts_with_change"] == []


def test_the_model_of_serve_llama_is_llama_unless_the_user_says_otherwise(dry):
    done = dry("serve_llama", model="llama-3.1-70b-instruct", tensor_parallel=1, pipeline_parallel=2)
    assert "Resolve meta-llama/Llama-3.1-70B-Instruct" in done.stdout


def test_a_plan_that_cannot_be_is_one_line_that_names_what_can(dry):
    done = dry("serve_llama", tensor_parallel=2)
    assert (done.returncode, done.stdout) == (1, "")
    said = [line for line in done.stderr.splitlines() if "TP" in line]
    assert len(said) == 1
    assert said[0].endswith(
        "smollm2-135m-instruct: TP 2 does not divide 9 attention heads and 3 key-value heads; "
        "TP can be 1, 3 (set tensor_parallel)"
    )
    assert "Traceback" not in done.stderr


def test_secrets_are_in_no_plan_and_no_message(dry):
    done = dry("serve_llama", api_key="sk-very-secret", hf_token="hf_very-secret")
    assert done.returncode == 0
    assert "very-secret" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with org/Tiny_Model, behind a gate org/gated, and what it was asked in its log."""
    base = tmp_path_factory.mktemp("hub")
    for name in ("Tiny_Model", "gated"):
        there = base / "root" / "org" / name
        there.mkdir(parents=True)
        (there / "config.json").write_text(json.dumps(dict(models.get("tiny-llama").config)))
    (base / "root" / "org" / "gated" / ".gated").touch()
    with running_hub(base) as hub:
        yield hub


TINY = {"model": "org/Tiny_Model", "tensor_parallel": 1, "pipeline_parallel": 2}


@pytest.mark.parametrize("deploy", ["stage_weights", "serve"])
def test_a_model_of_the_hub_is_deployed_as_one_of_the_catalogue(dry, hub, deploy):
    done = dry(deploy, hf_endpoint=hub.url, **TINY)
    assert done.returncode == 0, done.stderr
    names = [name_of(operation, deploy) for operation in json.loads(done.stdout)["plan"]]
    expected = {"stage_weights": "Stage org/Tiny_Model", "serve": "Wait until replica-0 generates"}
    assert expected[deploy] in names


def test_the_hub_is_asked_once_and_not_for_each_host(dry, hub):
    before = hub.log.read_text().count("Tiny_Model/resolve/main/config.json")
    assert dry("serve", hf_endpoint=hub.url, **TINY).returncode == 0
    asked = hub.log.read_text().count("Tiny_Model/resolve/main/config.json") - before
    assert 1 <= asked <= 2  # a HEAD, and a GET where it is not cached


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "org/absent"}, "org/absent: the hub has no such repository, or HF_TOKEN may not see it"),
        ({"model": "org/gated"}, "org/gated is gated: ask for access on its page and export HF_TOKEN"),
        ({"model": "org/Tiny_Model", "revision": "v9"}, "org/Tiny_Model has no revision v9"),
        ({"model": "smollm2-135m"}, "unknown model 'smollm2-135m'; the nearest are: smollm2-135m-instruct"),
        ({"model": "./nowhere"}, "unknown model './nowhere': there is no such folder"),
        ({"model": "models"}, "models is a folder here: copy it to every node and set weights_path"),
        ({"model": "org/m", "hf_endpoint": "http://127.0.0.1:9"}, "org/m: the hub does not answer"),
    ],
)
def test_a_model_that_is_not_found_is_one_line(dry, hub, settings, message):
    done = dry("serve", **{"hf_endpoint": hub.url, **TINY, **settings})
    assert (done.returncode, done.stdout) == (1, "")
    said = [line for line in done.stderr.splitlines() if message in line]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_is_served_from_where_the_nodes_have_it(dry, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dict(models.get("tiny-llama").config)))
    done = dry("serve_llama", **{**TINY, "model": tmp_path, "weights_path": "/srv/model"})
    assert done.returncode == 0, done.stderr
    assert "Check /srv/model" in done.stdout
