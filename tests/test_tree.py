"""Folders of any kind that travel as weights do: what is in them, packed and put in place."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import InventoryError
from roles.weights.payloads import Payload

SCRIPT = Path(__file__).parents[1] / "roles/weights/node/tree.py"
COMMIT = "snapshot-{}"


@pytest.fixture
def folder(tmp_path):
    """An environment as installers leave it: links, modes, odd names, an empty folder."""
    made = tmp_path / "head/env"
    (made / "bin").mkdir(parents=True)
    (made / "empty").mkdir(mode=0o700)
    (made / "bin/tool").write_text("#!/bin/sh\necho tool\n")
    (made / "bin/tool").chmod(0o755)
    (made / "bin/python").symlink_to("/usr/bin/python3")
    (made / "lib/a b").mkdir(parents=True)
    (made / "lib/a b/größe.py").write_bytes(b"x" * 10_000)
    (made / "lib/none").write_bytes(b"")
    os.utime(made / "lib/none", ns=(1, 1_234_567_890_123_456_789))
    return made


def run(action, folder, *words):
    done = subprocess.run(
        [sys.executable, SCRIPT, action, folder, *words], capture_output=True, text=True, timeout=60
    )
    return done.returncode, (done.stdout or done.stderr).strip()


def digest(folder) -> str:
    return run("digest", folder)[1]


def packed(folder, tmp_path) -> list[str]:
    """The options by which it is found on the node that has it, and on another."""
    where = ["--path", tmp_path / "weights/folder--env/folder"]
    assert run("pack", folder, *where, "--repository", "folder/env", "--commit", digest(folder)) == (0, "")
    return [*where, "--commit", digest(folder)]


def test_a_folder_elsewhere_is_the_same_in_all_that_is_compared(folder, tmp_path):
    options, there = packed(folder, tmp_path), tmp_path / "node/srv/env"
    assert run("unpack", there, *options) == (0, "")
    assert digest(there) == digest(folder) and len(digest(folder)) == 40
    assert subprocess.run([there / "bin/tool"], capture_output=True).stdout == b"tool\n"
    assert os.readlink(there / "bin/python") == "/usr/bin/python3"
    assert (there / "lib/a b/größe.py").read_bytes() == b"x" * 10_000
    assert sorted(path.name for path in there.parent.iterdir()) == ["env"]


@pytest.mark.parametrize("change", ["content", "mode", "link", "gone", "more", "empty folder"])
def test_any_change_of_a_folder_is_seen(folder, change):
    before = digest(folder)
    if change == "content":
        (folder / "bin/tool").write_text("#!/bin/sh\necho fool\n")
    elif change == "mode":
        (folder / "bin/tool").chmod(0o700)
    elif change == "link":
        (folder / "bin/python").unlink()
        (folder / "bin/python").symlink_to("/usr/bin/python4")
    elif change == "gone":
        (folder / "lib/none").unlink()
    elif change == "more":
        (folder / "lib/more").write_text("")
    else:
        (folder / "empty").rmdir()
    assert digest(folder) != before


def test_what_was_there_is_replaced_as_a_whole(folder, tmp_path):
    options, there = packed(folder, tmp_path), tmp_path / "node/env"
    (there / "old").mkdir(parents=True)
    (there.parent / ".env.new/half").mkdir(parents=True)  # of a run that was killed
    assert run("unpack", there, *options) == (0, "")
    assert digest(there) == digest(folder)


def test_a_link_to_a_folder_stays_and_a_file_is_not_replaced(folder, tmp_path):
    options, there, disk = packed(folder, tmp_path), tmp_path / "node/env", tmp_path / "disk/env"
    disk.mkdir(parents=True)
    there.parent.mkdir()
    there.symlink_to(disk)
    for _ in range(2):
        assert run("unpack", there, *options) == (0, "")
    assert there.is_symlink() and digest(disk) == digest(folder)
    assert os.listdir(there.parent) == os.listdir(disk.parent) == ["env"]
    there.unlink()
    there.write_text("mine")
    assert run("unpack", there, *options) == (1, f"{there} is no folder: move it away first")
    assert there.read_text() == "mine"


def test_a_socket_is_left_out(folder, tmp_path):
    before = digest(folder)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "s"))
    assert digest(folder) == before
    assert run("unpack", tmp_path / "node/env", *packed(folder, tmp_path)) == (0, "")
    assert digest(tmp_path / "node/env") == before


def test_the_archive_of_a_folder_is_the_same_each_time_and_has_a_manifest(folder, tmp_path):
    packed(folder, tmp_path / "one")
    packed(folder, tmp_path / "two")
    (one, two) = (next((tmp_path / name).rglob("snapshot-*.json")).read_text() for name in ("one", "two"))
    assert one == two and json.loads(one)["files"]["folder.tar"]["size"] > 10_000


def test_a_folder_that_changed_since_it_was_looked_at_is_not_published(folder, tmp_path):
    before = digest(folder)
    (folder / "bin/tool").write_text("other")
    options = ["--path", tmp_path / "weights/env/folder", "--repository", "r", "--commit", before]
    code, said = run("pack", folder, *options)
    assert code == 1 and said == f"{folder} changed while it was packed; run it again"
    assert not list(tmp_path.rglob("snapshot-*"))


def test_what_went_round_is_dropped_and_the_folder_stays(folder, tmp_path):
    options = packed(folder, tmp_path)
    assert run("drop", folder, *options[:2]) == (0, "")
    assert not (tmp_path / "weights/folder--env").exists() and digest(folder)


def test_a_folder_that_is_not_there_has_no_digest(tmp_path):
    assert run("digest", tmp_path / "absent") == (0, "")


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("srv/wheels", "by its whole path"),
        ("/srv", "not one of the top"),
        ("/", "not one of the top"),
        ("/srv/../etc/ssh", "by its whole path"),
        ("/etc/ssh", "/etc is the system's"),
        ("/usr/local", "/usr is the system's"),
        ("/var/lib", "holds the weights"),
        ("/var/lib/rackserve/weights", "holds the weights"),
    ],
)
def test_folders_that_each_host_keeps_its_own_of_are_refused(folder, why):
    with pytest.raises(InventoryError, match=why):
        Payload(folder)
