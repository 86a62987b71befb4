"""What is done to a node's releases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from pyinfra import host, logger, state
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.operations.util.files import generate_color_diff

from models.release import Release
from roles import remote
from roles.files import File

from .facts import INSTALLED, InPlace, Kept, Trials


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
def unchanged(installed: Mapping[str, str]) -> Iterator[StringCommand]:
    """What is in place here ({replica: release}) is what the run was planned for; changes nothing.

    Between the plan and the lock another run may have been at work.
    """
    now = {name: its["installed"] for name, its in host.get_fact(Kept).items()} if state.is_executing else {}
    names = sorted({*now, *installed}) if state.is_executing else []
    changed = ", ".join(name for name in names if now.get(name) != installed.get(name))
    if changed:
        yield remote.failure(host, f"another run changed {changed} since this one was planned: run it again")
        return
    host.noop("as planned for")


@operation()
def put(replica: str, id: str | None) -> Iterator[StringCommand]:
    """A release in place of what a replica has on this host, which is stopped; None leaves nothing."""
    yield _script("put", replica, id or "-")


@operation()
def untried() -> Iterator[StringCommand]:
    """No release of a trial is kept on this host."""
    if not (folders := host.get_fact(Trials)):
        host.noop("no release of a trial is kept")
        return
    yield StringCommand("rm", "-rf", *map(QuoteString, folders))


@operation()
def proven(release: Release, answer: Callable[[], str]) -> Iterator[StringCommand]:
    """A release was seen to generate `answer`: others may go back to it."""
    yield _script("prove", release.replica, release.id, stdin=answer() if state.is_executing else "")


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
