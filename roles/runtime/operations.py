"""Operations that make an environment exactly its lock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation

from .facts import Distributions, Environments

#: {normalized name: versions allowed}; None among them when it may be absent.
Pins = Mapping[str, "set[str | None]"]

#: A wheelhouse's list of the Pythons it has for uv, in the format of uv's own (--python-downloads-json-url).
PYTHONS = "python-downloads.json"

#: Where uv unpacks, several GB: beside the environment, so that it links what it would else copy, and not in
#: /tmp, which may be memory.
SCRATCH = "/opt/rackserve/tmp"

#: Added to the name of one that is being removed.
GONE = ".gone"

#: venv puts pip there itself.
BUNDLED = {"pip", "setuptools"}


@operation()
def tools_environment(path: str, lock: str, pins: Pins, wheelhouse: str | None) -> Iterator[StringCommand]:
    """A virtual environment of the system's Python with exactly these pins."""
    installed = host.get_fact(Distributions, path=path)
    if _differs(installed, pins, path):
        yield StringCommand("python3", "-m", "venv", "--clear", QuoteString(path))
        yield StringCommand(
            QuoteString(f"{path}/bin/pip"), "install", "--quiet", "--no-deps", "--no-cache-dir",
            "--disable-pip-version-check", "--require-hashes",
            "--requirement", QuoteString(lock), *_pip_source(wheelhouse),
        )  # fmt: skip


@operation()
def vllm_environment(
    path: str,
    python: str,
    locks: Sequence[str],
    pins: Pins,
    uv: str,
    wheelhouse: str | None,
) -> Iterator[StringCommand]:
    """A virtual environment of that Python with exactly these pins.

    uv brings the Python where the system has none that suits; of a wheelhouse's, if there is one.
    """
    installed = host.get_fact(Distributions, path=path)
    if _differs(installed, pins, path):
        managed = {"UV_PYTHON_INSTALL_DIR": "/opt/rackserve/python"}
        if wheelhouse:  # read only when a Python is needed
            managed["UV_PYTHON_DOWNLOADS_JSON_URL"] = f"{wheelhouse.rstrip('/')}/{PYTHONS}"
        env = StringCommand("env", *(f"{key}={value}" for key, value in managed.items()))
        if not installed:
            yield StringCommand(
                env, uv, "venv", "--quiet", "--clear", "--no-project", "--no-cache",
                "--python", python, QuoteString(path),
            )  # fmt: skip
        yield StringCommand(
            "rm", "-rf", SCRATCH, "&&", "mkdir", SCRATCH, "&&",  # a broken-off install's with it
            # Compiled now, for the user who serves cannot write beside root's files.
            env, f"TMPDIR={SCRATCH}", uv, "pip", "sync", "--quiet", "--no-cache", "--require-hashes",
            "--compile-bytecode", "--python", QuoteString(f"{path}/bin/python"), *map(QuoteString, locks),
            *_uv_source(wheelhouse), "&&", "rmdir", SCRATCH,
        )  # fmt: skip


@operation()
def pruned(keep: Sequence[str]) -> Iterator[StringCommand]:
    """No environment that nothing uses, but those in `keep`."""
    unused = [one for one in host.get_fact(Environments) if not one["used"] and one["path"] not in keep]
    if not unused:
        host.noop("there is nothing to remove")
    for one in unused:
        host.log(f"{one['path']}: frees {one['bytes'] / 1e9:.2f} GB")
        path, aside = one["path"], one["path"].removesuffix(GONE) + GONE
        if path != aside:
            # What is half gone must not be taken for one that is half installed.
            yield StringCommand("rm", "-rf", QuoteString(aside), "&&", "mv", *map(QuoteString, (path, aside)))
        yield StringCommand("rm", "-rf", QuoteString(aside))


def _differs(installed: Mapping[str, str], pins: Pins, path: str) -> bool:
    """True when the environment is not its lock; says which packages differ."""
    names = {*pins, *(installed.keys() - BUNDLED)}
    wrong = sorted(name for name in names if installed.get(name) not in pins.get(name, {None}))
    if not wrong:
        host.noop(f"{path} is as locked")
    elif installed:
        host.log(f"{path} differs from its lock in {len(wrong)} packages: {', '.join(wrong[:5])}")
    return bool(wrong)


def _uv_source(wheelhouse: str | None) -> list[str]:
    return ["--no-index", "--find-links", wheelhouse] if wheelhouse else []


def _pip_source(wheelhouse: str | None) -> list[str]:
    if not wheelhouse:
        return []
    trusted = urlsplit(wheelhouse).hostname
    return [*_uv_source(wheelhouse), *(["--trusted-host", trusted] if trusted else [])]
