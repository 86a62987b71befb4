"""Staging of weights: the script as a node runs it, against a real hub on the loopback."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from roles.weights import Description, Payload, path, root
from tests.lab.hub_testing import (
    GATED,
    MIB,
    OPEN,
    READER,
    SHARD,
    STRANGER,
    cutting_relay,
    running_hub,
    sha256,
)
from tests.staging import FILES, SCRIPT, Node

UNKNOWN = "hf_expired"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def node(hub, tmp_path):
    return Node(hub, tmp_path)


@pytest.fixture(scope="module")
def whole(hub, tmp_path_factory):
    """A node that staged it; others begin with a copy of what it has."""
    return Node(hub, tmp_path_factory.mktemp("whole")).staged()


@pytest.fixture(scope="module")
def older(hub, tmp_path_factory):
    """One that staged an older commit, whose config.json is another."""
    node = Node(hub, tmp_path_factory.mktemp("older"))
    return node.staged(commit=node.commit(revision="v1"), expected={"num_hidden_layers": 1})


def test_resolve_records_the_commit_of_the_revision(node):
    assert node("resolve") == (True, "", "")
    record = node.model / "commits" / "main"
    size = sum((node.hub.root / OPEN / name).stat().st_size for name in FILES)
    assert record.read_text() == f"{node.commit()} {size}\n"


def test_fetch_puts_every_file_in_place_and_status_is_content(node, hub):
    assert node.problem() == "not staged yet"
    node.staged()
    assert node.problem() is None
    assert os.readlink(node.path) == f"snapshot-{node.commit()}"
    for name in FILES:
        assert sha256(node.path / name) == sha256(hub.root / OPEN / name)
        assert (node.path / name).stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in node.path.iterdir()) == ["config.json", "extra", SHARD]
    assert list(node.model.glob(".*")) == []


def test_a_second_fetch_of_what_is_right_fetches_nothing(node, whole):
    node.like(whole)
    with node.fetched() as names:
        node.staged()
    assert names == []
    assert node.problem() is None


def damaged(path):
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("name", ["config.json", SHARD])
@pytest.mark.parametrize("harm", [damaged, truncated, Path.unlink], ids=["damaged", "truncated", "deleted"])
def test_only_a_file_that_is_wrong_is_fetched_again(node, whole, hub, name, harm):
    node.like(whole)
    harm(node.path / name)
    assert node.problem().startswith(name)
    with node.fetched() as names:
        node.staged()
    assert names == [name]
    assert sha256(node.path / name) == sha256(hub.root / OPEN / name)
    assert node.problem() is None


def test_a_file_that_was_only_touched_is_verified_and_not_fetched(node, whole):
    node.like(whole)
    os.utime(node.path / SHARD)
    assert node.problem() == f"{SHARD} changed since it was verified"
    with node.fetched() as names:
        node.staged()
    assert names == []
    assert node.problem() is None


def test_a_manifest_that_a_power_cut_emptied_is_a_problem_that_fetch_mends(node, whole):
    node.like(whole)
    (node.model / f"snapshot-{node.commit()}.json").write_text("")
    assert node.problem()
    with node.fetched() as names:
        node.staged()
    assert names == []
    assert node.problem() is None


def test_a_manifest_that_is_gone_is_a_problem_that_fetch_mends(node, whole):
    node.like(whole)
    (node.model / f"snapshot-{node.commit()}.json").unlink()
    assert node.problem()
    assert node.staged().problem() is None


def test_another_commit_takes_the_link_over(node, whole):
    node.like(whole)
    other = node.commit(revision="v1")
    assert node.problem(commit=other) == "not staged yet"
    node.staged(commit=other, expected={"num_hidden_layers": 1})
    assert os.readlink(node.path) == f"snapshot-{other}"
    assert node.problem(commit=other) is None
    assert node.problem() == "another commit is in place"


def test_a_config_that_contradicts_the_catalogue_is_refused_and_nothing_is_published(node):
    said = node.refused("fetch", expected={"num_hidden_layers": 3})
    assert "num_hidden_layers is 2 there and 3 in the model's file" in said
    assert node.shown() == []
    assert node.problem() == "not staged yet"


def test_files_that_are_ignored_are_neither_fetched_nor_missed(node):
    with node.fetched() as names:
        node.staged(ignore=["extra/*", "*.bin"])
    assert sorted(names) == ["config.json", SHARD]
    assert not (node.path / "extra").exists()
    assert node.problem() is None


def test_a_description_is_all_but_the_weights_in_a_place_of_its_own(node):
    model = Payload(f"/srv/{OPEN}", ignore=("extra/*",))
    described = Description(model)
    with node.fetched() as names:
        node.staged(ignore=list(described.ignore))
    assert SHARD.endswith(".safetensors") and names == ["config.json"]
    assert root(described) != root(model) and path(described) == path(model).replace(
        root(model), root(described)
    )


def test_a_folder_to_ignore_may_be_named_with_a_slash_as_the_client_allows(node):
    node.staged(ignore=["extra/"])
    assert not (node.path / "extra").exists()
    assert node.problem() is None


def gated(node, action, **options):
    return {"action": action, "repository": GATED, "path": node.folder / "lab--gated" / "main", **options}


@pytest.mark.parametrize("action", ["resolve", "fetch"])
def test_a_gated_repository_without_a_token_asks_for_one(node, action):
    said = node.refused(**gated(node, action))
    assert f"{GATED} is gated and no token was given" in said and "HF_TOKEN" in said
    assert f"ask for access on {node.hub.url}/{GATED}," in said


@pytest.mark.parametrize("action", ["resolve", "fetch"])
def test_a_gated_repository_with_a_token_that_may_not_read_it_says_so(node, action):
    said = node.refused(**gated(node, action, token=STRANGER))
    assert f"{GATED} is gated and this token has no access to it" in said and "HF_TOKEN" in said


@pytest.mark.parametrize("action", ["resolve", "fetch"])
@pytest.mark.parametrize("repository", [OPEN, GATED])
def test_a_token_that_the_hub_does_not_know_is_blamed(node, action, repository):
    said = node.refused(action, repository=repository, token=UNKNOWN)
    assert "HF_TOKEN" in said and "does not answer" not in said


def test_a_gated_repository_is_staged_with_a_token_that_may_read_it(node):
    options = gated(node, "resolve", token=READER)
    assert node(**options)[0]
    options.pop("action")
    node.staged(**options)
    options.pop("token")
    assert node.problem(**options) is None
    assert sha256(options["path"] / SHARD) == sha256(node.hub.root / GATED / SHARD)
    written = [file for file in node.folder.rglob("*") if file.is_file() and file.stat().st_size < MIB]
    assert not [file for file in written if READER.encode() in file.read_bytes()]


@pytest.mark.parametrize("action", ["resolve", "fetch"])
def test_an_unknown_repository_is_named(node, action):
    said = node.refused(action, repository="lab/absent", commit="0" * 40)
    assert "lab/absent" in said


def test_an_unknown_revision_is_named(node):
    assert node.refused("resolve", revision="absent") == f"{OPEN} has no revision absent"


@pytest.mark.parametrize("action", ["resolve", "fetch"])
def test_a_hub_that_is_down_is_named(node, action):
    with socket.create_server(("127.0.0.1", 0)) as server:
        nowhere = f"http://127.0.0.1:{server.getsockname()[1]}"
    said = node.refused(action, endpoint=nowhere)
    assert nowhere in said
    assert node.shown() == []


def test_a_folder_of_the_user_is_only_looked_at(node, hub):
    before = sorted((hub.root / OPEN).rglob("*"))
    assert node("folder", path=hub.root / OPEN) == (True, "", "")
    assert "num_hidden_layers is 2" in node.refused(
        "folder", path=hub.root / OPEN, expected={"num_hidden_layers": 9}
    )
    assert sorted((hub.root / OPEN).rglob("*")) == before


def test_a_folder_without_a_config_is_no_model(node):
    assert node.refused("folder", path=node.folder) == f"{node.folder} has no config.json: not a model folder"
    assert "has no config.json" in node.refused("folder", path=node.folder / "absent")


def test_a_folder_whose_config_is_no_json_is_no_model(node):
    (node.folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "config.json" in node.refused("folder", path=node.folder)


def test_a_download_that_is_cut_is_finished_in_the_same_run(node, hub):
    with cutting_relay(hub, limit=16 * MIB) as relay:
        node.staged(endpoint=relay.url)
    assert relay.cuts == 1
    assert sha256(node.path / SHARD) == sha256(hub.root / OPEN / SHARD)


def test_a_snapshot_that_is_in_place_stays_until_another_is_whole(node, whole):
    node.like(whole)
    other = node.commit(revision="v1")
    assert node.refused("fetch", commit=other)  # its config has one layer, not two
    assert node.problem() is None


def test_what_another_commit_has_is_not_fetched_again(node, older):
    other = node.like(older).commit(revision="v1")
    with node.fetched() as names:
        node.staged()
    assert sorted(names) == ["config.json", "extra/notes.txt"]
    assert node.problem() is None and kept(node, "verify").returncode == 0
    assert os.path.samefile(node.path / SHARD, node.model / f"snapshot-{other}" / SHARD)


def test_what_another_commit_has_is_found_after_a_kill_and_beside_what_is_no_manifest(node, older):
    node.like(older)
    (node.model / f".partial-{node.commit()}").mkdir()
    (node.model / "snapshot-list.json").write_text("[]")
    (node.model / "snapshot-folder.json").mkdir()
    (node.model / "snapshot-nowhere.json").symlink_to("nowhere")
    with node.fetched() as names:
        node.staged()
    assert SHARD not in names and node.commit() in on(node)


@pytest.mark.parametrize("harm", ["folder", "link", "dangling link", "file for a folder"])
def test_something_else_in_the_place_of_a_file_is_seen_and_mended(node, whole, tmp_path, harm):
    node.like(whole)
    snapshot, outside = node.path.resolve(), tmp_path / "elsewhere"
    if harm == "file for a folder":
        shutil.rmtree(snapshot / "extra")
        (snapshot / "extra").write_text("")
    else:
        (snapshot / SHARD).rename(outside)
        outside.chmod(0o600)
        if harm == "folder":
            (snapshot / SHARD).mkdir()
        else:
            (snapshot / SHARD).symlink_to(outside if harm == "link" else "nowhere")
    assert node.problem().endswith("is missing") and kept(node, "verify").returncode == 1
    node.staged()
    assert node.problem() is None and kept(node, "verify").returncode == 0
    assert not outside.exists() or outside.stat().st_mode & 0o777 == 0o600


def test_what_an_earlier_run_wanted_and_this_one_does_not_is_not_published(node):
    stray = node.model / f".partial-{node.commit()}" / "original/consolidated.safetensors"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"1")
    node.staged()
    assert kept(node, "verify").returncode == 0 and not list(node.path.rglob("consolidated*"))


@pytest.mark.parametrize("files", [{}, [], {"w": {}}, {"w": {"size": 3}}], ids=str)
def test_a_manifest_that_says_too_little_is_mended_and_hides_no_other(node, older, files):
    node.like(older)
    node.staged()
    (node.model / f"snapshot-{node.commit()}.json").write_text(json.dumps({"files": files}))
    assert list(on(node)) == [node.commit(revision="v1")]
    assert node.problem() or not files
    node.staged()
    assert len(on(node)) == 2


def test_what_is_being_fetched_is_not_pruned(node):
    partial = node.model / f".partial-{node.commit()}"
    partial.mkdir(parents=True)
    assert json.loads(kept(node, "excess").stdout)
    with partial.with_name(f"{partial.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert json.loads(kept(node, "excess").stdout) == []


def test_what_another_commit_has_wrong_is_fetched_and_stays_there(node, older, hub):
    other = node.like(older).commit(revision="v1")
    shard = node.model / f"snapshot-{other}" / SHARD
    seen = shard.stat()
    damaged(shard)
    os.utime(shard, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    wrong = sha256(shard)
    node.staged()
    assert sha256(node.path / SHARD) == sha256(hub.root / OPEN / SHARD)
    assert sha256(shard) == wrong


def kept(node, action, *words):
    """A run over all that is on the node, and what it printed."""
    command = [sys.executable, SCRIPT, action, "--path", node.folder, *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)


def on(node):
    return {one["commit"]: one for one in json.loads(kept(node, "list").stdout)}


def test_what_is_there_is_listed_with_its_revision_size_and_when_it_was_verified(node):
    assert on(node) == {}
    before = time.time()
    node.staged()
    (one,) = on(node).values()
    assert (one["repository"], one["commit"], one["revisions"]) == (OPEN, node.commit(), ["main"])
    assert one["bytes"] == sum((node.path / name).stat().st_size for name in FILES) and one["files"] == 3
    assert before - 1 < one["verified"] < time.time() + 1 and one["problem"] is None
    damaged(node.path / SHARD)
    assert on(node)[node.commit()]["problem"] == f"{SHARD} changed since it was verified"


def test_the_manifest_is_the_same_wherever_it_is_made(hub, tmp_path):
    nodes = [Node(hub, tmp_path / name).staged() for name in "ab"]
    one, other = ((node.model / f"snapshot-{node.commit()}.json").read_text() for node in nodes)
    assert one == other and json.loads(one)["commit"] == nodes[0].commit()


def test_verifying_finds_what_no_look_at_size_and_time_does_and_staging_mends_it(node, whole):
    node.like(whole)
    assert kept(node, "verify").returncode == 0
    seen = (node.path / SHARD).stat()
    damaged(node.path / SHARD)
    os.utime(node.path / SHARD, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert node.problem() is None
    done = kept(node, "verify")
    place = f"lab--open/snapshot-{node.commit()}/{SHARD}"
    assert (done.returncode, done.stderr) == (
        1, f"not what was verified: {place}; run the deploy stage_weights\n",
    )  # fmt: skip
    with node.fetched() as names:
        node.staged()
    assert names == [SHARD] and kept(node, "verify").returncode == 0


def test_verifying_says_what_to_do_about_an_old_snapshot_and_what_is_no_file_of_it(node, older):
    other = node.like(older).commit(revision="v1")
    node.staged()
    damaged(node.model / f"snapshot-{other}" / "config.json")
    (node.path / "model-00009.safetensors").write_bytes(b"")
    assert kept(node, "verify").stderr == (
        "of a snapshot that no revision means, not what was verified: "
        f"lab--open/snapshot-{other}/config.json; run the deploy prune_weights. no files of the model: "
        f"lab--open/snapshot-{node.commit()}/model-00009.safetensors; remove them from {node.folder}\n"
    )


def test_verifying_is_remembered(node, whole):
    node.like(whole)
    manifest = node.model / f"snapshot-{node.commit()}.json"
    os.utime(manifest, (1, 1))
    kept(node, "verify")
    assert on(node)[node.commit()]["verified"] > time.time() - 60


def test_old_snapshots_are_excess_and_what_a_revision_means_is_not(node, whole):
    node.like(whole)
    other = node.commit(revision="v1")
    node.staged(commit=other, expected={"num_hidden_layers": 1})
    (node.model / ".partial-x").mkdir()
    excess = {one["folder"].split("/")[1]: one["bytes"] for one in json.loads(kept(node, "excess").stdout)}
    assert set(excess) == {f"snapshot-{node.commit()}", ".partial-x"}
    # What it frees: the shard is the other's, too.
    assert 0 < excess[f"snapshot-{node.commit()}"] < MIB < on(node)[node.commit()]["bytes"]
    assert json.loads(kept(node, "excess", "--keep", 2).stdout)[0]["folder"].endswith(".partial-x")
    os.unlink(node.path)
    all_of_it = json.loads(kept(node, "excess", "--keep", 0).stdout)
    assert len(all_of_it) == 3 and sum(one["bytes"] for one in all_of_it) > 24 * MIB


def free_ports(count):
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in opened]
    for one in opened:
        one.close()
    return ports


def joined(nodes, seeds=1):
    """Every node's `stage.py join`, at once: what each said, when all have ended."""
    commit, names = nodes[0].commit(), [f"127.0.0.1:{port}" for port in free_ports(len(nodes))]
    files = json.loads((nodes[0].model / f"snapshot-{commit}.json").read_text())["files"]
    said = {"files": files, "secret": "s3cret", "nodes": names, "seeds": names[:seeds], "grace": 3}
    runs = [
        subprocess.Popen(
            [*node.command("join"), "--stdin"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for node in nodes
    ]  # fmt: skip
    for run, name in zip(runs, names, strict=True):
        run.stdin.write(json.dumps({**said, "me": name}))
        run.stdin.close()
        run.stdin = None
    return [(run.communicate(timeout=60), run.returncode) for run in runs]


def test_nodes_take_it_from_one_that_has_it_and_the_hub_is_not_asked(hub, whole, tmp_path):
    nodes = [Node(hub, tmp_path / name) for name in "abc"]
    nodes[0].like(whole)
    with nodes[0].fetched() as names:
        for (_, err), code in joined(nodes):
            assert (code, err) == (0, "")
    assert names == []
    manifests = {(node.model / f"snapshot-{node.commit()}.json").read_text() for node in nodes}
    assert len(manifests) == 1 and {node.problem() for node in nodes} == {None}
    for node in nodes:
        assert {name: sha256(node.path / name) for name in FILES} == {
            name: sha256(nodes[0].path / name) for name in FILES
        }
    assert json.loads(kept(nodes[1], "excess", "--keep", 1).stdout) == []


@pytest.mark.parametrize("harm", [False, True])
def test_a_node_takes_of_a_new_commit_only_what_it_has_not(hub, older, tmp_path, harm):
    nodes = [Node(hub, tmp_path / name) for name in "ab"]
    for node in nodes:
        other = node.like(older).commit(revision="v1")
    nodes[0].staged()
    shard = nodes[1].model / f"snapshot-{other}" / SHARD
    seen = shard.stat()
    if harm:
        damaged(shard)
        os.utime(shard, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    before = sha256(shard)
    _, ((out, err), code) = joined(nodes)
    assert (code, err) == (0, "") and nodes[1].problem() is None
    assert sha256(nodes[1].path / SHARD) == sha256(hub.root / OPEN / SHARD)
    assert os.path.samefile(nodes[1].path / SHARD, shard) != harm and sha256(shard) == before
    assert ("0.00 GB" in out.splitlines()[-1]) != harm, out


def test_a_file_that_is_wrong_is_taken_from_a_node(hub, whole, tmp_path):
    nodes = [Node(hub, tmp_path / name).like(whole) for name in "ab"]
    damaged(nodes[1].path / SHARD)
    with nodes[0].fetched() as names:
        assert [code for _, code in joined(nodes)] == [0, 0]
    assert names == [] and nodes[1].problem() is None and kept(nodes[1], "verify").returncode == 0


def test_the_only_one_that_has_it_has_it_wrong(hub, whole, tmp_path):
    nodes = [Node(hub, tmp_path / name) for name in "abc"]
    nodes[0].like(whole)
    assert [code for _, code in joined(nodes[:2])] == [0, 0]  # now it has kept the hashes of its pieces
    shard = nodes[0].path / SHARD
    seen = shard.stat()
    damaged(shard)
    os.utime(shard, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    _, ((_, err), code) = joined([nodes[0], nodes[2]])
    assert code == 1 and "sent wrong bytes: run `rackserve stage --verify`" in err
    assert nodes[2].problem() == "not staged yet"


def test_a_snapshot_that_contradicts_the_catalogue_is_not_published(hub, whole, tmp_path):
    nodes = [Node(hub, tmp_path / name) for name in "ab"]
    nodes[0].like(whole)
    command = nodes[1].command
    nodes[1].command = lambda action, **options: command(action, expected={"num_hidden_layers": 9})
    (_, ((_, err), code)) = joined(nodes)
    assert code == 1 and "contradicts the catalogue: num_hidden_layers is 2 there and 9" in err
    assert nodes[1].problem() == "not staged yet"


def test_what_an_earlier_run_left_running_is_ended(hub, whole, tmp_path):
    """Its connection was cut, it did not notice: it waits for a seed, and holds the port."""
    nodes = [Node(hub, tmp_path / name) for name in "ab"]
    nodes[0].like(whole)
    (port,) = free_ports(1)
    files = json.loads((nodes[0].model / f"snapshot-{nodes[0].commit()}.json").read_text())["files"]
    me = f"127.0.0.1:{port}"
    said = {
        "files": files, "secret": "x", "nodes": [me], "seeds": ["127.0.0.1:9"], "me": me, "grace": 30,
    }  # fmt: skip
    left = subprocess.Popen([*nodes[1].command("join"), "--stdin"], stdin=subprocess.PIPE, text=True)
    left.stdin.write(json.dumps(said))
    left.stdin.close()
    deadline = time.monotonic() + 30
    while not (nodes[1].folder / ".spreading").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    assert [code for _, code in joined(nodes)] == [0, 0]
    assert left.wait(timeout=30) != 0 and nodes[1].problem() is None
