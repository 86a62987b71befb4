"""Where a snapshot comes from, and where it is put on a node."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pyinfra.api import Host

from .facts import Commit

ROOT = "/var/lib/rackserve/weights"

#: Where descriptions are, for the time of a trial.
DESCRIBED = "/var/lib/rackserve/described"

#: Files that only hold weights, by whatever library; large ones at least.
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx*",
           "*.ot", "*.npz", "*.tflite", "*.mlmodel", "*.mlpackage/*")  # fmt: skip

#: Where a node gives what it has to the others, while a snapshot goes round.
PORT = 19870


class Staged(Protocol):
    """What can be staged: a model, or a payload."""

    @property
    def repository(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def numbers(self) -> Mapping[str, Any]: ...
    @property
    def ignore(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Description:
    """Of a model what says what it is: its configuration, its tokenizer, its code; no weights."""

    model: Staged

    @property
    def repository(self) -> str:
        return self.model.repository

    @property
    def revision(self) -> str:
        return self.model.revision

    @property
    def numbers(self) -> Mapping[str, Any]:
        return self.model.numbers

    @property
    def ignore(self) -> Sequence[str]:
        return (*self.model.ignore, *WEIGHTS)


@dataclass(frozen=True)
class Source:
    """Where snapshots come from: a mirror if there is one, else the hub.

    None as `endpoint` is huggingface_hub's own default.
    """

    endpoint: str | None = None
    token: str | None = field(default=None, repr=False)
    mirror: str | None = field(default=None, repr=False)
    mirror_options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def said(self) -> dict[str, Any]:
        """What a node that downloads is told by stdin."""
        if self.mirror:
            return {"mirror": self.mirror, "mirror_options": dict(self.mirror_options)}
        return {"token": self.token} if self.token else {}


def root(model: Staged) -> str:
    """The folder of all that is staged as this is."""
    return DESCRIBED if isinstance(model, Description) else ROOT


def path(model: Staged) -> str:
    """Where vLLM finds the model; a link that is swapped when another commit is staged."""
    return _path(root(model), model.repository, model.revision)


def recorded(control: Host, repository: str, revision: str) -> str:
    """The commit that the control host recorded for a revision; "" when it has none."""
    commit: str = control.get_fact(Commit, path=_path(ROOT, repository, revision))
    return commit


def expected(model: Staged) -> str:
    """The numbers of config.json that the model's file promises, as JSON."""
    return json.dumps(dict(model.numbers), sort_keys=True)


def _path(root: str, repository: str, revision: str) -> str:
    return f"{root}/{_flat(repository)}/{_flat(revision)}"


def _flat(name: str) -> str:
    return name.replace("/", "--")
