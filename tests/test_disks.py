"""What follows from the disks that hold the weights."""

import subprocess

import pytest

from roles.weights.disks import copies, load_strategy
from roles.weights.facts import Disk, DiskOf

GB = 10**9
LOCAL = Disk("ext4", "/dev/nvme0n1p1/rackserve/weights", memory=1000 * GB)
SPINNING = LOCAL._replace(rotates=True)
NFS = Disk("nfs4", "filer:/export/weights", memory=1000 * GB)
OTHER = Disk("nfs4", "filer:/export/old/weights", memory=1000 * GB)
WEKA = Disk("wekafs", "default/weights", memory=1000 * GB)


def read(path) -> Disk:
    command = DiskOf().command(str(path))
    done = subprocess.run(command, shell=True, check=True, capture_output=True, text=True)
    return DiskOf().process(done.stdout.splitlines())


def test_what_a_path_is_on_is_what_its_nearest_folder_is_on(tmp_path):
    disk = read(tmp_path)
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True).stdout
    assert disk.kind[:3] in kind and disk.memory > 10**8
    below = read(tmp_path / "not/there")
    assert below == disk._replace(place=f"{disk.place}/not/there")
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_another_file_system_is_followed(tmp_path):
    (tmp_path / "link").symlink_to("/dev/shm")
    disk = read(tmp_path / "link/weights")
    assert (disk.kind, disk.place.endswith("/weights")) == ("tmpfs", True)


def test_spaces_in_the_name_of_a_mount_are_read(tmp_path):
    lines = ["MemTotal:  2 kB", "nfs4", r"filer:/my\x20export", r"/mnt/my\x20disk", "/mnt/my disk/a/b", "0"]
    assert DiskOf().process(lines) == Disk("nfs4", r"filer:/my\x20export/a/b", False, 2048)


def test_hosts_that_share_a_file_system_use_the_first_ones_copy():
    on = {"a": NFS, "b": LOCAL, "c": NFS, "d": LOCAL, "e": OTHER}
    assert copies(on) == {"a": "a", "b": "b", "c": "a", "d": "d", "e": "e"}


@pytest.mark.parametrize(
    ("disks", "size", "read_ahead"),
    [
        ([LOCAL, LOCAL], 140 * GB, False),
        ([NFS, NFS], 140 * GB, False),  # vLLM does that by itself
        ([WEKA, WEKA], 140 * GB, True),
        ([LOCAL, SPINNING], 140 * GB, True),
        ([WEKA], 901 * GB, False),  # what does not fit would be read twice
    ],
)
def test_files_are_read_ahead_where_jumping_is_slow_and_they_fit(disks, size, read_ahead):
    found = load_strategy({str(number): disk for number, disk in enumerate(disks)}, size)
    assert found == ({"safetensors-load-strategy": "prefetch"} if read_ahead else {})
