"""What makes a snapshot be on a host, whole, and what looks after it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gevent.lock import RLock
from pyinfra import host, state
from pyinfra.api import Host, OperationError, QuoteString, StringCommand, operation

from roles import recall, remote

from .facts import (
    ABSENT,
    INSTALLED,
    Commit,
    Excess,
    Files,
    FolderProblem,
    Part,
    Room,
    Size,
    Snapshot,
)
from .where import PORT, ROOT, Source, Staged, expected, path, root

#: Seconds for which a client of a network file system may believe what it saw of a file: NFS's acregmax
#: (nfs(5)), and some.
ATTRIBUTES = 75

GRACE = 30  # seconds for which those that have it wait for one that is silent


@operation()
def resolved(python: str, model: Staged, source: Source) -> Iterator[StringCommand]:
    """The commit that this revision means, asked of the source once and recorded here."""
    if host.get_fact(Commit, path=path(model)):
        host.noop("the commit is recorded")
        return
    yield _stage(python, "resolve", model, source.said, source)


@operation()
def roomy(python: str, model: Staged, control: Host) -> Iterator[StringCommand]:
    """Fail, before the first byte is sent, where there is no room for what this host lacks."""
    commit, needed = control.get_fact(Commit, path=path(model)), control.get_fact(Size, path=path(model))
    if commit and host.get_fact(Snapshot, python=python, path=path(model), commit=commit) == ABSENT:
        free = host.get_fact(Room, path=path(model), commit=commit)
        if free < needed:
            short = (
                f"{root(model)}: {model.repository} needs {_gigabytes(needed)}, {_gigabytes(free)} free: "
                f"make room for {_gigabytes(needed - free)}"
            )
            if not state.is_executing:
                raise OperationError(f"{host.name}: {short}")
            yield remote.failure(state.inventory.get_host(host.name), short)
            return
    host.noop("there is room")


@operation()
def downloaded(
    python: str, model: Staged, source: Source, control: Host, among: Sequence[str], uplinks: Sequence[str]
) -> Iterator[StringCommand]:
    """The recorded commit from the source, every file verified: here, unless some host has it already.

    Each of several uplinks fetches its share, which `staged` puts together.
    """
    commit = control.get_fact(Commit, path=path(model))
    if not commit and state.is_executing:
        yield remote.failure(host, f"{control.name} has recorded no commit of {model.repository}")
        return
    if having := [name for name in among if _problem(name, python, model, commit) is None]:
        host.noop(f"{having[0]} has {model.repository} at {commit}")
        return
    host.log(f"{model.repository}: {host.get_fact(Snapshot, python=python, path=path(model), commit=commit)}")
    share = {"share": [uplinks.index(host.name), len(uplinks)]} if len(uplinks) > 1 else {}
    with remote.shown(host):
        yield _stage(python, "fetch", model, {**source.said, **share}, source, commit)


@operation()
def staged(
    python: str, model: Staged, control: Host, among: Mapping[str, str], uplinks: Sequence[str], secret: str
) -> Iterator[StringCommand]:
    """The recorded commit on this host, from those that have it over the cluster's own network.

    + among: the hosts that are to have it, and the address of each
    + uplinks: those of them that may have downloaded a share of it
    + secret: known to this run's hosts alone
    """
    commit = control.get_fact(Commit, path=path(model))
    beginning = _beginning(python, model, commit, tuple(among), tuple(uplinks))
    if not beginning.lacking:
        host.noop(f"{model.repository} at {commit} is in place")
        return
    if state.is_executing and not beginning.files:
        yield remote.failure(host, f"no host has {model.repository} to give it to the others")
        return
    said: dict[str, Any] = {}
    if state.is_executing:
        said = {
            "files": beginning.files,
            "names": beginning.parts.get(host.name),
            "secret": secret,
            "grace": GRACE,
            "me": f"{among[host.name]}:{PORT}",
            "nodes": [f"{address}:{PORT}" for address in among.values()],
            "seeds": [f"{among[name]}:{PORT}" for name in beginning.seeds],
        }
    command = _stage(python, "join", model, said, commit=commit)
    if host.name in beginning.lacking:
        host.log(f"{model.repository}: {beginning.lacking[host.name]}")
        with remote.shown(host):
            yield command
        return
    if state.is_executing:  # it only gives: that is no change
        gave, _, problem = remote.execute(host, command, **remote.arguments(host))
        if not gave:
            yield remote.failure(host, problem)
            return
    host.noop(f"{model.repository} at {commit} is in place")


@operation()
def shared(python: str, model: Staged, control: Host, with_: str) -> Iterator[StringCommand]:
    """The same on a host that has the file system of another, which staged it."""
    commit = control.get_fact(Commit, path=path(model))
    if state.is_executing:
        deadline = time.monotonic() + ATTRIBUTES
        while (problem := _problem(host.name, python, model, commit)) and time.monotonic() < deadline:
            time.sleep(2)
            recall.forget(host)
        if problem:
            yield remote.failure(host, f"{model.repository}: {problem}, though {with_} staged it for both")
            return
    host.noop(f"{with_} keeps {model.repository} for this host, too")


@operation()
def required(python: str, model: Staged, control: Host) -> Iterator[StringCommand]:
    """Fail, before anything is restarted, on a host where the recorded commit is not in place."""
    commit = control.get_fact(Commit, path=path(model))
    problem = host.get_fact(Snapshot, python=python, path=path(model), commit=commit)
    if problem and state.is_executing:
        yield remote.failure(host, f"{model.repository}: {problem}; run the deploy stage_weights")
        return
    host.noop(f"{model.repository} is in place")


@operation()
def usable(python: str, folder: str, model: Staged) -> Iterator[StringCommand]:
    """A folder that the user staged: only looked at, never changed."""
    problem = host.get_fact(FolderProblem, python=python, folder=folder, expected=expected(model))
    if problem and state.is_executing:
        yield remote.failure(host, problem)
        return
    host.noop(f"{folder} holds {model.name}")


@operation()
def verified(python: str, repository: str | None = None) -> Iterator[StringCommand]:
    """Every byte of what is staged read again; fails where a file is not what was verified."""
    if state.is_executing:
        words = [python, INSTALLED, "verify", "--path", ROOT]
        words += ["--repository", repository] if repository else []
        right, _, wrong = remote.run(host, *words, **remote.arguments(host))
        if not right:
            yield remote.failure(host, wrong or "could not be verified")
            return
    host.noop("verified")


@operation()
def pruned(python: str, keep: int) -> Iterator[StringCommand]:
    """Only the last `keep` snapshots of each repository, and those that a revision means."""
    excess = host.get_fact(Excess, python=python, root=ROOT, keep=keep)
    if not excess:
        host.noop("there is nothing to remove")
    for one in excess:
        host.log(f"{one['folder']}: frees {one['bytes'] / 1e9:.2f} GB")
        beside = (f"{ROOT}/{one['folder']}{suffix}" for suffix in ("", ".json", ".pieces"))
        yield StringCommand("rm", "-rf", *map(QuoteString, beside))


def _problem(name: str, python: str, model: Staged, commit: str) -> str | None:
    on = state.inventory.get_host(name)
    problem: str | None = on.get_fact(Snapshot, python=python, path=path(model), commit=commit)
    return problem


@dataclass(frozen=True)
class Beginning:
    """Who had what of a snapshot before it went round."""

    lacking: Mapping[str, str]  # {host: why}
    seeds: Sequence[str] = ()
    files: Mapping[str, Any] = field(default_factory=dict)  # of the manifest
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)  # {seed: files}, where none has all


_guard = RLock()
_begun: dict[tuple[str, str], Beginning] = {}


def _beginning(
    python: str, model: Staged, commit: str, among: tuple[str, ...], uplinks: tuple[str, ...]
) -> Beginning:
    """Asked once while it goes round."""
    with _guard:
        key = (path(model), commit)
        if not state.is_executing or key not in _begun:
            found = {name: _problem(name, python, model, commit) for name in among}
            lacking = {name: problem for name, problem in found.items() if problem is not None}
            seeds = [name for name in among if name not in lacking]
            if not state.is_executing or not lacking:
                return Beginning(lacking)
            if seeds:
                _begun[key] = Beginning(lacking, seeds, _files(Files, seeds[0], model, commit))
            else:
                parts = {name: _files(Part, name, model, commit) for name in uplinks}
                files = {name: file for part in parts.values() for name, file in part.items()}
                _begun[key] = Beginning(
                    lacking, list(parts), files, {name: sorted(part) for name, part in parts.items()}
                )
        return _begun[key]


def _files(fact: type[Files], on: str, model: Staged, commit: str) -> dict[str, Any]:
    files: dict[str, Any] = state.inventory.get_host(on).get_fact(fact, path=path(model), commit=commit)
    return files


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"


def _stage(
    python: str,
    action: str,
    model: Staged,
    said: Mapping[str, Any],
    source: Source | None = None,
    commit: str = "",
) -> StringCommand:
    """+ said: what goes by stdin; an environment variable would show in the process list under sudo"""
    words = [
        python, INSTALLED, action, "--path", path(model), "--repository", model.repository,
        "--revision", model.revision, "--expected", expected(model),
    ]  # fmt: skip
    words += ["--commit", commit] if commit else []
    for pattern in model.ignore:
        words += ["--ignore", pattern]
    if source is not None and source.endpoint:
        words += ["--endpoint", source.endpoint]
    stdin = {"_stdin": json.dumps(said)} if said else {}
    words += ["--stdin"] if said else []
    provisioned = 'test -x "$0" || { echo "not provisioned: run the deploy provision" >&2; exit 1; }'
    run = ("sh", "-c", f'{provisioned}; exec "$0" "$@"', *words)
    return StringCommand(*map(QuoteString, run), **stdin)
