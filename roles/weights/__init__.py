"""A verified snapshot of the model on the node, at a path that does not change.

The control host resolves a revision to a commit once and records it; every node then
fetches that commit, so that all hold the same bytes even when the revision moves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyinfra import host, state
from pyinfra.api import Host, QuoteString, StringCommand, deploy, operation
from pyinfra.operations import files

from models.model import Model
from roles import remote

from .facts import INSTALLED, Commit, FolderProblem, Snapshot

ROOT = "/var/lib/rackserve/weights"
SCRIPT = Path(__file__).with_name("stage.py")


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
    """The script that runs on the node."""
    files.put(name="Install stage.py", src=str(SCRIPT), dest=INSTALLED, mode="644")


@operation()
def resolved(python: str, model: Model, hub: Hub) -> Iterator[StringCommand]:
    """The commit that this revision means, asked of the hub once and recorded here."""
    if host.get_fact(Commit, path=path(model)):
        host.noop("the commit is recorded")
        return
    yield _stage(python, "resolve", model, hub)


@operation()
def staged(python: str, model: Model, hub: Hub, control: Host) -> Iterator[StringCommand]:
    """The recorded commit, every file verified against the hub's checksums, in place."""
    commit = control.get_fact(Commit, path=path(model))
    if not commit and state.is_executing:
        yield remote.failure(host, f"{control.name} has recorded no commit of {model.repository}")
        return
    problem = host.get_fact(Snapshot, python=python, path=path(model), commit=commit)
    if problem is None:
        host.noop(f"{model.repository} at {commit} is in place")
        return
    host.log(f"{model.repository}: {problem}")
    yield _stage(python, "fetch", model, hub, "--commit", commit)


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


def _stage(python: str, action: str, model: Model, hub: Hub, *more: str) -> StringCommand:
    words = [
        python, INSTALLED, action, "--path", path(model), "--repository", model.repository,
        "--revision", model.revision, "--expected", expected(model), *more,
    ]  # fmt: skip
    for pattern in model.ignore:
        words += ["--ignore", pattern]
    if hub.endpoint:
        words += ["--endpoint", hub.endpoint]
    if hub.token:
        words += ["--token-stdin"]
    # By stdin: an environment variable would show in the node's process list under sudo.
    stdin = {"_stdin": hub.token} if hub.token else {}
    provisioned = 'test -x "$0" || { echo "not provisioned: run the deploy provision" >&2; exit 1; }'
    run = ("sh", "-c", f'{provisioned}; exec "$0" "$@"', *words)
    return StringCommand(*map(QuoteString, run), **stdin)
