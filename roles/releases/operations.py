"""What is done to a node's releases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from pyinfra import host, logger, state
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.operations.util.files import generate_color_diff

from models.rollout import Release
from roles.files import File

from .facts import INSTALLED, InPlace, Kept


@operation()
def kept(release: Release, files: Sequence[File]) -> Iterator[StringCommand]:
    """A release is on this host, for `put`; nothing that runs is touched."""
    if release.id in host.get_fact(Kept).get(release.replica, {"kept": {}})["kept"]:
        host.noop(f"release {release.id} of {release.replica} is kept")
        return
    if state.config.DIFF:
        _show(host.get_fact(InPlace, replica=release.replica), files)
    rows = [[file.path, file.owner, file.mode, file.secret, file.content] for file in files]
    said = json.dumps({"release": release.as_json(), "files": rows})
    yield _script("keep", release.replica, release.id, stdin=said)


@operation()
def put(replica: str, id: str | None) -> Iterator[StringCommand]:
    """A release in place of what a replica has on this host, which is stopped; None leaves nothing."""
    yield _script("put", replica, id or "-")


@operation()
def proven(release: Release, answer: Callable[[], str]) -> Iterator[StringCommand]:
    """A release was seen to generate `answer`: others may go back to it."""
    yield _script("prove", release.replica, release.id, stdin=answer() if state.is_executing else "")


@operation()
def only(keep: Sequence[str]) -> Iterator[StringCommand]:
    """Nothing is put by of replicas but these."""
    gone = [name for name in host.get_fact(Kept) if name not in keep]
    if not gone:
        host.noop("no release to forget")
        return
    yield _script("forget", *gone)


def _script(verb: str, *words: str, stdin: str | None = None) -> StringCommand:
    more = {} if stdin is None else {"_stdin": stdin}
    return StringCommand("python3", INSTALLED, verb, *map(QuoteString, words), **more)


def _show(now: dict[str, str], files: Sequence[File]) -> None:
    for file in files:
        was = now.get(file.path)
        if file.secret or was == file.content:
            continue
        host.log(f"Will {'create' if was is None else 'modify'} {file.path}")
        for line in generate_color_diff((was or "").splitlines(), file.content.splitlines()):
            logger.info(f"  {line}")
