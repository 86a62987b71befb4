"""Downloads that break off, and a hub that misbehaves: the script with the hub's real client."""

import os
import re
import subprocess
from contextlib import ExitStack

import pytest

from tests.lab.hub_faults import MIB, line
from tests.lab.hub_testing import GATED, KEPT_BYTES, OPEN, READER, SHARD, SHARD_BYTES, running_hub, sha256
from tests.staging import Node, until

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
( until test "$(cat "$disk"/*/.partial-*/.cache/*.incomplete 2>/dev/null | wc -c)" -ge 10485760
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
    assert out.split()[0] == sha256(hub.root / OPEN / SHARD)
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
