"""Models that are not in the catalogue: a folder, or a repository of the hub.

Only config.json and the safetensors index are read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import get, names
from .errors import ModelError, UnknownModel
from .model import Model
from .weights import Split, tensors

CONFIG, INDEX = "config.json", "model.safetensors.index.json"

#: An index may differ from the shapes by so much: buffers that some checkpoints carry.
TOLERANCE = 0.005


#: A second copy of the weights, which vLLM's loader leaves out too (config/load.py).
IGNORED = ("original/*",)


def find(
    what: str, revision: str | None = None, endpoint: str | None = None, token: str | None = None
) -> Model:
    """A model of the catalogue by name, of a local folder, or of the hub by ORG/NAME.

    + endpoint, token: of the hub; HF_ENDPOINT and HF_TOKEN unless set
    """
    if what in names():
        return get(what)
    if is_folder(what):
        return from_folder(Path(what))
    if what.startswith((".", "/", "~")):
        raise UnknownModel(f"unknown model {what!r}: there is no such folder")
    if on_hub(what):
        return from_hub(what, revision, endpoint, token)
    return get(what)  # which says what the nearest names are


def is_folder(what: str) -> bool:
    """Whether `find` reads it from a folder of this machine."""
    # Not Path.is_dir, which raises on a name that is too long.
    return what not in names() and os.path.isdir(what)


def on_hub(what: str) -> bool:
    """Whether `find` asks the hub for it."""
    return not is_folder(what) and re.fullmatch(r"[\w.-]+/[\w.-]+", what) is not None


def from_folder(folder: Path) -> Model:
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} has no {CONFIG}")
    index = folder / INDEX
    return make(
        _slug(folder.resolve().name), f"local/{_slug(folder.resolve().name)}",
        _json(folder / CONFIG), _json(index) if index.is_file() else None,
    )  # fmt: skip


def from_hub(
    repository: str, revision: str | None = None, endpoint: str | None = None, token: str | None = None
) -> Model:
    """Ask the hub for the two files."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call] # its retries, several lines each

    def fetch(name: str) -> Path | None:
        try:
            found = hf_hub_download(repository, name, revision=revision, endpoint=endpoint, token=token)
            return Path(found)
        except LocalEntryNotFoundError:  # the hub was not reached
            raise
        except EntryNotFoundError:
            return None

    try:
        config, index = fetch(CONFIG), fetch(INDEX)
    except GatedRepoError:
        raise ModelError(f"{repository} is gated: ask for access on its page and export HF_TOKEN") from None
    except RevisionNotFoundError:
        raise ModelError(f"{repository} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise UnknownModel(
            f"{repository}: the hub has no such repository, or HF_TOKEN may not see it"
        ) from None
    except HFValidationError:
        raise UnknownModel(f"{repository!r} is not a repository of the hub: write ORG/NAME") from None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"{repository}: the hub does not answer: {str(error).splitlines()[0]}") from None
    if config is None:
        raise ModelError(f"{repository} has no {CONFIG}")
    made = make(_slug(repository.split("/")[1]), repository, _json(config), _json(index) if index else None)
    return replace(made, ignore=IGNORED)


def make(name: str, repository: str, config: Mapping[str, Any], index: Mapping[str, Any] | None) -> Model:
    """The model of these two files; ModelError where they contradict each other."""
    model = Model(name=name, repository=repository, config=config)
    if index is not None:
        _compare(model, index)
    return model


def _compare(model: Model, index: Mapping[str, Any]) -> None:
    """An index of other layers, or of other bytes, is of another model."""
    tensors_of = index.get("weight_map")
    if not isinstance(tensors_of, Mapping) or not tensors_of:
        raise ModelError(f"{model.name}: {INDEX} has no weight_map, or an empty one")
    layers = {found[1] for name in tensors_of if (found := re.match(r"model\.layers\.(\d+)\.", name))}
    ahead = model.numbers.get("num_nextn_predict_layers", 0)  # of speculative decoding; not loaded
    told = model.architecture.num_hidden_layers
    if layers and len(layers) not in (told, told + ahead):
        raise ModelError(f"{model.name}: {INDEX} has {len(layers)} layers and {CONFIG} {told}")
    metadata = index.get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    if not isinstance(size, (int, float)) or ahead or model.architecture.quantization.format != "plain":
        return  # scales and what is not loaded differ from one upload to another
    shapes = sum(tensor.bytes for tensor in tensors(model.architecture, Split()))
    padding = 2 * 64 * model.architecture.hidden_size * 4
    table = model.architecture.vocab_size * model.architecture.hidden_size * 4  # a tied head, stored again
    most = shapes + (table if model.architecture.tie_word_embeddings else 0)
    if not shapes * (1 - TOLERANCE) - padding <= size <= most * (1 + TOLERANCE):
        raise ModelError(f"{model.name}: {INDEX} says {size} bytes, and the shapes of {CONFIG} make {shapes}")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object")
    return value


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-.") or "model"
