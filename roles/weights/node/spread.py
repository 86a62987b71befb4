"""Runs on a node, beside stage.py: a snapshot goes from the nodes that have it to those that have not."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import snapshots
import swarm
from progress import Progress, done

#: Bytes a second at which a seed reads all, on a slow disk, when it has not kept the hashes of the pieces:
#: so long others have to wait for it.
READING = 200e6


def join(
    link: Path, repository: str, commit: str, expected: Mapping[str, Any], said: Mapping[str, Any]
) -> None:
    """Take part until every node has it, or is gone.

    `said` is what all nodes are told: `files` of the manifest, `secret`, `nodes` and `seeds` as
    host:port, for how many seconds (`grace`) a silent node is waited for; and `me`. Where no seed has
    all of it, each is told the `names` of the files that it has.
    """
    files = said["files"]
    final = snapshots.place(link, commit)
    given = [(name, file["size"], file["sha256"]) for name, file in sorted(files.items())]
    who = {"me": said["me"], "nodes": said["nodes"], "seeds": said["seeds"]}
    how = {
        "secret": said["secret"].encode(), "grace": said["grace"], "on_progress": Progress(),
        "patience": 600 + sum(size for _, size, _ in given) / READING,
    }  # fmt: skip
    try:
        _end_earlier(link.parent.parent / ".spreading")
        names = said.get("names")
        if said["me"] in said["seeds"] and names is None:
            known = _known(final, swarm.Manifest(given, commit)) or swarm.make(final, given, commit)
            _keep(final, known)
            swarm.run(final, known, **who, **how)
            return
        partial = snapshots.begun(link, commit, {name: file["sha256"] for name, file in files.items()})
        for name in snapshots.differing(partial, snapshots.linked(partial, files)):
            (partial / name).unlink()
        snapshots.check_space(partial, {name: file["size"] for name, file in files.items()})
        pieces = swarm.Manifest(given, commit)
        if names is not None:
            pieces = swarm.make(partial, given, commit, names)

        def proven() -> None:
            if expected:
                snapshots.check_config(partial, expected)
            snapshots.publish(link, repository, commit, files)
            _keep(final, pieces)

        stats = swarm.run(partial, pieces, **who, **how, on_proven=proven)
    except swarm.SwarmError as error:
        raise snapshots.StageError(f"{repository}: {error}; run it again") from None
    for name, why in stats.dropped.items():
        print(f"{name} was not used any more: {why}", flush=True)
    came = stats.from_seeds + stats.from_nodes
    first_hand = f"{100 * stats.from_seeds // came} % first-hand" if came else "all was here"
    print(done(came, stats.seconds, first_hand), flush=True)


def _end_earlier(file: Path) -> None:
    """End what an earlier run left here when its connection was cut: it would keep the port.

    The file is locked until this process ends.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    running = file.open("a+")
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        running.seek(0)
        with suppress(ValueError, ProcessLookupError):
            os.kill(int(running.read()), signal.SIGTERM)
        time.sleep(0.1)
    running.truncate(0)
    running.write(str(os.getpid()))
    running.flush()
    _open.append(running)


_open: list[Any] = []


def _pieces(final: Path) -> Path:
    return final.with_name(f"{final.name}.pieces")


def _known(final: Path, manifest: swarm.Manifest) -> swarm.Manifest | None:
    """The manifest with the hashes of its pieces, if they were kept; reading all again takes long."""
    try:
        name, hashes = _pieces(final).read_bytes().split(b"\n", 1)
    except (FileNotFoundError, ValueError):
        return None
    if name.decode() != manifest.name or len(hashes) != 32 * len(manifest.hashes):
        return None
    manifest.hashes = [hashes[at : at + 32] for at in range(0, len(hashes), 32)]
    return manifest


def _keep(final: Path, manifest: swarm.Manifest) -> None:
    _pieces(final).write_bytes(manifest.name.encode() + b"\n" + b"".join(manifest.hashes))
