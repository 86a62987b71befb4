"""Staging from a copy of the weights folder: on the node, on a web server, in a store that speaks S3."""

import functools
import http.server
import json
import os
import shutil
import socket
import threading
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from tests.lab.hub_faults import MIB, line, spoiled
from tests.lab.hub_testing import OPEN, SHARD, SHARD_BYTES, running_hub, sha256
from tests.lab.mirrors import BUCKET, Copy, served, stored
from tests.staging import FILES, Node, until

ODD = "lab/odd"
ODD_FILES = ["config.json", "poids é 1.safetensors", "a b#c%20?.txt", "extra/[x] *.json", "ünder/~&=+.txt",
             ".cache/huggingface/notes.metadata"]  # fmt: skip
BESIDE = 64 * 1024  # what is sent beside the shard
KINDS = ["folder", "web", "s3"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        for name in ODD_FILES:
            path = hub.root / ODD / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"num_hidden_layers": 2}' if name == "config.json" else name)
        yield hub


@pytest.fixture(scope="module")
def origin(hub, tmp_path_factory):
    """A node that staged from the hub: its folder is what is copied."""
    node = Node(hub, tmp_path_factory.mktemp("origin"))
    for repository in (OPEN, ODD):
        node.at(repository)("resolve", repository=repository)
        node.at(repository).staged(repository=repository)
    return node


@pytest.fixture(scope="module")
def web(origin):
    with served(origin.folder) as copy:
        yield copy


@pytest.fixture(scope="module")
def s3(origin, tmp_path_factory):
    with stored(origin.folder, tmp_path_factory.mktemp("s3") / "log") as (copy, client):
        copy.client = client
        yield copy


@pytest.fixture
def copy(request, origin):
    if request.param == "folder":
        return Copy(str(origin.folder))
    return request.getfixturevalue(request.param)


@pytest.fixture
def node(hub, tmp_path):
    return Node(hub, tmp_path / "node")


@pytest.fixture
def spare(origin, tmp_path):
    """A copy of one's own to harm."""
    shutil.copytree(origin.folder, tmp_path / "spare", symlinks=True)
    return tmp_path / "spare"


def nowhere():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def digests(folder):
    return {name: sha256(folder / name) for name in FILES}


@pytest.mark.parametrize("copy", KINDS, indirect=True)
@pytest.mark.parametrize("repository", [OPEN, ODD])
def test_a_node_has_from_a_mirror_what_it_would_have_from_the_hub(node, origin, copy, repository):
    node, origin = node.at(repository), origin.at(repository)
    how = {"repository": repository, "said": copy.said, "endpoint": nowhere()}
    assert node("resolve", **how) == (True, "", "")
    records = [one.model / "commits" / "main" for one in (node, origin)]
    assert records[0].read_text() == records[1].read_text()
    node.staged(**how)
    assert node.problem(repository=repository) is None
    manifests = [one.model / f"snapshot-{node.commit(repository)}.json" for one in (node, origin)]
    assert manifests[0].read_text() == manifests[1].read_text()
    for name in json.loads(manifests[0].read_text())["files"]:
        assert sha256(node.path / name) == sha256(node.hub.root / repository / name)
    secrets = [value for name, value in copy.options.items() if name.endswith("key")]
    small = [path.read_bytes() for path in node.folder.rglob("*") if path.is_file() and path.name != SHARD]
    assert not any(secret.encode() in text for secret in secrets for text in small)


@pytest.mark.parametrize("copy", ["web", "s3"], indirect=True)
def test_a_transfer_that_was_killed_goes_on_where_it_was(node, origin, copy):
    with (
        line(copy.port, 11 * MIB) as stalls,
        node.running("fetch", said=copy.by(stalls.port).said) as fetching,
    ):
        stalls.wait()
        until(lambda: node.incomplete and node.incomplete[0] >= 9 * MIB, "what came is on the disk")
        fetching.kill()
    assert node.shown() == []
    (had,) = node.incomplete
    with line(copy.port) as counts:
        node.staged(said=copy.by(counts.port).said)
    assert counts.sent < SHARD_BYTES - had + BESIDE
    assert digests(node.path) == digests(origin.path)


def test_a_line_that_is_cut_is_got_over_in_the_same_run(node, origin, web):
    with line(web.port, 11 * MIB) as cuts:
        cuts.release()
        node.staged(said=web.by(cuts.port).said)
    assert digests(node.path) == digests(origin.path)


def test_a_mirror_that_is_down_is_named(node):
    where = nowhere()
    for action in ("resolve", "fetch"):
        said = node.refused(action, said={"mirror": where})
        assert said.startswith(f"the mirror {where}: ") and said.endswith("; run it again")


@pytest.mark.parametrize("kind", ["folder", "web"])
@pytest.mark.parametrize("name", ["config.json", SHARD])
def test_wrong_bytes_are_found_and_never_published(node, spare, kind, name):
    file = spare / f"lab--open/snapshot-{node.commit()}/{name}"
    with file.open("r+b") as opened:
        opened.write(b"wrong")
    with served(spare) as web:
        copy = web if kind == "web" else Copy(str(spare))
        said = node.refused("fetch", said=copy.said)
    assert said == (f"{name} as the mirror {copy.address} sends it has another checksum; copy it there again")
    assert node.shown() == []


def test_wrong_bytes_in_a_store_are_found(node, s3):
    key = f"the copy/lab--open/snapshot-{node.commit()}/config.json"
    right = s3.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    s3.client.put_object(Bucket=BUCKET, Key=key, Body=right.replace(b"2", b"3"))
    try:
        said = node.refused("fetch", said=s3.said)
    finally:
        s3.client.put_object(Bucket=BUCKET, Key=key, Body=right)
    assert said.startswith("config.json as the mirror s3://weights/the copy sends it")


@pytest.mark.parametrize("size", ["short", "long"])
def test_a_file_of_another_length_is_not_even_begun(node, spare, size):
    path = f"lab--open/snapshot-{node.commit()}/{SHARD}"
    os.truncate(spare / path, SHARD_BYTES + (-1 if size == "short" else 1))
    said = node.refused("fetch", said={"mirror": str(spare)})
    assert said.startswith(f"the mirror {spare}: {path} has 251658") and node.incomplete in ([], [0])


def test_a_range_that_ends_early_is_asked_for_again(node, origin, web):
    def cut(path, answer):
        if answer.status == 206:
            answer.body = answer.body[: 12 * MIB]

    node.begun(SHARD, (origin.path / SHARD).read_bytes()[:MIB])
    with spoiled(web.port, cut) as address:
        node.staged(said={"mirror": f"{address}/copy"})
    assert digests(node.path) == digests(origin.path)


class Plain(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_web_server_without_ranges_will_do(node, origin):
    node.begun(SHARD, b"x" * MIB)
    handler = functools.partial(Plain, directory=str(origin.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        node.staged(said={"mirror": f"http://127.0.0.1:{server.server_address[1]}"})
        server.shutdown()
    assert digests(node.path) == digests(origin.path)


@pytest.mark.parametrize("copy", KINDS, indirect=True)
def test_what_a_mirror_has_not_is_named(node, copy):
    todo = "copy the whole folder of the model there, or stage from the hub"
    for action, missing in {"resolve": "commits/v9", "fetch": f"snapshot-{'0' * 40}.json"}.items():
        there = {"path": node.path.with_name("v9"), "revision": "v9", "commit": "0" * 40}
        said = node.refused(action, said=copy.said, **there)
        assert said == f"the mirror {copy.address} has no lab--open/{missing}: {todo}"


def test_a_file_that_a_mirror_lacks_is_named_and_the_others_are_kept(node, spare):
    snapshot = spare / f"lab--open/snapshot-{node.commit()}"
    aside = (snapshot / SHARD).rename(spare / "aside")
    said = node.refused("fetch", said={"mirror": str(spare)})
    assert said.startswith(f"the mirror {spare} has no {(snapshot / SHARD).relative_to(spare)}: ")
    assert node.shown() == []
    aside.rename(snapshot / SHARD)
    (snapshot / "config.json").unlink()
    node.staged(said={"mirror": str(spare)})


@pytest.mark.parametrize(
    "text", ["", '{"files": ', '{"files": {"a": 1}}', '{"files": {"../../x": {"size": 1, "sha256": "0"}}}']
)
def test_a_manifest_that_is_torn_or_worse_is_refused(node, spare, text):
    (spare / f"lab--open/snapshot-{node.commit()}.json").write_text(text)
    (spare / "lab--open/commits/main").write_text("<html>")
    said = node.refused("fetch", said={"mirror": str(spare)})
    assert str(spare) in said and ("is torn" in said or "'../../x' is no name" in said)
    assert "commits/main names no commit" in node.refused("resolve", said={"mirror": str(spare)})


@pytest.mark.parametrize(
    "harm", [{"secret_access_key": "wr0ng"}, {"access_key_id": "AKIAN0BODY"}, None], ids=["key", "id", "none"]
)
@pytest.mark.parametrize("action", ["resolve", "fetch"])
def test_keys_that_a_store_does_not_accept(node, s3, harm, action):
    options = {**s3.options, **(harm or {})}
    if harm is None:
        options = {name: value for name, value in options.items() if "access_key" not in name}
    said = node.refused(action, said={**s3.said, "mirror_options": options})
    assert said.startswith(f"the mirror {s3.address} refuses lab--open/")
    assert said.endswith("correct mirror_options")


def test_a_web_server_that_asks_for_a_password(node, origin):
    login = {"username": "us", "password": "pässword"}
    with served(origin.folder, ":".join(login.values())) as web:
        said = node.refused("fetch", said={**web.said, "mirror_options": {**login, "password": "other"}})
        assert said.startswith(f"the mirror {web.address} refuses ")
        node.staged(said={**web.said, "mirror_options": login})
        with_it = web.address.replace("//", "//us:pa55@")
        said = node.refused("fetch", said={"mirror": with_it})
    assert said == "the mirror's address holds credentials: give them as mirror_options"


@pytest.mark.parametrize(
    ("address", "options", "expected"),
    [
        ("s3://weights", {"endpiont": "x"}, "'endpiont' is not valid"),
        ("s3://weights", {"skip_signature": "perhaps"}, 'failed to parse "perhaps" as boolean'),
        ("http://mirror", {"region": "eu"}, "region is none of a web server's"),
        ("/no/such/folder", {}, "is no folder here, nor http(s)://... or s3://..."),
        ("ftp://mirror/x", {}, "is no folder here, nor http(s)://... or s3://..."),
    ],
)
def test_an_address_or_option_that_cannot_be_is_named(node, address, options, expected):
    assert expected in node.refused("resolve", said={"mirror": address, "mirror_options": options})


@pytest.fixture
def carried(hub, tmp_path):
    """A snapshot in the hub's own cache: links to blobs elsewhere, as a user may carry it on a disk."""
    there = snapshot_download(OPEN, endpoint=hub.url, token=False, cache_dir=tmp_path / "disk")
    assert (Path(there) / SHARD).is_symlink()
    return Path(there)


def test_a_folder_that_is_a_snapshot_is_taken_as_it_is(node, origin, carried, tmp_path):
    nodes = [node, Node(node.hub, tmp_path / "other")]
    said = {"mirror": str(carried)}
    for one in nodes:
        assert one("resolve", said=said) == (True, "", "")
    first, other = ((one.model / "commits/main").read_text() for one in nodes)
    commit, size = first.split()
    assert first == other and len(commit) == 40
    assert int(size) == sum(path.stat().st_size for path in carried.rglob("*") if path.is_file())
    shutil.rmtree(nodes[1].model)  # a host that did not resolve it
    for one in nodes:
        one.staged(said=said, commit=commit)
        assert one.problem(commit=commit) is None
        assert digests(one.path) == digests(origin.path)


def test_a_folder_that_changed_since_it_was_resolved_is_not_taken(node, carried):
    said = {"mirror": str(carried)}
    node("resolve", said=said)
    commit = (node.model / "commits/main").read_text().split()[0]
    (carried / "config.json").unlink()
    (carried / "config.json").write_text('{"num_hidden_layers":2 }')
    assert "config.json as the mirror" in node.refused("fetch", said=said, commit=commit)
    shutil.rmtree(node.model)
    assert "is not what was resolved before" in node.refused("fetch", said=said, commit=commit)


def test_a_folder_with_a_link_to_a_folder_is_refused_for_its_files_would_be_missing(node, carried, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (carried / "more").symlink_to(tmp_path / "elsewhere")
    said = node.refused("resolve", said={"mirror": str(carried)})
    assert said == (f"the mirror {carried}: more is a link to a folder; copy with links followed (rsync -L)")


def test_a_folder_whose_links_lead_nowhere_says_how_to_copy_it(node, carried):
    (carried / SHARD).resolve().unlink()
    said = node.refused("resolve", said={"mirror": str(carried)})
    assert said == (
        f"the mirror {carried}: {SHARD} is a link to nothing; copy with links followed (rsync -L)"
    )
