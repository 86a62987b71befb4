"""`rackserve` as a person runs it: what it refuses, in how many lines, with which exit code."""

import atexit
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import models
from scripts.cli import main
from scripts.deploy import absolute

REPOSITORY = Path(__file__).parents[1]
CACHE = Path(tempfile.mkdtemp(prefix="rackserve-test-"))
atexit.register(shutil.rmtree, CACHE)
QUICK = {"fake_delay": 0, "fake_delay_jitter": 0, "interface": "lo", "gpus": 1}


def rackserve(*words, answer="", **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "RACKSERVE_"))}
    return subprocess.run(
        [sys.executable, "-c", "from scripts.cli import main; main()", *map(str, words)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, input=answer,
        env={**clean, "PYTHONPATH": str(REPOSITORY), "PYINFRA_PROGRESS": "off",
             "XDG_CACHE_HOME": str(CACHE), **environment},
    )  # fmt: skip


@pytest.fixture
def inventory(tmp_path):
    """inventory(head=[1], workers=[2]): a file with hosts of these numbers that are not there."""

    def made(head=(1,), workers=(), **data):
        groups = {
            group: [(f"@fake/gpu{n}", {**QUICK, "address": f"10.0.0.{n}", **data}) for n in numbers]
            for group, numbers in (("head", head), ("workers", workers))
        }
        file = tmp_path / "some.py"
        file.write_text("".join(f"{group} = {hosts!r}\n" for group, hosts in groups.items()))
        return file

    return made


def refused(done):
    """The line of ours with which a command was refused as bad input."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith("rackserve: ")]
    assert len(ours) == 1 and done.stderr.rstrip().endswith(ours[0])
    return ours[0].removeprefix("rackserve: ")


COMMANDS = {
    (): ["deploy", "unlock", "status", "logs", "doctor", "chat", "models", "lab", "demo", "--version"],
    ("deploy",): ["--inventory", "--dry", "--diff", "--limit", "--data", "serve_llama", "teardown"],
    ("unlock",): ["--inventory"],
    ("status",): ["--inventory", "--json"],
    ("logs",): ["--inventory", "--part", "--lines"],
    ("doctor",): ["--inventory", "--replica", "--list", "--logs", "--json", "Reads only"],
    ("chat",): ["--inventory", "--model", "--max-tokens", "--temperature", "QUESTION"],
    ("stage",): ["--inventory", "--list", "--verify", "--prune", "--revision", "--data", "--dry", "MODEL"],
    ("spread",): ["--inventory", "--dry", "FOLDER", "second run changes nothing"],
    ("wheelhouse",): ["--runtime", "--plugins", "--python", "--machine", "FOLDER", "nothing is removed"],
    ("rollout",): [
        "--inventory",
        "--data",
        "--replica",
        "--dry",
        "--drain-timeout",
        "--cut",
        "--degraded",
        "--reboot",
    ],
    ("rollback",): ["--inventory", "--dry", "--drain-timeout", "goes forward again"],
    ("history",): ["--inventory", "--last", "--json"],
    ("lab",): [
        "up",
        "prepare",
        "down",
        "status",
        "ssh",
        "logs",
        "cut",
        "heal",
        "poweroff",
        "poweron",
        "slow",
        "fill-disk",
    ],
    ("lab", "up"): ["NODES"],
    ("lab", "fill-disk"): ["--leave", "NODE"],
    ("lab", "slow"): ["MBIT"],
    ("demo",): ["--nodes", "QUESTION"],
    ("models",): ["List the models", "--json"],
    ("plan",): ["--gpus", "--nodes", "--context", "--concurrency", "--optimize", "--json", "--explain"],
}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_mentions_what_a_command_takes(words):
    done = CliRunner().invoke(main, [*words, "--help"])
    assert done.exit_code == 0
    assert [word for word in COMMANDS[words] if word not in done.output] == []


def test_every_command_has_its_help_tested():
    assert {words[0] for words in COMMANDS if words} == set(main.list_commands(None))


def test_models_lists_them_all_and_says_which_are_gated():
    done = rackserve("models")
    assert done.returncode == 0
    listed = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert sorted(listed) == models.names()
    for name, line in listed.items():
        assert models.get(name).repository in line
        assert ("gated" in line) == models.get(name).gated


@pytest.mark.parametrize("name", ["serv", "cluster", "settings", "../scripts/cli", "__init__"])
def test_an_unknown_deploy_is_refused_naming_those_there_are(inventory, name):
    said = refused(rackserve("deploy", name, "-i", inventory()))
    assert said.startswith(f"no deploy {name}; there are: ")
    assert {"provision", "stage_weights", "serve", "serve_llama", "teardown"} <= set(
        said.split("there are: ")[1].split(", ")
    )
    assert not {"cluster", "settings", "doctor", "cards", "rebooting", "examination"} & set(
        said.split("there are: ")[1].split(", ")
    )


@pytest.mark.parametrize(
    "words", [("deploy", "serve"), ("status",), ("logs",), ("doctor",), ("unlock",), ("chat", "hello")]
)
def test_an_unknown_inventory_is_refused_naming_those_there_are(words):
    said = refused(rackserve(*words, "-i", "clutser"))
    assert said == "no inventory clutser; there are: cluster, lab, local, or give a file"


def test_the_inventory_can_come_from_the_environment():
    assert "no inventory elsewhere" in refused(rackserve("status", RACKSERVE_INVENTORY="elsewhere"))


def test_an_inventory_without_hosts_is_refused(inventory):
    said = refused(rackserve("deploy", "serve", "-i", inventory(head=())))
    assert said == "the inventory has no hosts: fill the groups head and workers"


def test_an_empty_inventory_file_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("")
    assert "has no hosts" in refused(rackserve("deploy", "serve", "-i", tmp_path / "empty.py"))


def test_an_inventory_without_a_head_is_refused(inventory):
    said = refused(rackserve("deploy", "serve", "-i", inventory(head=(), workers=(1, 2))))
    assert said == "the inventory needs one host in the group head; it has none"


def test_an_inventory_with_two_heads_is_refused_naming_them(inventory):
    said = refused(rackserve("deploy", "serve", "-i", inventory(head=(1, 2))))
    assert said == "the inventory needs one host in the group head; it has @fake/gpu1, @fake/gpu2"


def test_two_hosts_of_one_address_are_refused_naming_them(inventory):
    file = inventory(head=(1,), workers=(2,))
    file.write_text(file.read_text().replace("10.0.0.2", "10.0.0.1"))
    said = refused(rackserve("deploy", "provision", "-i", file))
    assert said == "@fake/gpu1 and @fake/gpu2 have the same address 10.0.0.1"


def test_a_wrong_setting_in_the_inventory_is_refused_naming_the_host(inventory):
    said = refused(rackserve("deploy", "provision", "-i", inventory(gpus="eight")))
    assert said == "@fake/gpu1: gpus is 'eight': must be a whole number of at least 0"


def test_an_unknown_model_is_refused_with_the_nearest(inventory):
    said = refused(rackserve("deploy", "serve", "-i", inventory(), "--data", "model=llama-3.1-70b-instrukt"))
    assert said.startswith("unknown model 'llama-3.1-70b-instrukt'; the nearest are: llama-3.1-70b-instruct")


def test_no_model_at_all_is_refused_saying_how_to_set_one(inventory):
    assert "--data model=NAME" in refused(rackserve("deploy", "serve", "-i", inventory()))


def test_a_setting_that_nothing_reads_is_refused_with_the_nearest(inventory):
    said = refused(rackserve("deploy", "serve", "-i", inventory(), "--data", "modle=x"))
    assert said == "--data modle: no such setting; did you mean model?"


def test_a_plan_that_cannot_be_is_refused(inventory):
    file = inventory(model="smollm2-135m-instruct", runtime="cpu", workers=(2,))
    said = refused(rackserve("deploy", "serve", "-i", file, "--data", "tensor_parallel=2"))
    assert said.endswith("TP can be 1, 3 (set tensor_parallel)")


def test_a_limit_that_matches_no_host_is_refused(inventory):
    done = rackserve("deploy", "provision", "-i", inventory(), "--limit", "gpu9", "--dry")
    assert done.returncode == 2
    assert "--limit" in done.stderr.splitlines()[-1] or "gpu9" in done.stderr.splitlines()[-1]


def test_a_limit_without_the_host_of_the_lock_is_refused(inventory):
    done = rackserve("deploy", "provision", "-i", inventory(workers=(2,)), "--limit", "@fake/gpu2")
    assert refused(done) == "@fake/gpu1 holds the lock, and --limit leaves it out: add --limit @fake/gpu1"


def test_an_inventory_with_an_error_in_it_is_named_with_its_file(tmp_path):
    (tmp_path / "broken.py").write_text("head = [\n")
    done = rackserve("deploy", "serve", "-i", tmp_path / "broken.py")
    assert done.returncode in (1, 2)
    assert "broken.py" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("rackserve: ")


def test_an_option_that_pyinfra_does_not_know_is_refused(inventory):
    done = rackserve("deploy", "provision", "-i", inventory(), "--no-such-option")
    assert done.returncode == 2 and "--no-such-option" in done.stderr


def test_dry_changes_nothing_and_succeeds(inventory):
    file = inventory(model="smollm2-135m-instruct", runtime="cpu", workers=(2,), pipeline_parallel=2)
    done = rackserve("deploy", "serve_llama", "-i", file, "--dry")
    assert done.returncode == 0, done.stderr
    assert "serve_llama: done in" in done.stderr
    assert "Warning" not in done.stderr, "gevent must patch ssl before anything imports it"


def test_a_question_that_is_answered_with_no_is_no_success(inventory):
    done = rackserve("deploy", "provision", "-i", inventory(runtime="cpu"), "--diff", answer="n\n")
    assert done.returncode == 1, done.stderr
    assert done.stderr.endswith("rackserve: nothing was done: that was no Enter at the question above\n")


def test_who_presses_ctrl_c_before_anything_was_begun_is_told_so(monkeypatch):
    from click.testing import CliRunner

    from scripts import cli, wheelhouse

    def pressed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(wheelhouse, "_made", pressed)
    done = CliRunner().invoke(cli.main, ["wheelhouse", "folder"])
    assert (done.exit_code, done.output) == (1, "rackserve: interrupted\n")


@pytest.mark.parametrize(
    ("was", "now", "said"), [(None, "a", "nothing -> a"), ("a", "b", "a -> b"), ("a", "a", "a again")]
)
def test_a_release_that_was_not_whole_is_brought_where_it_is_again(was, now, said):
    from scripts.rollout import _to

    assert _to(was, now) == said


def test_a_rollout_shows_what_it_would_do(inventory):
    file = inventory(model="smollm2-135m-instruct", runtime="cpu", workers=(2,), pipeline_parallel=2)
    done = rackserve("rollout", "-i", file, "--dry", "--watch", "0")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^replica-0: nothing -> [0-9a-f]{12} \(not done: --dry\)$", done.stdout, re.MULTILINE)
    done = rackserve("rollout", "-i", file, "--replica", "replica-4")
    assert refused(done) == "no replica replica-4; there are: replica-0"


def test_where_nothing_ran_nothing_is_taken_back(inventory):
    done = rackserve("rollback", "-i", inventory(model="smollm2-135m-instruct", runtime="cpu"))
    assert refused(done) == "nothing has run yet: there is nothing to go back to"
    done = rackserve("history", "-i", inventory())
    assert (done.returncode, done.stdout) == (0, "nothing has run yet\n")


def test_a_host_that_was_reached_and_cannot_be_asked_is_not_said_to_be_out_of_reach(inventory):
    fails = {"success": False, "stderr": "no room left"}
    done = rackserve("history", "-i", inventory(fake_responses={"tail": fails}))
    assert done.returncode == 1 and "no room left" in done.stderr
    assert done.stderr.splitlines()[-1] == "rackserve: @fake/gpu1: failed; see above"


def test_status_of_hosts_that_serve_nothing_says_so(inventory):
    file = inventory(workers=(2,), fake_responses={"python3 -c": "[]"})
    done = rackserve("status", "-i", file)
    assert (done.returncode, done.stdout) == (0, "nothing is served on @fake/gpu1, @fake/gpu2\n")


def test_chat_with_hosts_that_serve_nothing_fails_saying_what_to_do(inventory):
    done = rackserve("chat", "hello", "-i", inventory(fake_responses={"python3 -c": "[]"}))
    assert done.returncode == 1
    assert done.stderr == "rackserve: nothing is served; run `rackserve deploy serve_llama` first\n"


def test_hardware_without_a_runtime_is_planned_and_not_served(inventory):
    path = inventory(gpu="MI300X")
    said = refused(rackserve("deploy", "serve", "-i", path, "--data", "model=llama-3.1-70b-instruct"))
    assert "MI300X: it can be planned, not served" in said
    assert rackserve("plan", "llama-3.1-70b-instruct", "-i", path).returncode == 0


def test_a_model_that_does_not_fit_is_not_served(inventory):
    path = inventory(gpu="L40S", gpus=1)
    said = refused(rackserve("deploy", "serve", "-i", path, "--data", "model=llama-3.1-405b-instruct"))
    assert "does not fit: each GPU lacks" in said and "rackserve plan llama-3.1-405b-instruct" in said


def test_nodes_of_different_gpus_are_refused_by_name(inventory):
    file = inventory(workers=[2], gpu="H100")
    file.write_text(file.read_text().replace("H100", "H200", 1))
    said = refused(rackserve("deploy", "serve", "-i", file, "--data", "model=llama-3.1-70b-instruct"))
    assert "@fake/gpu1 H200, @fake/gpu2 H100" in said


@pytest.mark.parametrize(
    "command", [("plan", "tiny-llama"), ("deploy", "serve", "--data", "model=tiny-llama")]
)
@pytest.mark.parametrize(
    ("text", "said"),
    [("head = [", "'[' was never closed"), ("head = ('@fake/a', {})\nworkers = []", "")],
)
def test_an_inventory_that_is_mistyped_is_refused(tmp_path, command, text, said):
    file = tmp_path / "some.py"
    file.write_text(text)
    done = rackserve(*command, "-i", file)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr and said in done.stderr


@pytest.mark.parametrize("head", ["[('gpu1',)]", "[('gpu1', 'H100')]", "[('gpu1', 5)]"])
def test_a_host_that_is_none_is_refused(tmp_path, head):
    file = tmp_path / "some.py"
    file.write_text(f"head = {head}")
    assert refused(rackserve("plan", "tiny-llama", "-i", file)) == (
        f"{file}: a host is a name, or a name and its settings: (NAME, {{KEY: VALUE}})"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stage", "--list", "--revision", "v1"), "--revision v1: --list, --verify and --prune are for all"),
        (("stage", "m", "--prune", "1"), "m: --list, --verify and --prune are for all"),
        (("stage", "--list", "--verify"), "--list, --verify and --prune: one at a time"),
        (("spread", "/"), "/: name a folder by its whole path, and not one of the top"),
        (("spread", "srv/a"), "srv/a: name a folder by its whole path"),
        (("spread", "/srv/a,/srv/b"), "/srv/a,/srv/b: a folder to spread has no comma in its name"),
    ],
    ids=str,
)
def test_what_cannot_be_staged_or_spread_is_refused_before_any_host_is_asked(inventory, words, said):
    assert refused(rackserve(*words, "-i", inventory())).startswith(said)


def test_data_without_a_value_is_refused(inventory):
    assert refused(rackserve("deploy", "serve", "-i", inventory(), "--data", "model")) == (
        "--data model: write KEY=VALUE"
    )


@pytest.mark.parametrize("command", [("plan", "tiny-llama"), ("status",), ("deploy", "serve")])
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import nowhere", "line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("head = []\nworkers = [1 / 0]", "line 2: ZeroDivisionError: division by zero"),
        ("raise ValueError('a\\nb')", "line 1: ValueError: a b"),
    ],
)
def test_an_inventory_that_cannot_be_made_is_refused_with_its_line(tmp_path, command, text, line):
    file = tmp_path / "some.py"
    file.write_text(text)
    assert refused(rackserve(*command, "-i", file)) == f"{file} {line}"


def test_a_mistyped_key_of_a_host_is_refused_with_the_host(inventory):
    said = refused(rackserve("deploy", "provision", "-i", inventory(gpu_s=4)))
    assert said == "@fake/gpu1: gpu_s: no such setting; did you mean gpus?"


def test_a_host_out_of_reach_does_not_hide_the_others(inventory):
    file = inventory(workers=[2])
    away = {"ssh_hostname": "127.0.0.1", "ssh_port": 1, "address": "10.0.0.2", "gpus": 1}
    file.write_text(file.read_text().splitlines()[0] + f"\nworkers = [('gone', {away!r})]\n")
    for words in (("status",), ("status", "--json"), ("logs",), ("chat", "hi")):
        done = rackserve(*words, "-i", file)
        assert (done.returncode, done.stderr) == (1, "rackserve: gone: cannot be reached over SSH\n")
    assert "nothing is served on @fake/gpu1" in rackserve("status", "-i", file).stdout
    assert rackserve("unlock", "-i", file).stdout == "nobody held the lock\n"


def test_a_folder_to_deploy_is_where_the_user_is(tmp_path, monkeypatch):
    (tmp_path / "tiny-llama").mkdir()
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute("model=mine") == f"model={tmp_path}/mine"
    for one in ("model=tiny-llama", "model=org/m", "weights_path=mine", "context=1"):
        assert absolute(one) == one


def test_ctrl_c_ends_a_run_at_once_whatever_runs_on_the_hosts(tmp_path):
    (tmp_path / "long.py").write_text(
        "from pyinfra.operations import server\nserver.shell(name='Take long', commands=['sleep 20'])\n"
        "server.shell(name='Go on', commands=['true'])\n"
    )
    run = f"from scripts import runner; runner.run(['@local', '{tmp_path}/long.py', '-y'])"
    with subprocess.Popen(
        [sys.executable, "-c", run], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(CACHE)},
    ) as running:  # fmt: skip
        while "Starting operation" not in (line := running.stderr.readline()):
            assert line
        for _ in range(2):  # one from the terminal, one from whoever started it
            running.send_signal(signal.SIGINT)
            time.sleep(0.001)
        _, said = running.communicate(timeout=15)
    assert running.returncode and "Interrupted: interrupted; run it again to finish what was begun" in said
    assert "Go on" not in said
