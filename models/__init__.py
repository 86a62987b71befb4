"""The catalogue: what Rackserve can serve, by name."""

from __future__ import annotations

import difflib

from . import lab, llama
from .errors import UnknownModel
from .model import Architecture, Model

__all__ = ["Architecture", "Model", "get", "names"]

_CATALOGUE = {model.name: model for model in (*llama.MODELS, *lab.MODELS)}


def names() -> list[str]:
    """Every name `get` knows, sorted."""
    return sorted(_CATALOGUE)


def get(name: str) -> Model:
    """The model of that name; UnknownModel names the nearest ones otherwise."""
    if name in _CATALOGUE:
        return _CATALOGUE[name]
    near = difflib.get_close_matches(str(name), names(), n=3, cutoff=0.4) or names()
    raise UnknownModel(f"unknown model {name!r}; the nearest are: {', '.join(near)}")
