"""vLLM's own flags: their names, and what each means for a plan. models/vllm_flags.txt has all of them.

There every flag of 0.32 and 0.33 is in one of five groups; tests/test_lab_vllm.py holds the list to
vLLM's parser, so that a new one must be put into a group before it can be used.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import ModelError

Group = Literal["decided", "refused", "counted", "not counted", "nothing"]

_FILE = Path(__file__).with_name("vllm_flags.txt")

#: Of those that are counted, what is on or off: any text would be on.
SWITCHES = ("async-scheduling", "enable-chunked-prefill", "enable-expert-parallel", "enforce-eager")

#: Another name of a flag.
_SAME = {"device-memory-utilization": "gpu-memory-utilization"}


@cache
def groups() -> Mapping[Group, Mapping[str, str]]:
    """{group: {flag: what it changes, of those that are not counted}}"""
    found: dict[Group, dict[str, str]] = {group: {} for group in get_args(Group)}
    for line in _FILE.read_text().splitlines():
        if line.startswith("#"):
            here = found[line.removeprefix("# ").partition(":")[0]]  # type: ignore[index]
        else:
            flag, _, what = line.partition(": ")
            here[flag] = what
    return found


def long_names(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """With vLLM's long names, which its config file also takes with underscores; each in one spelling.

    ModelError for a name that is none: its parser would take a prefix, or end the server. And for one
    that is said twice, in two spellings, or is neither on nor off.
    """
    long: dict[str, Any] = {}
    for given, value in arguments.items():
        name = str(given).replace("_", "-")
        if name.removeprefix("no-").partition(".")[0] not in names():
            near = difflib.get_close_matches(name, names(), n=2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ModelError(f"vLLM has no flag {name}{hint}")
        if isinstance(value, bool) and name.startswith("no-"):
            name, value = name.removeprefix("no-"), not value
        if isinstance(value, bool) and name in _inverse():
            name, value = _inverse()[name], not value
        switch = name.removeprefix("no-")
        if _inverse().get(switch, switch) in SWITCHES and not isinstance(value, bool):
            raise ModelError(f"{name} is {value!r}: must be true or false")
        name = _SAME.get(name, name)
        if name in long:
            raise ModelError(f"vLLM's {name} is said twice")
        long[name] = value
    return long


@cache
def names() -> frozenset[str]:
    """The long names of `vllm serve` in 0.32 and 0.33."""
    return frozenset(flag for flags in groups().values() for flag in flags)


@cache
def _inverse() -> Mapping[str, str]:
    """0.33 has a --disable-x for each --enable-x: {the one: the other, which a plan looks at}."""
    looked_at = {*groups()["counted"], *groups()["not counted"]}
    found = {}
    for flag in looked_at:
        verb, _, rest = flag.partition("-")
        if verb == "enable" and f"disable-{rest}" in names():
            found[f"disable-{rest}"] = flag
        elif verb == "disable" and f"enable-{rest}" in names() - looked_at:
            found[f"enable-{rest}"] = flag
    return found
