"""Releases on a node: the program itself, on folders of its own and beside a stand-in for systemctl."""

import getpass
import grp
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.release import Release
from roles import releases
from roles.files import File
from roles.releases import history, operations
from roles.releases.facts import History, InPlace, Kept
from roles.releases.operations import kept

SCRIPT = Path(releases.__file__).with_name("release.py")
OWNER = f"{getpass.getuser()}:{grp.getgrgid(os.getgid()).gr_name}"
RELEASE = Release("replica-0", "one", ("gpu1",), "10.0.0.1", 8000, 30000, 256, (0,), "/weights/main")

#: Of systemd only this is known here: what is asked of it is written down; every unit runs since long ago.
SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$SYSTEMCTL_LOG"
test "$1" = show || exit 0
shift 2
for unit; do
  printf 'Id=%s\\nActiveState=%s\\nUnitFileState=enabled\\nNeedDaemonReload=no\\n' "$unit" "${ACTIVE:-active}"
  printf 'ExecMainStartTimestampMonotonic=%s\\n\\n' "${STARTED:-0}"
done
"""


class Node:
    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "systemctl.log"
        self.log.touch()
        for name in ("etc", "run/replica-0", "units", "bin"):
            (folder / name).mkdir(parents=True)
        program = folder / "bin/systemctl"
        program.write_text(SYSTEMCTL)
        program.chmod(0o755)
        self.environment = {
            **os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "SYSTEMCTL_LOG": str(self.log),
            "RACKSERVE_ETC": f"{folder}/etc", "RACKSERVE_RUN": f"{folder}/run",
            "RACKSERVE_SYSTEMD": f"{folder}/units",
        }  # fmt: skip

    def __call__(self, *words, stdin="", **environment):
        done = subprocess.run(
            [sys.executable, SCRIPT, *words], input=stdin, text=True, capture_output=True,
            env={**self.environment, **environment}, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout else None

    def keep(self, id, **contents):
        model = str(self.folder / "model")
        rows = [[self.path(name), OWNER, "600", name == "key", text] for name, text in contents.items()]
        said = {"release": {**RELEASE.as_json(), "id": id, "model": model}, "files": rows}
        self("keep", "replica-0", id, stdin=json.dumps(said))

    def path(self, name):
        if name in ("gang", "ray", "vllm"):
            return str(self.folder / f"units/rackserve-replica-0-{name}.service")
        return str(self.folder / "etc/replica-0" / name)

    def look(self, **environment):
        return self("look", **environment)["replica-0"]

    def files(self):
        places = (*(self.folder / "units").iterdir(), *(self.folder / "etc/replica-0").iterdir())
        return {path.name.removeprefix("rackserve-replica-0-").removesuffix(".service"): path.read_text()
                for path in places}  # fmt: skip


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def test_what_is_put_by_touches_nothing_and_is_put_in_place_whole(node):
    assert node("look") == {}
    node.keep("one", config="a", key="secret", gang="unit")
    seen = node.look()
    assert (seen["there"], seen["installed"], seen["settled"]) == (False, "", False)
    assert list(seen["kept"]) == ["one"] and not node.log.read_text()
    node("put", "replica-0", "one")
    assert node.files() == {"config": "a", "key": "secret", "gang": "unit", "release": "one\n"}
    assert Path(node.path("key")).stat().st_mode & 0o777 == 0o600
    assert node("show", "replica-0") == {node.path("config"): "a", node.path("gang"): "unit"}
    assert node.look()["settled"] and node.look()["installed"] == "one"
    kept_by = node.folder / "etc/releases/replica-0"
    assert kept_by.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in kept_by.iterdir()} == {0o600}


def test_another_release_takes_its_place_and_what_it_has_not_goes(node):
    node.keep("one", config="a", template="t", gang="unit", ray="unit")
    node.keep("two", config="b", gang="unit")
    node("put", "replica-0", "one")
    node.log.write_text("")
    node("put", "replica-0", "two")
    assert node.files() == {"config": "b", "gang": "unit", "release": "two\n"}
    assert node.log.read_text().splitlines() == [
        "stop rackserve-replica-0-gang.service rackserve-replica-0-ray.service",
        "disable --quiet rackserve-replica-0-ray.service",
        "daemon-reload",
        "reset-failed rackserve-replica-0-ray.service",
    ]
    node("put", "replica-0", "one")
    assert node.files()["template"] == "t"


def test_nothing_stays_in_place_of_a_replica_that_leaves_but_what_is_put_by(node):
    node.keep("one", config="a", gang="unit")
    node("put", "replica-0", "one")
    node("put", "replica-0", "-")
    assert not (node.folder / "etc/replica-0").exists() and not list((node.folder / "units").iterdir())
    assert not node.look()["there"] and list(node.look()["kept"]) == ["one"]


@pytest.mark.parametrize("harm", ["content", "mode", "gone", "broken off"])
def test_what_is_not_as_it_was_put_is_not_settled(node, harm):
    node.keep("one", config="a", gang="unit")
    node("put", "replica-0", "one")
    there = Path(node.path("release" if harm == "broken off" else "config"))
    {"content": lambda: there.write_text("b"), "mode": lambda: there.chmod(0o644),
     "gone": there.unlink, "broken off": there.unlink}[harm]()  # fmt: skip
    assert not node.look()["settled"]
    node("put", "replica-0", "one")
    assert node.look()["settled"]


def test_a_replica_whose_gang_does_not_run_is_not_settled(node):
    node.keep("one", gang="unit")
    node("put", "replica-0", "one")
    assert not node.look(ACTIVE="inactive")["settled"]


def test_a_process_that_is_older_than_its_weights_is_not_settled(node):
    node.keep("one", gang="unit", vllm="unit")
    node("put", "replica-0", "one")
    (node.folder / "model").symlink_to("snapshot")
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert not node.look(STARTED=str(int((uptime - 5) * 1e6)))["settled"]
    assert node.look(STARTED=str(int((uptime + 5) * 1e6)))["settled"]


def test_whether_it_generates_is_what_its_gang_says(node):
    node.keep("one", gang="unit")
    assert not node.look()["up"]
    (node.folder / "run/replica-0/state.json").write_text('{"state": "up"}')
    assert node.look()["up"]
    (node.folder / "run/replica-0/state.json").write_text('{"state": "sta')
    assert not node.look()["up"]


def test_a_release_that_was_torn_is_not_there(node):
    node.keep("one", gang="unit")
    Path(node.folder / "etc/releases/replica-0/two.json").touch()
    assert list(node.look()["kept"]) == ["one"]


def test_a_proof_is_kept_with_its_release(node):
    node.keep("one", gang="unit")
    node("prove", "replica-0", "one", stdin="Paris\n")
    said = node.look()["kept"]["one"]
    assert said["answer"] == "Paris" and said["proven"] > 1e9


def test_old_releases_go_but_not_the_one_in_place_nor_those_to_go_back_to(node):
    for number in range(10):
        node.keep(f"r{number}", gang=f"unit {number}")
        os.utime(node.folder / f"etc/releases/replica-0/r{number}.json", (number, number))
        if number in (0, 1, 3):
            node("prove", "replica-0", f"r{number}")
        if number == 2:
            node("put", "replica-0", "r2")
    assert sorted(node.look()["kept"]) == ["r1", "r2", "r3", "r6", "r7", "r8", "r9"]


def test_the_same_files_are_the_same_release_and_any_other_are_another():
    files = [File("/etc/a", "1"), File("/etc/b", "2", secret=True)]
    id = releases.identified({"gpu1": files, "gpu2": files})
    assert releases.identified({"gpu2": files[::-1], "gpu1": files}) == id
    others = [
        {"gpu1": files}, {"gpu1": files, "gpu3": files},
        {"gpu1": files, "gpu2": [files[0], File("/etc/b", "3", secret=True)]},
        {"gpu1": files, "gpu2": [files[0], File("/etc/b", "2", mode="600", secret=True)]},
    ]  # fmt: skip
    assert len({id, *map(releases.identified, others)}) == 5


FILES = [File("/etc/x.yaml", "a: 1\n"), File("/etc/x.env", "KEY=very-secret\n", mode="600", secret=True)]


def test_a_release_is_sent_once_and_by_stdin(on_host):
    (command,) = on_host({Kept: {}}).yielded(kept, release=RELEASE, files=FILES)
    assert "very-secret" not in command.get_raw_value() and "very-secret" not in command.get_masked_value()
    assert "very-secret" in command.connector_arguments["_stdin"]
    there = {"replica-0": {"kept": {"one": {}}}}
    assert on_host({Kept: there}).yielded(kept, release=RELEASE, files=FILES) == []


def test_the_difference_is_shown_but_for_secrets(on_host, caplog):
    host = on_host({Kept: {}, InPlace: {"/etc/x.yaml": "a: 0\n"}})
    host.state.config.DIFF = True
    with caplog.at_level("INFO", logger="pyinfra"):
        host.yielded(kept, release=RELEASE, files=FILES)
    shown = "\n".join([*host.said, *caplog.messages])
    assert "Will modify /etc/x.yaml" in shown and "- a: 0" in shown and "+ a: 1" in shown
    assert "very-secret" not in shown


def test_what_another_run_changed_since_the_plan_ends_this_one(on_host, monkeypatch):
    monkeypatch.setattr(operations.remote, "failure", lambda _, problem: problem)
    host = on_host({Kept: {"r0": {"installed": "a"}, "r1": {"installed": "c"}}}, executing=True)
    assert host.yielded(operations.unchanged, installed={"r0": "a", "r1": "c"}) == []
    (problem,) = host.yielded(operations.unchanged, installed={"r0": "a", "r1": "b", "r2": "d"})
    assert problem == "another run changed r1, r2 since this one was planned: run it again"


def test_a_line_after_a_torn_one_is_a_line_of_its_own(tmp_path):
    file = tmp_path / "log/history.jsonl"
    for line in ('{"run": "1"}\n', '{"run": "2", "de', '{"run": "3"}\n'):
        subprocess.run(["sh", "-c", history._APPEND, "sh", file], input=line, text=True, check=True)
    assert file.read_text().splitlines() == ['{"run": "1"}', '{"run": "2", "de', '{"run": "3"}']


def test_a_history_that_was_torn_is_read_and_a_run_has_its_end():
    lines = ['{"run": "1", "deploy": "serve", "replicas": {}, "outcome": "begun"}', '{"run": "2", "dep',
             "12", '{"run": "1", "outcome": "done"}', '{"run": "0", "outcome": "done"}']  # fmt: skip
    assert History().process(lines) == [{"run": "1", "deploy": "serve", "replicas": {}, "outcome": "done"}]
