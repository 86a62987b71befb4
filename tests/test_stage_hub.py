"""Downloads that break off, and a hub that misbehaves: the script with the hub's real client."""

import os
import re
import shutil
import subprocess
from contextlib import ExitStack

import pytest

from tests.lab.hub_faults import MIB, line, spoiled
from tests.lab.hub_testing import (
    GATED,
    KEPT_BYTES,
    OPEN,
    READER,
    SHARD,
    SHARD_BYTES,
    make_model,
    running_hub,
    sha256,
)
from tests.staging import FILES, Node, until

WIDE, SHARDS = "lab/wide", [f"model-{number}.safetensors" for number in range(4)]
BESIDE = MIB // 4  # what the hub sends beside the shards


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        (hub.root / WIDE).mkdir()
        (hub.root / WIDE / "config.json").write_text('{"num_hidden_layers": 2}')
        for name in SHARDS:
            (hub.root / WIDE / name).write_bytes(os.urandom(12 * MIB))
        yield hub


@pytest.fixture
def node(hub, tmp_path):
    return Node(hub, tmp_path)


def is_whole(node, repository=OPEN, **options):
    names = [path.name for path in (node.hub.root / repository).iterdir() if path.is_file()]
    visible = [name for name in names if not name.startswith(".")]
    same = all(sha256(node.path / name) == sha256(node.hub.root / repository / name) for name in visible)
    return same and node.problem(repository=repository, **options) is None


def killed(node, kept, **options):
    """A fetch of which no more comes in the middle, killed when so much of each file is on the disk."""
    with (
        line(node.hub.port, 11 * MIB) as stalls,
        node.running("fetch", endpoint=stalls.url, **options) as fetching,
    ):
        stalls.wait(len(kept))
        until(lambda: node.incomplete == kept, "what came is on the disk")
        fetching.kill()


def test_a_killed_download_goes_on_in_the_middle_of_each_file(node, hub):
    killed(node, [KEPT_BYTES] * len(SHARDS), repository=WIDE)
    assert node.shown() == [] and node.problem(repository=WIDE) == "not staged yet"
    with line(hub.port) as counts:
        node.staged(repository=WIDE, endpoint=counts.url)
    assert counts.sent < 4 * 2 * MIB + BESIDE
    assert is_whole(node, WIDE) and node.incomplete == []


def test_downloads_killed_again_and_again_end_and_pile_nothing_up(node):
    killed(node, [KEPT_BYTES])
    killed(node, [2 * KEPT_BYTES])
    node.staged()
    assert is_whole(node)


def test_a_hub_that_goes_down_and_comes_back(node, hub):
    with ExitStack() as up:
        stalls = up.enter_context(line(hub.port, 11 * MIB))
        with node.running("fetch", endpoint=stalls.url) as fetching:
            stalls.wait()
            up.close()
            _, err = fetching.communicate(timeout=30)
    (said,) = err.splitlines()
    assert said.startswith(f"{OPEN}: download broke off: ") and said.endswith("; run it again")
    with line(hub.port, port=stalls.port) as back:
        node.staged(endpoint=back.url)
    assert back.sent < SHARD_BYTES - KEPT_BYTES + BESIDE
    assert is_whole(node)


def test_a_token_that_expires_in_the_middle(node, hub):
    tokens = hub.root.parent / "tokens"
    good = tokens.read_text()
    options = {"repository": GATED, "token": READER}
    with (
        line(hub.port, 11 * MIB) as stalls,
        node.running("fetch", endpoint=stalls.url, **options) as fetching,
    ):
        stalls.wait()
        try:
            tokens.write_text(good.replace(READER, "hf_another"))
            stalls.release()
            _, err = fetching.communicate(timeout=30)
        finally:
            tokens.write_text(good)
    assert err == f"the hub at {stalls.url} does not know this token: correct HF_TOKEN\n"
    with line(hub.port) as counts:
        node.staged(endpoint=counts.url, **options)
    assert counts.sent < SHARD_BYTES - KEPT_BYTES + BESIDE
    assert is_whole(node, GATED)


#: A small disk of their own for two runs; it is full in the middle of the first, then there is room again.
SMALL_DISK = """
disk=$1 full=$2; shift 2
mount -t tmpfs -o size=40M none "$disk" || exit 9
( until test "$(cat "$disk"/*/.partial-*/.rackserve/*.incomplete 2>/dev/null | wc -c)" -ge 10485760
  do sleep 0.05; done
  head -c 100M /dev/zero > "$disk/filler" 2>/dev/null; touch "$full" ) &
"$@" && exit 8
rm "$disk/filler"
"$@" && cat "$disk"/lab--open/main/*.safetensors | sha256sum
"""


def test_a_disk_that_is_full_in_the_middle_and_freed(node, hub, tmp_path):
    full = tmp_path / "full"
    node = Node(hub, tmp_path / "disk")
    node.folder.mkdir()
    asked = hub.log.stat().st_size
    with line(hub.port, 11 * MIB) as stalls:
        own = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
        within = [*own, "sh", "-c", SMALL_DISK, "sh", node.folder, full]
        with node.running("fetch", within=within, endpoint=stalls.url) as fetching:
            stalls.wait()
            until(full.exists, "the disk is full")
            stalls.release()
            out, err = fetching.communicate(timeout=30)
    assert err == f"{node.path.parent}: the disk is full; {OPEN} does not fit\n"
    assert out.splitlines()[-1].split()[0] == sha256(hub.root / OPEN / SHARD)
    first, *others = re.findall(rf'/{SHARD} .* range="(.*)"', hub.log.read_text()[asked:])
    assert first == "-" and len(others) > 1
    assert all(int(re.search(r"\d+", other)[0]) >= KEPT_BYTES for other in others)


def test_a_file_above_what_http_gives_at_once_is_asked_for_in_parts(node, hub):
    python, script, *words = node.command("fetch")
    lower = "import sys; sys.path.insert(0, sys.argv.pop(1)); import hub, stage; hub.LONGEST = 10 ** 7"
    command = [python, "-c", f"{lower}; stage.main()", os.path.dirname(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=node.environment)
    assert done.returncode == 0 and is_whole(node), done.stderr
    log = hub.log.read_text()
    assert 'range="bytes=0-9999999"' in log and 'range="bytes=20000000-"' in log


@pytest.mark.parametrize("name", ["config.json", SHARD])
@pytest.mark.parametrize("times", [1, 9])
def test_wrong_bytes_of_the_right_length_are_fetched_again_and_never_published(node, hub, name, times):
    sent = []

    def spoil(path, answer):
        if path.endswith(f"/{name}") and len(sent) < times:
            sent.append(path)
            answer.body = bytes(len(answer.body))

    with spoiled(hub.port, spoil) as address:
        if times == 1:
            assert is_whole(node.staged(endpoint=address))
            return
        said = node.refused("fetch", endpoint=address)
    assert said == f"{name} as the hub at {address} sends it has another checksum; run it again"
    assert len(sent) == 2 and node.shown() == []
    assert is_whole(node.staged())


@pytest.mark.parametrize("declared", [True, False])
def test_an_answer_that_ends_early_is_asked_for_the_rest(node, hub, declared):
    def cut(path, answer):
        if not path.endswith(SHARD):
            return
        answer.body = answer.body[: 12 * MIB]
        if declared and answer.status == 206:
            first = int(re.search(r"\d+", answer.headers["Content-Range"])[0])
            answer.headers["Content-Range"] = f"bytes {first}-{first + len(answer.body) - 1}/{SHARD_BYTES}"

    with spoiled(hub.port, cut) as address:
        assert is_whole(node.staged(endpoint=address))


def test_a_hub_that_stumbles_is_asked_again(node, hub):
    answers = iter([502])

    def stumble(path, answer):
        if path.endswith("notes.txt"):
            answer.status = next(answers, answer.status)

    with spoiled(hub.port, stumble) as address:
        assert is_whole(node.staged(endpoint=address))


def test_a_revision_that_moves_does_not_move_what_was_begun(hub, tmp_path):
    node, model = Node(hub, tmp_path).at("lab/moving"), hub.root / "lab/moving"
    make_model(model)
    node("resolve", repository="lab/moving")
    commit = (node.model / "commits/main").read_text().split()[0]
    killed(node, [KEPT_BYTES], repository="lab/moving")
    before = {name: sha256(model / name) for name in FILES}
    shutil.copytree(model, model / ".revisions/before")
    (model / SHARD).write_bytes(os.urandom(MIB))
    assert node.commit("lab/moving") != commit
    node.staged(repository="lab/moving", commit=commit)
    assert {name: sha256(node.path / name) for name in FILES} == before
    assert node.problem(repository="lab/moving", commit=commit) is None


def test_many_small_files(hub, tmp_path):
    """A thousand, not five, by the hub's client: it needs 5 ms for each."""
    folder = hub.root / "lab/many"
    names = ["config.json", *(f"part {number % 20}/{number}.txt" for number in range(1000))]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"num_hidden_layers": 2}' if name == "config.json" else name)
    node = Node(hub, tmp_path).at("lab/many").staged(repository="lab/many")
    assert all((node.path / name).read_text() == (folder / name).read_text() for name in names)
    with node.fetched() as asked:
        node.staged(repository="lab/many")
    assert asked == []


@pytest.mark.parametrize("ends", ["done", "killed"])
def test_of_two_stagings_at_once_one_waits_for_the_other(node, hub, ends):
    with line(hub.port, 11 * MIB) as stalls, node.running("fetch", endpoint=stalls.url) as first:
        stalls.wait()
        until(lambda: node.incomplete == [KEPT_BYTES], "what came is on the disk")
        with line(hub.port) as counts, node.running("fetch", endpoint=counts.url) as other:
            there = f"waiting for process {first.pid} on {os.uname().nodename}, which fetches the same\n"
            assert other.stdout.readline() == there
            first.kill() if ends == "killed" else stalls.release()
            assert other.wait(timeout=30) == 0, other.stderr.read()
            assert first.wait(timeout=30) == (-9 if ends == "killed" else 0)
    assert is_whole(node) and list(node.model.glob(".*")) == []
    assert counts.sent < (SHARD_BYTES - KEPT_BYTES if ends == "killed" else 0) + BESIDE
