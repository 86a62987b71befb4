"""A verified snapshot of the model on the node, at a path that does not change.

The control host resolves a revision to a commit once and records it; every node then
fetches that commit, so that all hold the same bytes even when the revision moves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pyinfra import host, state
from pyinfra.api import Host, QuoteString, StringCommand, deploy, operation
from pyinfra.operations import files

from models.model import Model
from roles import remote

from .facts import INSTALLED, Commit, Excess, FolderProblem, Snapshot
from .facts import Snapshots as Snapshots

ROOT = "/var/lib/rackserve/weights"
#: What runs on a node: stage.py, and what it imports.
SCRIPTS = ("snapshots.py", "stage.py")


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
