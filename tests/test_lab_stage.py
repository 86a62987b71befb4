"""Weights on real nodes: one download, from node to node, proven, and whole whatever happens."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.node import Node
from tests.lab.paths import STATE, USER
from tests.lab.shell import wait_until
from tests.lab.testing import BIN, REPOSITORY, everywhere, pyinfra, rackserve

pytestmark = pytest.mark.lab

TP3 = {"tensor_parallel": 3, "pipeline_parallel": 1}
FOLDER = "/var/lib/rackserve/weights/HuggingFaceTB--SmolLM2-135M-Instruct"
LINK, SHARD = f"{FOLDER}/main", "model-00002-of-00004.safetensors"
LOG = STATE / "hub.log"
NOWHERE = "http://10.77.44.1:9"


@pytest.fixture(scope="module", autouse=True)
def provisioned(lab: list[Node]) -> None:
    assert pyinfra("provision").code == 0


class Asked:
    """What the hub is asked the content of, from here on."""

    def __init__(self) -> None:
        self.start = LOG.stat().st_size

    def times(self, file: str) -> int:
        said = LOG.read_bytes()[self.start :].decode()
        return len(re.findall(rf'"GET /[^ ]*/resolve/[^ ]*/{re.escape(file)} ', said))

    @property
    def shards(self) -> int:
        return self.times(SHARD)


@pytest.fixture
def asked() -> Asked:
    return Asked()


def stage(**data: object) -> None:
    outcome = pyinfra("stage_weights", **{**TP3, **data})
    assert outcome.code == 0, outcome.said


def digests(nodes: list[Node], link: str = LINK) -> set[str]:
    """What the nodes have of a snapshot, its manifest with it; one entry when they have the same."""
    return {*everywhere(nodes, f"cd {link}/ && openssl sha256 -r * ../snapshot-*.json | grep -v README")}


def clear(nodes: list[Node]) -> None:
    everywhere(nodes, f"rm -rf {FOLDER}")


def test_a_node_without_space_is_named_before_the_first_byte(lab: list[Node], asked: Asked) -> None:
    clear(lab)
    lab[2].fill_disk(leave_mib=20)
    try:
        outcome = rackserve("deploy", "stage_weights", "-i", "lab", **TP3)
    finally:
        lab[2].heal()
    (line,) = [line for line in outcome.said.splitlines() if line.startswith("rackserve: ")]
    assert outcome.code == 1 and re.search(r"node3: .* needs 0\.\d+ GB, 0\.\d+ GB free", line), outcome.said
    assert asked.shards == 0


def test_one_download_for_all_nodes(lab: list[Node], asked: Asked) -> None:
    clear(lab)
    done = rackserve("stage", "-i", "lab", **TP3)
    assert done.code == 0 and asked.shards == 1 and len(digests(lab)) == 1
    for name, how in (("node1", "downloaded"), ("node2", "% first-hand"), ("node3", "% first-hand")):
        assert re.search(rf"(?m)^{name} +whole +0\.\d+ GB .* MB/s .*{how}$", done.said), done.said
        assert re.search(rf"(?m)^{name} +HuggingFaceTB/SmolLM2-135M-Instruct +main ", done.said), done.said
    assert pyinfra("stage_weights", **TP3).changed == {}


def test_what_is_where_is_listed(lab: list[Node]) -> None:
    rows = json.loads(rackserve("stage", "--list", "--json", "-i", "lab").said)
    ours = [row for row in rows if row["repository"].endswith("SmolLM2-135M-Instruct")]
    assert [row["host"] for row in ours] == ["node1", "node2", "node3"]
    assert len({row["commit"] for row in ours}) == 1 and {row["problem"] for row in ours} == {None}
    said = rackserve("stage", "--list", "-i", "lab").said
    assert re.search(r"node2 +HuggingFaceTB/SmolLM2-135M-Instruct +main .* verified 20", said)


def test_without_a_hub_a_new_node_is_given_it_and_a_corrupted_shard_is_found_and_taken_from_a_node(
    lab: list[Node], asked: Asked
) -> None:
    # Such as no look at size and time finds.
    lab[1].sudo(
        f"touch -r {LINK}/{SHARD} /tmp/when && "
        f"printf wrong | dd of={LINK}/{SHARD} bs=1 seek=100000 conv=notrunc status=none && "
        f"touch -r /tmp/when {LINK}/{SHARD}"
    )
    assert pyinfra("stage_weights", **TP3).changed == {}
    clear(lab[2:])
    stage(hf_endpoint=NOWHERE)  # node2 gives what it has; node3 finds it wrong
    assert len(digests([lab[0], lab[2]])) == 1
    found = rackserve("stage", "--verify", "-i", "lab")
    assert found.code == 1 and "rackserve: node2: not what was verified" in found.said and SHARD in found.said
    stage(hf_endpoint=NOWHERE)
    assert len(digests(lab)) == 1 and asked.shards == 0
    assert rackserve("stage", "--verify", "-i", "lab").code == 0


@pytest.mark.parametrize("harm", ["controller", "cable and power"])
def test_what_breaks_off_in_the_middle_goes_on_where_it_was(lab: list[Node], asked: Asked, harm: str) -> None:
    clear(lab[1:])  # node1 has it, and gives it to the others
    if not has_it(lab[0]):
        stage(tensor_parallel=1)
    for node in lab[1:]:
        node.slow(200)
    run = begun()
    wait_until(lambda: partial(lab[1]) > 30e6, 60, "some of the snapshot on node2")
    assert lab[1].sudo(f"ls {FOLDER} 2>/dev/null | grep -v commits || true") == ""  # nothing half is seen
    try:
        if harm == "controller":
            run.kill()
        else:
            lab[1].cut()
            wait_until(lambda: has_it(lab[2]), 120, "node3 to have it")
            lab[1].poweroff()
        assert run.wait(timeout=150) != 0  # a cut connection is given up
    finally:
        run.kill()
        for node in lab[1:]:
            node.poweron()
            node.heal()
    before = partial(lab[1])
    started = time.monotonic()
    stage()
    assert time.monotonic() - started < 120
    assert before > 20e6 and asked.shards <= 1
    assert len(digests(lab)) == 1


#: pyinfra, where 12 s are what else is a minute until a connection is given up, and half a minute until
#: the nodes end without one that is silent.
HASTY = """
from pyinfra_cli.main import main
from roles import recall
from roles.weights import operations
recall.SILENCE = operations.GRACE = 12
main()
"""


def begun() -> subprocess.Popen:
    settings = [word for key, value in TP3.items() for word in ("--data", f"{key}={value}")]
    command: list[str | Path] = [
        BIN / "python",
        "-c",
        HASTY,
        "inventories/lab.py",
        "deploys/stage_weights.py",
    ]
    return subprocess.Popen(
        [*command, "-y", *settings], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def has_it(node: Node) -> bool:
    return (node.root / LINK.lstrip("/")).is_symlink()


def partial(node: Node) -> int:
    """Bytes of a snapshot that is not whole yet."""
    folder = node.folder / "disk/upper" / FOLDER.lstrip("/")
    return sum(file.stat().st_blocks * 512 for file in folder.glob(".partial-*/*") if file.is_file())


def test_old_snapshots_are_pruned_and_what_it_frees_is_said(lab: list[Node]) -> None:
    commit = json.loads(lab[0].sudo(f"cat {FOLDER}/snapshot-*.json"))["commit"]
    lab[0].sudo(
        f"cd {FOLDER} && cp -a snapshot-{commit} snapshot-0old && sed s/{commit}/0old/ snapshot-{commit}.json"
        " > snapshot-0old.json && touch -d 2001-01-01 snapshot-0old.json"
    )
    assert pyinfra("stage_weights", **TP3).changed == {}
    dry = rackserve("stage", "--prune", "1", "--dry", "-i", "lab")
    assert dry.code == 0 and "0old" in lab[0].sudo(f"ls {FOLDER}")
    done = rackserve("stage", "--prune", "1", "-i", "lab")
    assert done.code == 0 and re.search(r"snapshot-0old: frees 0\.\d+ GB", done.said)
    assert "0old" not in lab[0].sudo(f"ls {FOLDER}") and len(digests(lab)) == 1


def test_an_environment_made_on_the_head_is_put_on_the_others(lab: list[Node]) -> None:
    lab[0].sudo("rm -rf /srv/env && python3 -m venv /srv/env && mkdir /srv/env/empty")
    lab[0].sudo('touch "/srv/env/größe und form"')
    lab[1].sudo("mkdir -p /srv/env/bin && touch /srv/env/stray")
    outcome = rackserve("spread", "/srv/env", "-i", "lab")
    assert outcome.code == 0, outcome.said
    found = "find . -not -type d -printf %P:%m:%u:%s:%T@:%l\\\\n; find . -type d -printf %P:%m\\\\n"
    seen = {node.sudo(f"cd /srv/env && ({found}) | sort | sha256sum") for node in lab}
    assert len(seen) == 1
    assert "(3," in lab[2].sudo('/srv/env/bin/python -c "import sys, pip; print(sys.version_info[:2])"')
    again = pyinfra("spread", _folders="/srv/env")
    assert (again.code, again.changed) == (0, {})
    assert lab[2].sudo("ls /var/lib/rackserve/weights | grep folder || true") == ""
    for node in lab:
        node.sudo("rm -r /srv/env")


def test_a_folder_that_the_head_has_not_or_that_is_the_systems_is_refused(lab: list[Node]) -> None:
    lab[1].sudo("mkdir -p /srv/only-here && touch /srv/only-here/file")
    outcome = rackserve("spread", "/srv/only-here", "-i", "lab")
    assert outcome.code == 1
    assert "node1: /srv/only-here: there is no such folder to spread" in outcome.said
    assert lab[1].sudo("ls /srv/only-here").strip() == "file"
    lab[1].sudo("rm -r /srv/only-here")
    outcome = rackserve("spread", "/etc/ssh", "-i", "lab")
    assert outcome.code == 2 and "/etc is the system" in outcome.said


FILER, WEIGHTS = "/srv/filer", "/var/lib/rackserve/weights"
CLIENT = f"""
test -e /dev/fuse || mknod /dev/fuse c 10 229
which sshfs >/dev/null || apt-get install -y -qq --no-install-recommends sshfs >/dev/null
test -e /root/.ssh/id || ssh-keygen -q -t ed25519 -N "" -f /root/.ssh/id
mkdir -p {WEIGHTS}
cat /root/.ssh/id.pub
"""


@pytest.fixture
def filer(lab: list[Node]) -> Iterator[None]:
    """A real network file system: a folder of node1's is what node2 and node3 have for their weights."""
    keys = "".join(everywhere(lab[1:], CLIENT)).strip()
    lab[0].sudo(f'rm -rf {FILER} && mkdir {FILER} && echo "{keys}" >> /home/{USER}/.ssh/authorized_keys')
    server = 'sftp_server="/usr/bin/sudo /usr/lib/openssh/sftp-server",StrictHostKeyChecking=no'
    options = f"{server},allow_other,dcache_timeout=3,IdentityFile=/root/.ssh/id"
    everywhere(lab[1:], f"sshfs -o {options} {USER}@{lab[0].address}:{FILER} {WEIGHTS}")
    yield
    everywhere(lab[1:], f"umount {WEIGHTS}")
    lab[0].sudo(f"rm -r {FILER} && sed -i /root@node/d /home/{USER}/.ssh/authorized_keys")


def test_hosts_that_share_a_file_system_have_one_copy_on_it(
    lab: list[Node], filer: None, asked: Asked
) -> None:
    tiny: dict[str, object] = {"model": "tiny-llama", "tensor_parallel": 1, "pipeline_parallel": 3}
    folder, file = "rackserve-lab--tiny-llama", "model.safetensors"
    everywhere(lab, f"rm -rf {WEIGHTS}/{folder}")
    stage(**tiny)
    assert asked.times(file) == 1
    assert lab[0].sudo(f"ls -d {FILER}/{folder}/snapshot-*/{file}").count("snapshot") == 1
    assert len(digests(lab, f"{WEIGHTS}/{folder}/main")) == 1
    outcome = pyinfra("stage_weights", **tiny)
    assert (outcome.code, outcome.changed) == (0, {})
    lab[1].sudo(f"touch {WEIGHTS}/{folder}/main/{file}")
    stage(**tiny)  # node3 may see the old time for a while
    assert rackserve("stage", "--verify", "-i", "lab").code == 0


def test_several_uplinks_share_the_download(lab: list[Node], asked: Asked) -> None:
    clear(lab)
    outcome = pyinfra("stage_weights", **TP3, uplink=True)
    assert outcome.code == 0, outcome.said
    (downloads,) = (hosts for name, hosts in outcome.changed.items() if "Download" in name)
    assert len(downloads) == 3 and asked.shards == 1
    assert len(digests(lab)) == 1
    assert pyinfra("stage_weights", **TP3, uplink=True).changed == {}


def test_a_copy_of_the_folder_does_for_the_hub(lab: list[Node]) -> None:
    if not all(map(has_it, lab)):
        stage()
    asked = Asked()
    lab[0].sudo(f"rm -rf /srv/mirror && mkdir /srv/mirror && cp -a {FOLDER} /srv/mirror/")
    before = digests(lab)
    clear(lab)
    stage(mirror="/srv/mirror", hf_endpoint=NOWHERE)
    assert digests(lab) == before and asked.shards == 0
    clear(lab)
    lab[0].sudo("rm /srv/mirror/*/snapshot-*/config.json")
    outcome = rackserve("deploy", "stage_weights", "-i", "lab", mirror="/srv/mirror", **TP3)
    lab[0].sudo("rm -r /srv/mirror")
    assert outcome.code == 1 and "node1: the mirror /srv/mirror has no" in outcome.said, outcome.said
