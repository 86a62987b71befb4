"""`rackserve wheelhouse`: what nodes without a package index install from."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from scripts.refusal import Failed, Refused

#: Of Ubuntu 22.04, Debian 12 and Ubuntu 24.04.
SYSTEMS = ("3.10", "3.11", "3.12")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path, resolve_path=True))
@click.option("--runtime", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--plugins", type=click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True),
              metavar="LOCK", help="Also what this lock file adds to vLLM's environment.")  # fmt: skip
@click.option("--python", "pythons", multiple=True, metavar="3.X", default=SYSTEMS, show_default=True,
              help="The nodes' own Python, for our tools; may be said several times.")  # fmt: skip
@click.option("--machine", type=click.Choice(["x86_64", "aarch64"]), default="x86_64", show_default=True)
def wheelhouse(
    folder: Path, runtime: str, plugins: Path | None, pythons: Sequence[str], machine: str
) -> None:
    """Fetch into FOLDER every wheel that nodes need, each by its hash in the lock files.

    Then no node asks a package index: say `wheelhouse` in the inventory, a folder that is on every node
    (`rackserve spread FOLDER` copies the head's) or the address of one that a web server lists. What is
    there already is not fetched again, and nothing is removed.
    """
    from roles.runtime import LOCKS, PYTHON, locks, wheels
    from roles.runtime.indexes import TORCH_CPU

    for python in pythons:
        if not (python.startswith("3.") and python[2:].isdigit()):
            raise Refused(f"--python {python}: say which, as in 3.11")
    wanted = [(LOCKS / "tools.lock", python) for python in pythons]
    wanted += [(lock, PYTHON[runtime]) for lock in locks(runtime, str(plugins) if plugins else None)]
    _made(folder)
    before = {path.name for path in folder.iterdir()}
    for lock, python in wanted:
        click.echo(f"{lock.name} for Python {python} on {machine}", err=True)
        with tempfile.TemporaryDirectory() as scratch:
            chosen = Path(scratch) / lock.name
            chosen.write_text(wheels.pinned(lock.read_text(), python, machine))
            words = [sys.executable, "-m", "pip", *wheels.download(chosen, folder, python, machine)]
            # An index that this machine is set up with may know of a +cpu torch.
            also = [[], ["--extra-index-url", TORCH_CPU]] if runtime == "cpu" else [[]]
            if not any(_done([*words, *more]) for more in also):
                raise Failed(f"{folder} is not complete: see pip's last words above, and run it again")
    there = list(folder.glob("*.whl"))
    size = sum(path.stat().st_size for path in there) / 2**30
    click.echo(f"{folder}: {len(there)} wheels, {size:.1f} GiB; {len({p.name for p in there} - before)} new")


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{folder}: {error.strerror}") from None


def _done(words: Sequence[str]) -> bool:
    return subprocess.run(words, stdin=subprocess.DEVNULL).returncode == 0
