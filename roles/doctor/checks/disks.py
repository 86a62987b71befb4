"""Disks: room, and what the weights and the caches are on."""

from __future__ import annotations

from roles.mounts import NETWORK

from ..check import Host, Verdict, check, failed, passed, warned
from ..parse import GiB, mount, size

OURS = ("/opt/rackserve", "/var/lib/rackserve", "/var/cache/rackserve", "/tmp")
LEAST = GiB
FULL = 0.95  # where Ray stops to spill (local_fs_capacity_threshold)


@check(
    "disk.space",
    "Room for the weights, the environment and the caches",
    looks_at="statvfs of our folders, the plan, what is staged",
    fix="rackserve stage --prune 1, or free space on {host}: sudo du -xh / | sort -h | tail",
    reference="vllm#5727",
)
def space(host: Host) -> Verdict | None:
    folders, there = host.get("folders"), host.get("weights") if host.expected.weights else None
    for path in OURS:
        if folders[path]["free"] < LEAST:
            return failed(f"{path}: {size(folders[path]['free'])} free")
    if there is not None:
        lacking, free = host.expected.weights_bytes - there["bytes"], folders[host.expected.weights]["free"]
        if lacking > free:
            return failed(f"{size(lacking)} of weights to come, {size(free)} free")
    least = min(OURS, key=lambda path: folders[path]["free"])
    return passed(f"{size(folders[least]['free'])} free")


@check(
    "disk.full",
    "Ray may spill: no disk is 95 % full",
    looks_at="statvfs of /tmp and /var/lib/rackserve",
    fix="free space on {host}: sudo du -xh /tmp /var | sort -h | tail",
    reference="ROLL#234",
)
def full(host: Host) -> Verdict | None:
    for path in ("/tmp", "/var/lib/rackserve"):
        disk = host.get("folders")[path]
        used = 1 - disk["free"] / disk["size"]
        if used > FULL:
            return warned(f"{path} is {used:.1%} full")
    return passed("none is")


@check(
    "disk.inodes",
    "Inodes are left",
    looks_at="statvfs of our folders",
    fix="remove small files on {host}: sudo du --inodes -x / | sort -n | tail",
    reference="huggingface_hub#3643",
)
def inodes(host: Host) -> Verdict | None:
    rows = {path: host.get("folders")[path] for path in OURS}
    low = [path for path, disk in rows.items() if disk["inodes"] and disk["inodes_free"] < 10_000]
    return failed(f"{low[0]}: {rows[low[0]]['inodes_free']} inodes free") if low else passed("enough")


@check(
    "weights.disk",
    "The weights are on a disk of the node's own",
    looks_at="/proc/self/mounts",
    fix="stage on local flash (weights go from node to node: docs/weights.md), or raise ready_timeout",
    reference="vllm#28821",
)
def weights_disk(host: Host) -> Verdict | None:
    path = host.expected.weights or "/var/lib/rackserve"
    kind, options = mount(host.get("mounts"), host.get("folders")[path]["there"])
    if "ro" in options.split(",") and not host.expected.weights:
        return failed(f"{kind}, read-only", "sudo dmesg | tail; sudo mount -o remount,rw MOUNT")
    return warned(f"on {kind}") if kind in NETWORK else passed(f"on {kind}")


@check(
    "weights.whole",
    "No file of the weights is a broken-off download",
    looks_at="names in the model's folder",
    fix="rackserve stage --verify",
    reference="huggingface_hub#3643",
)
def whole(host: Host) -> Verdict | None:
    if not host.expected.weights:
        return None
    there = host.get("weights")
    if there["broken"]:
        return failed(f"{', '.join(there['broken'][:3])} in {there['folder']}")
    return passed(f"{there['files']} files, {size(there['bytes'])}" if there["files"] else "none staged yet")


@check(
    "cache.disk",
    "Compile caches are on a disk of the node's own",
    looks_at="/proc/self/mounts",
    fix="mount a local disk at /var/cache/rackserve on {host}",
    reference="DSv4-2xSpark#27",
)
def cache_disk(host: Host) -> Verdict | None:
    there = host.get("folders")["/var/cache/rackserve"]["there"]
    kind, _ = mount(host.get("mounts"), there)
    return warned(f"on {kind}: nodes race for them") if kind in NETWORK else passed(f"on {kind}")
