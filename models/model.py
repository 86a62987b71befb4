"""What to serve: a model as a typed, validated value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from .errors import ModelError

Arguments = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The numbers of a model's config.json that decide how it can be split.

    Field names are config.json's own. Staging compares them with the snapshot's
    config.json and refuses a difference.
    """

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ModelError(f"{name} is {value}: must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"{self.num_attention_heads} attention heads do not divide among "
                f"{self.num_key_value_heads} key-value heads"
            )


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model and how vLLM should serve it.

    Usage:

        Model(
            name="llama-3.1-70b-instruct",
            repository="meta-llama/Llama-3.1-70B-Instruct",
            architecture=Architecture(num_hidden_layers=80, ...),
            arguments={"max-model-len": 32768},
        )

    `arguments` are vLLM's long flag names without dashes; `environment` is for the
    vLLM process. `ignore` lists file patterns of the repository that are not needed.
    """

    name: str
    repository: str
    architecture: Architecture
    revision: str = "main"
    gated: bool = False
    ignore: tuple[str, ...] = ()
    arguments: Arguments = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.name):
            raise ModelError(f"model name {self.name!r}: use lower case, digits, dots and dashes")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repository):
            raise ModelError(f"{self.name}: repository {self.repository!r} is not ORG/NAME")
        object.__setattr__(self, "arguments", MappingProxyType(dict(self.arguments)))
        object.__setattr__(self, "environment", MappingProxyType(dict(self.environment)))

    def with_(
        self,
        *,
        revision: str | None = None,
        arguments: Arguments | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Model:
        """This model with a user's revision, vLLM arguments and variables over its own."""
        return replace(
            self,
            revision=revision or self.revision,
            arguments={**self.arguments, **(arguments or {})},
            environment={**self.environment, **(environment or {})},
        )
