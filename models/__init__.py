"""The catalogue: what Rackserve can serve, by name. A model is a file of models/catalogue/."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path

from . import entry
from .architecture import Architecture
from .errors import ModelError, UnknownModel
from .model import Model

__all__ = ["Architecture", "Model", "get", "names", "template"]

_CATALOGUE = Path(__file__).with_name("catalogue")
_TEMPLATES = Path(__file__).with_name("templates")


#: Other names of models, in lower case.
_ALSO = {
    "llama-3.3-70b": "llama-3.3-70b-instruct",  # there is no other
    "llama-3.1-405b-fp8": "llama-3.1-405b-instruct-fp8",
    "llama-3.1-405b-instruct-fp8-meta": "llama-3.1-405b-instruct-fp8",
    "qwen3-235b": "qwen3-235b-a22b",
    "deepseek-r1-671b": "deepseek-r1",
    "r1": "deepseek-r1",
    "r1-0528": "deepseek-r1-0528",
}


def names() -> list[str]:
    """Every name `get` knows, sorted."""
    return sorted(file.stem for file in _CATALOGUE.glob("*.yaml"))


@cache
def get(name: str) -> Model:
    """The model of that name or of another of its names; UnknownModel names the nearest otherwise."""
    lower = str(name).lower()
    own = _ALSO.get(lower, lower)
    if own != name and own in names():
        return get(own)
    if name in names():
        return entry.load(_CATALOGUE / f"{name}.yaml", _TEMPLATES)
    if name in {file.stem for file in _CATALOGUE.glob("*.yml")}:
        raise ModelError(f"models/catalogue/{name}.yml: call the file {name}.yaml")
    near = difflib.get_close_matches(str(name), names(), n=3, cutoff=0.4) or names()
    raise UnknownModel(f"unknown model {name!r}; the nearest are: {', '.join(near)}")


def template(model: Model) -> str | None:
    """The text of the model's chat template, where Rackserve ships it."""
    return (_TEMPLATES / f"{model.template}.jinja").read_text() if model.template else None
