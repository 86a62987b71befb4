"""A wheelhouse: which entries of a lock another machine needs, and what pip fetches of them."""

import hashlib
import subprocess
import sys
from zipfile import ZipFile

import pytest
from click.testing import CliRunner

from roles.runtime import LOCKS, PYTHON, wheels
from scripts.wheelhouse import SYSTEMS, wheelhouse

LOCK = """\
anyio==4.16.0 ; sys_platform != 'emscripten' \\
    --hash=sha256:59bb \\
    --hash=sha256:c66a
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:4f1d
filelock==4.1.0 ; python_full_version < '3.11' \\
    --hash=sha256:aaaa
filelock==4.2.11 ; python_full_version >= '3.11' \\
    --hash=sha256:bbbb
hf-xet==1.8.0 ; platform_machine == 'x86_64' \\
    --hash=sha256:cccc
idna==3.1 --hash=sha256:dddd
"""


@pytest.mark.parametrize(
    ("python", "machine", "names"),
    [
        ("3.10", "x86_64", "anyio==4.16.0 filelock==4.1.0 hf-xet==1.8.0 idna==3.1"),
        ("3.12", "aarch64", "anyio==4.16.0 filelock==4.2.11 idna==3.1"),
    ],
)
def test_markers_are_those_of_the_node_not_of_this_machine(python, machine, names):
    chosen = wheels.pinned(LOCK, python, machine)
    assert " ".join(line.split()[0] for line in chosen.splitlines() if "==" in line) == names
    assert ";" not in chosen and "--hash=sha256:c66a" in chosen


@pytest.mark.parametrize(
    ("lock", "python"),
    [*(("tools", python) for python in SYSTEMS), ("cuda", PYTHON["cuda"]), ("cpu", "3.11")],
)
def test_our_locks_lose_nothing_but_what_is_for_others(lock, python):
    text = (LOCKS / f"{lock}.lock").read_text()
    chosen = wheels.pinned(text, python, "x86_64")
    names = [line.partition("==")[0] for line in chosen.splitlines() if not line.startswith(" ")]
    every = {line.partition("==")[0] for line in text.splitlines() if "==" in line and line[0] != " "}
    assert len(names) == len(set(names)) and set(names) <= every
    assert every - set(names) <= {"colorama", "exceptiongroup", "httpx2-jsfetch", "tomli"}


def made(folder, tag):
    """An empty wheel; its entry in a lock."""
    file = folder / f"tiny-1.0-{tag}.whl"
    with ZipFile(file, "w") as packed:
        packed.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        packed.writestr("tiny-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        packed.writestr("tiny-1.0.dist-info/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("python", "machine", "fetched"),
    [
        ("3.12", "x86_64", "cp312-cp312-manylinux_2_28_x86_64"),
        ("3.10", "x86_64", "cp38-abi3-manylinux2014_x86_64"),
        ("3.12", "aarch64", "py3-none-manylinux_2_25_aarch64"),
    ],
)
def test_pip_takes_the_wheel_for_that_python_on_that_machine(tmp_path, python, machine, fetched):
    index, folder, lock = tmp_path / "index", tmp_path / "wheelhouse", tmp_path / "lock"
    index.mkdir()
    tags = ["cp312-cp312-manylinux_2_28_x86_64", "cp38-abi3-manylinux2014_x86_64",
            "py3-none-manylinux_2_25_aarch64", "cp312-cp312-win_amd64"]  # fmt: skip
    hashes = " ".join(f"--hash=sha256:{made(index, tag)}" for tag in tags)
    lock.write_text(wheels.pinned(f"tiny==1.0 {hashes}\n", python, machine))
    words = [sys.executable, "-m", "pip", *wheels.download(lock, folder, python, machine)]
    subprocess.run([*words, "--no-index", "--find-links", index], check=True, capture_output=True)
    assert [file.name for file in folder.iterdir()] == [f"tiny-1.0-{fetched}.whl"]


def test_bad_input_is_one_line(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for words, said in (
        (["--python", "2.7", str(tmp_path / "new")], "--python 2.7: say which, as in 3.11"),
        ([str(file / "below")], "Not a directory"),
    ):
        done = CliRunner().invoke(wheelhouse, words)
        assert done.exit_code == 2 and said in done.output and done.output.count("\n") == 1
