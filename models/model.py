"""What to serve: a model as a typed, validated value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

from .architecture import Architecture
from .arguments import long_names
from .config import quantized, read
from .errors import ModelError

Arguments = Mapping[str, Any]


class Sourced(NamedTuple):
    """A flag's value, and where it is from; paths are of vLLM 0.33's repository."""

    value: Any
    source: str


#: What a preset says unless the model's own file says otherwise: small steps; many requests and
#: large steps; a KV cache that ranks share as far as TP lets them. The rest is the plan's.
PRESETS: Mapping[str, Mapping[str, Sourced]] = {
    "latency": {
        "max-num-batched-tokens": Sourced(
            2048, "docs/configuration/optimization.md:64: few prefills slow decodes down"
        ),
    },
    "throughput": {
        "max-num-batched-tokens": Sourced(
            16384, "docs/configuration/optimization.md:66 says above 8192, and :77 this"
        ),
        "max-num-seqs": Sourced(1024, "vllm/engine/arg_utils.py:2993: its default from 70 GiB on"),
    },
    "long-context": {
        "decode-context-parallel-size": Sourced(
            "auto", "docs/serving/context_parallel_deployment.md: 8 for DeepSeek-R1 with TP 8, at most TP / H"
        ),
    },
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model and how vLLM should serve it. models/catalogue/ has a file for each.

    + config: what of the repository's config.json decides its size and its split; staging
      compares the numbers with the snapshot's and refuses a difference
    + arguments: vLLM's long flag names without dashes; environment: of the vLLM process
    + presets: arguments that replace those of PRESETS, by the name of the preset
    + template: a chat template of models/templates/, where vLLM's wheel has none
    + sampling: defaults for requests that say nothing
    + ignore: patterns of files in the repository that are not needed
    + parameters: the published number of them, where there is one
    + said, preset: names of the arguments that are the user's own, and the preset that is
    + smaller: names of models of the catalogue that are this one in fewer bytes
    """

    name: str
    repository: str
    config: Mapping[str, Any] = field(hash=False)
    revision: str = "main"
    gated: bool = False
    ignore: tuple[str, ...] = ()
    arguments: Arguments = field(default_factory=dict, hash=False)
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    presets: Mapping[str, Arguments] = field(default_factory=dict, hash=False)
    template: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict, hash=False)
    parameters: int | None = None
    smaller: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    said: frozenset[str] = frozenset()
    preset: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.name):
            raise ModelError(f"model name {self.name!r}: use lower case, digits, dots and dashes")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repository):
            raise ModelError(f"{self.name}: repository {self.repository!r} is not ORG/NAME")
        for name in ("config", "arguments", "environment", "presets", "sampling", "sources"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        self.architecture  # noqa: B018 - a config.json that is none is said here

    @cached_property
    def architecture(self) -> Architecture:
        overrides = self.arguments.get("hf-overrides") or {}
        if not isinstance(overrides, Mapping):
            raise ModelError(f"{self.name}: hf-overrides is {overrides!r}: must be an object")
        try:
            own = read({**self.config, **overrides})
            asked = self.arguments.get("quantization")
            return quantized(own, str(asked)) if asked else own
        except ModelError as error:
            raise ModelError(f"{self.name}: {error}") from None

    @property
    def numbers(self) -> Mapping[str, int]:
        """The whole numbers of `config`: what staging compares."""
        return {
            key: value
            for key, value in self.config.items()
            if isinstance(value, int) and not isinstance(value, bool)
        }

    @property
    def flags(self) -> Arguments:
        """`arguments`, and the flags that sampling defaults mean."""
        own = {"override-generation-config": dict(self.sampling)} if self.sampling else {}
        return {**own, **self.arguments}

    def with_(
        self,
        *,
        revision: str | None = None,
        preset: str | None = None,
        arguments: Arguments | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Model:
        """This model with a preset and a user's revision, vLLM arguments and variables over its own."""
        if preset is not None and preset not in PRESETS:
            raise ModelError(f"unknown preset {preset!r}; there are: {', '.join(PRESETS)}")
        own = long_names(arguments or {})
        chosen: dict[str, Any] = {}
        if preset:
            usual = {flag: one.value for flag, one in PRESETS[preset].items()}
            chosen = {**usual, **self.presets.get(preset, {})}
        return replace(
            self,
            revision=revision or self.revision,
            arguments={**self.arguments, **chosen, **own},
            said=self.said | set(own),
            preset=preset or self.preset,
            environment={**self.environment, **(environment or {})},
        )

    def instead_of(self, other: Model) -> Model:
        """This model with the preset and the vLLM arguments that the user said of another."""
        return self.with_(preset=other.preset, arguments={name: other.arguments[name] for name in other.said})
