"""A verified snapshot of the model on the node, at a path that does not change.

The control host resolves a revision to a commit once and records it; every node then
fetches that commit, so that all hold the same bytes even when the revision moves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from gevent.lock import RLock
from pyinfra import host, state
from pyinfra.api import Host, OperationError, QuoteString, StringCommand, deploy, operation
from pyinfra.operations import files

from models.model import Model
from roles import remote

from .facts import ABSENT, INSTALLED, Commit, Excess, Files, FolderProblem, Room, Size, Snapshot
from .facts import Snapshots as Snapshots

ROOT = "/var/lib/rackserve/weights"
#: What runs on a node: stage.py, and what it imports.
SCRIPTS = ("snapshots.py", "swarm.py", "spread.py", "stage.py")

#: Where a node gives what it has to the others, while a snapshot goes round.
PORT = 19870


@dataclass(frozen=True)
class Hub:
    """Where models come from; None is huggingface_hub's own default endpoint."""

    endpoint: str | None = None
    token: str | None = field(default=None, repr=False)


def path(model: Model) -> str:
    """Where vLLM finds the model; a link that is swapped when another commit is staged."""
    return _path(model.repository, model.revision)


def recorded(control: Host, repository: str, revision: str) -> str:
    """The commit that the control host recorded for a revision; "" when it has none."""
    commit: str = control.get_fact(Commit, path=_path(repository, revision))
    return commit


def _path(repository: str, revision: str) -> str:
    return f"{ROOT}/{_flat(repository)}/{_flat(revision)}"


def _flat(name: str) -> str:
    return name.replace("/", "--")


def expected(model: Model) -> str:
    """The numbers of config.json that the model's file promises, as JSON."""
    return json.dumps(dict(model.numbers), sort_keys=True)


@deploy("Weights")
def tool() -> None:
    """The scripts that run on the node."""
    for script in host.loop(SCRIPTS):
        files.put(
            name=f"Install {script}",
            src=str(Path(__file__).with_name(script)),
            dest=str(PurePosixPath(INSTALLED).with_name(script)),
            mode="644",
        )


@operation()
def resolved(python: str, model: Model, hub: Hub) -> Iterator[StringCommand]:
    """The commit that this revision means, asked of the hub once and recorded here."""
    if host.get_fact(Commit, path=path(model)):
        host.noop("the commit is recorded")
        return
    yield _stage(python, "resolve", model, {"token": hub.token} if hub.token else {}, hub)


@operation()
def roomy(python: str, model: Model, control: Host) -> Iterator[StringCommand]:
    """Fail, before the first byte is sent, where there is no room for what this host lacks."""
    commit, needed = control.get_fact(Commit, path=path(model)), control.get_fact(Size, path=path(model))
    if commit and host.get_fact(Snapshot, python=python, path=path(model), commit=commit) == ABSENT:
        free = host.get_fact(Room, path=path(model), commit=commit)
        if free < needed:
            short = f"{ROOT}: {model.repository} needs {_gigabytes(needed)}, {_gigabytes(free)} free"
            if not state.is_executing:
                raise OperationError(f"{host.name}: {short}")
            yield remote.failure(state.inventory.get_host(host.name), short)
            return
    host.noop("there is room")


@operation()
def downloaded(
    python: str, model: Model, hub: Hub, control: Host, among: Sequence[str]
) -> Iterator[StringCommand]:
    """The recorded commit from the hub, every file verified: here, unless some host has it already."""
    commit = control.get_fact(Commit, path=path(model))
    if not commit and state.is_executing:
        yield remote.failure(host, f"{control.name} has recorded no commit of {model.repository}")
        return
    if having := [name for name in among if _problem(name, python, model, commit) is None]:
        host.noop(f"{having[0]} has {model.repository} at {commit}")
        return
    host.log(f"{model.repository}: {host.get_fact(Snapshot, python=python, path=path(model), commit=commit)}")
    yield _stage(python, "fetch", model, {"token": hub.token} if hub.token else {}, hub, commit)


@operation()
def staged(
    python: str, model: Model, control: Host, among: Mapping[str, str], secret: str
) -> Iterator[StringCommand]:
    """The recorded commit on this host, from those that have it over the cluster's own network.

    + among: the hosts that are to have it, and the address of each
    + secret: known to this run's hosts alone
    """
    commit = control.get_fact(Commit, path=path(model))
    lacking = _lacking(python, model, commit, tuple(among))
    if not lacking:
        host.noop(f"{model.repository} at {commit} is in place")
        return
    seeds = [name for name in among if name not in lacking]
    if state.is_executing and not seeds:
        yield remote.failure(host, f"no host has {model.repository} to give it to the others")
        return
    said: dict[str, Any] = {}
    if state.is_executing:
        said = {
            "files": state.inventory.get_host(seeds[0]).get_fact(Files, path=path(model), commit=commit),
            "secret": secret,
            "me": f"{among[host.name]}:{PORT}",
            "nodes": [f"{address}:{PORT}" for address in among.values()],
            "seeds": [f"{among[name]}:{PORT}" for name in seeds],
        }
    command = _stage(python, "join", model, said, commit=commit)
    if host.name in lacking:
        host.log(f"{model.repository}: {lacking[host.name]}")
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
def required(python: str, model: Model, control: Host) -> Iterator[StringCommand]:
    """Fail, before anything is restarted, on a host where the recorded commit is not in place."""
    commit = control.get_fact(Commit, path=path(model))
    problem = host.get_fact(Snapshot, python=python, path=path(model), commit=commit)
    if problem and state.is_executing:
        yield remote.failure(host, f"{model.repository}: {problem}; run the deploy stage_weights")
        return
    host.noop(f"{model.repository} is in place")


@operation()
def usable(python: str, folder: str, model: Model) -> Iterator[StringCommand]:
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
        folder = f"{ROOT}/{one['folder']}"
        yield StringCommand("rm", "-rf", QuoteString(folder), QuoteString(f"{folder}.json"))


def _problem(name: str, python: str, model: Model, commit: str) -> str | None:
    on = state.inventory.get_host(name)
    problem: str | None = on.get_fact(Snapshot, python=python, path=path(model), commit=commit)
    return problem


_guard = RLock()
_lacks: dict[tuple[str, str], dict[str, str]] = {}


def _lacking(python: str, model: Model, commit: str, among: tuple[str, ...]) -> dict[str, str]:
    """{host: why} of those that lack the snapshot; while it goes round, what was so at the beginning."""
    with _guard:
        key = (path(model), commit)
        if not state.is_executing or key not in _lacks:
            found = {name: _problem(name, python, model, commit) for name in among}
            _lacks[key] = {name: problem for name, problem in found.items() if problem is not None}
        return _lacks[key]


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"


def _stage(
    python: str, action: str, model: Model, said: Mapping[str, Any], hub: Hub | None = None, commit: str = ""
) -> StringCommand:
    """+ said: what goes by stdin; an environment variable would show in the process list under sudo"""
    words = [
        python, INSTALLED, action, "--path", path(model), "--repository", model.repository,
        "--revision", model.revision, "--expected", expected(model),
    ]  # fmt: skip
    words += ["--commit", commit] if commit else []
    for pattern in model.ignore:
        words += ["--ignore", pattern]
    if hub is not None and hub.endpoint:
        words += ["--endpoint", hub.endpoint]
    stdin = {"_stdin": json.dumps(said)} if said else {}
    words += ["--stdin"] if said else []
    provisioned = 'test -x "$0" || { echo "not provisioned: run the deploy provision" >&2; exit 1; }'
    run = ("sh", "-c", f'{provisioned}; exec "$0" "$@"', *words)
    return StringCommand(*map(QuoteString, run), **stdin)
