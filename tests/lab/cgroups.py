"""A control group of its own for every node.

systemd-nspawn that does not register with the machine's systemd puts each container into
`payload` below the group it was started in. Two nodes started in one group share it, and
their systemds then make, fill and remove the same `system.slice`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from .paths import MARK
from .shell import wait_until


def entering(node: str) -> list[str]:
    """The words before a command that start it in the node's group, which they make."""
    for group in _groups(node):
        group.mkdir(parents=True, exist_ok=True)
    joins = "".join(f"echo $$ > {group}/cgroup.procs && " for group in _groups(node))
    return ["sh", "-c", f'{joins}exec "$@"', "sh"]


def remove(node: str) -> None:
    """Remove the node's group, once its last process is gone."""
    wait_until(lambda: not any(list(map(_is_left, _groups(node)))), 10, f"the control group of {node}")
    for group in _groups(node):
        with suppress(OSError):  # other nodes are still there
            group.parent.rmdir()


def _groups(node: str) -> list[Path]:
    """The node's group where systemd keeps its own: cgroup v2, and v1's name=systemd."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [
        Path(place, MARK, node)
        for _, place, kind, options, *_ in mounts
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(","))
    ]


def _is_left(group: Path) -> bool:
    for folder in (*sorted((g for g in group.rglob("*") if g.is_dir()), reverse=True), group):
        with suppress(OSError):  # busy a moment longer, or never made
            folder.rmdir()
    return group.exists()
