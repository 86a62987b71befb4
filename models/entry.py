"""A file of the catalogue, read and checked: what is wrong in it is one line that names the key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from .arguments import long_names
from .config import read
from .errors import ModelError
from .model import PRESETS, Model

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times quicker

#: What each key holds, in Python's words and in a person's.
TYPES: Mapping[str, tuple[type, str]] = {
    "repository": (str, "ORG/NAME"),
    "revision": (str, "text"),
    "template": (str, "text"),
    "gated": (bool, "true or false"),
    "parameters": (int, "a whole number"),
    "ignore": (list, "a list"),
    "smaller": (list, "a list"),
    "config": (dict, "keys with values"),
    "arguments": (dict, "keys with values"),
    "environment": (dict, "keys with values"),
    "presets": (dict, "keys with values"),
    "sampling": (dict, "keys with values"),
    "sources": (dict, "keys with values"),
}


class _Loader(_Base):  # type: ignore[misc]
    """YAML, in which a key may not come twice: the first would be lost without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name} comes twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Asked(dict[str, Any]):
    """A config.json that remembers which keys were looked for."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__(given)
        self.keys_asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.keys_asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.keys_asked.add(key)
        return super().__getitem__(key)


def load(file: Path, templates: Path) -> Model:
    """The model in a file; ModelError names the file and the key that is wrong."""
    try:
        given = yaml.load(file.read_text(), Loader=_Loader)
        for wrong in _problems(file, given, templates):
            raise ModelError(wrong)
        lists = {key: tuple(given[key]) for key in ("ignore", "smaller") if key in given}
        arguments = long_names(given.get("arguments", {}))
        return Model(name=file.stem, **{**given, **lists, "arguments": arguments})
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ModelError(f"{_place(file)}, line {line}: {error.problem}") from None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{_place(file)}: {' '.join(str(error).split())}") from None
    except ModelError as error:
        said = str(error).removeprefix(f"{file.stem}: ")
        raise ModelError(f"{_place(file)}: {said}") from None


def _problems(file: Path, given: Any, templates: Path) -> Iterator[str]:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", file.stem):
        name = re.sub(r"[^a-z0-9.-]+", "-", file.stem.lower()).strip("-.")
        yield f"a model's name is lower case, digits, dots and dashes: call the file {name or 'name'}.yaml"
    if not isinstance(given, dict):
        yield "must have keys: repository, config and others (CONTRIBUTING.md)"
    names = [one.name for one in fields(Model) if one.name not in ("name", "said", "preset")]
    for key, value in given.items():
        if key not in names:
            yield f"no such key: {key}{_near(key, names)}"
        kind, words = TYPES[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            yield f"{key} is {value!r}: must be {words}"
    for key in ("repository", "config"):
        if key not in given:
            yield f"has no {key}"
    others = [other.stem for other in file.parent.glob("*.yaml")]
    for name in given.get("smaller", []):
        if name not in others:
            yield f"smaller: no such model: {name}{_near(name, others)}"
    yield from _details(given, templates)
    yield from _config(given["config"])


def _details(given: Mapping[str, Any], templates: Path) -> Iterator[str]:
    shipped = sorted(file.stem for file in templates.glob("*.jinja"))
    template = given.get("template")
    if template not in (None, *shipped):
        yield f"template: models/templates/ has no {template}.jinja{_near(template, shipped)}"
    for name, arguments in given.get("presets", {}).items():
        if name not in PRESETS:
            yield f"presets: no such preset: {name}{_near(name, PRESETS)}"
        if not isinstance(arguments, dict):
            yield f"presets: {name} is {arguments!r}: must be keys with values"
        long_names(arguments)
    for name, value in given.get("environment", {}).items():
        if not isinstance(value, str):
            yield f"environment: {name} is {value!r}: must be text, in quotes"
    for value in given.get("ignore", []):
        if not isinstance(value, str):
            yield f"ignore: {value!r} must be text"


def _config(config: Mapping[str, Any]) -> Iterator[str]:
    """A key that nothing reads, and that is nearly one that is looked for and not there."""
    asked = _Asked(config)
    try:
        read(asked)
    except ModelError as error:
        said = str(error).removeprefix("config.json ")
        lacks = re.match(r"has no (\w+)", said)
        found = difflib.get_close_matches(lacks[1], list(config), n=1) if lacks else []
        yield f"config: {said}" + (f"; is it {found[0]}?" if found else "")
    absent = asked.keys_asked - set(config)
    for key in config:
        if key not in asked.keys_asked and (near := _near(key, absent, cutoff=0.9)):
            yield f"config: nothing reads {key}{near}"


def _near(key: object, names: Collection[str], cutoff: float = 0.6) -> str:
    found = difflib.get_close_matches(str(key), list(names), n=1, cutoff=cutoff)
    return f"; did you mean {found[0]}?" if found else ""


def _place(file: Path) -> str:
    return f"models/catalogue/{file.name}"
