"""What the lab serves to its nodes: wheels, and two models. Made once, then cached."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import ZipFile

from roles.runtime import LOCKS, PYTHON
from roles.runtime.indexes import TORCH_CPU

from .paths import ENVIRONMENT, GPU_VLLM, MODELS, PLUGINS, WHEELHOUSE
from .shell import LabError, run

HERE = Path(__file__).parent
LAB_LOCK = HERE / "locks/lab.lock"
#: What the wheelhouse has all wheels of.
SERVED = (LOCKS / "cpu.lock", LOCKS / "tools.lock", LAB_LOCK)
#: The lab's stand-in for a GPU, and the name that `vllm serve` looks for.
PLUGIN_PROJECTS = (HERE / "plugin", HERE / "plugin/vllm")

#: Where each model of the lab's is found at its hub; made by tests/lab/models.py.
REPOSITORIES = {
    "tiny-llama": "rackserve-lab/tiny-llama",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
#: A copy behind a gate, for the tests of tokens.
GATED = "rackserve-lab/tiny-llama-gated"
#: vLLM for GPUs, and what it imports that the CPU build's environment has not.
GPU_VLLM_NEEDS = ("vllm", "orjson")


def prepare(say: Callable[[str], None]) -> None:
    """Fill the wheelhouse and make the models, unless that is done."""
    if not _stamp().exists():
        say("fetching wheels (0.8 GB, once)")
        _fill_wheelhouse()
        _build_plugins()
        _install()
        _stamp().touch()
    if not all((MODELS / repository).exists() for repository in (*REPOSITORIES.values(), GATED)):
        say("making the lab's models (about a minute, once)")
        _make_models()


def gpu_vllm() -> Path:
    """vLLM as the lock for GPUs has it, for PYTHONPATH over the CPU build: its parser runs there.

    Only what Python reads of it is unpacked, and of what it needs beside the CPU build's.
    """
    pinned = _pinned(LOCKS / "cuda.lock", GPU_VLLM_NEEDS)
    folder = GPU_VLLM / hashlib.sha256(pinned.encode()).hexdigest()[:16]
    if not folder.exists():
        shutil.rmtree(GPU_VLLM, ignore_errors=True)
        wheels = GPU_VLLM / "wheels"
        wheels.mkdir(parents=True)
        (GPU_VLLM / "lock").write_text(pinned)
        run(ENVIRONMENT / "bin/python", "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
            "--only-binary", ":all:", "--requirement", GPU_VLLM / "lock", "--dest", wheels)  # fmt: skip
        for wheel in wheels.glob("*.whl"):
            with ZipFile(wheel) as packed:
                is_vllm = wheel.name.startswith("vllm-")
                packed.extractall(
                    GPU_VLLM / "new", [n for n in packed.namelist() if not (is_vllm and n.endswith(".so"))]
                )
        shutil.rmtree(wheels)
        (GPU_VLLM / "new").rename(folder)
    return folder


def _pinned(lock: Path, names: Sequence[str]) -> str:
    """Those packages of a lock file, with their hashes."""
    entries = re.split(r"\n(?=\S)", lock.read_text())
    return "\n".join(entry for entry in entries if entry.split("==")[0] in names) + "\n"


def _stamp() -> Path:
    """A file whose name says what the wheelhouse was filled from."""
    sources = (*SERVED, *sorted((HERE / "plugin").rglob("*.*")))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources if path.is_file()))
    return WHEELHOUSE / f".{digest.hexdigest()[:16]}"


def _fill_wheelhouse() -> None:
    shutil.rmtree(WHEELHOUSE, ignore_errors=True)
    WHEELHOUSE.mkdir(parents=True)
    _uv("venv", "--clear", "--seed", "--python", PYTHON["cpu"], ENVIRONMENT)
    for lock in SERVED:
        # `pip wheel`, for pip reads this machine's configuration and builds what has no wheel.
        command = [ENVIRONMENT / "bin/python", "-m", "pip", "wheel", "--quiet", "--no-deps",
                   "--require-hashes", "--requirement", lock, "--wheel-dir", WHEELHOUSE]  # fmt: skip
        try:
            run(*command)
        except LabError:
            run(*command, "--extra-index-url", TORCH_CPU)  # it did not know of a +cpu torch


def _build_plugins() -> None:
    lines = []
    for project in PLUGIN_PROJECTS:
        out = WHEELHOUSE / "plugin"
        run(ENVIRONMENT / "bin/python", "-m", "pip", "wheel", "--quiet", "--no-deps",
            "--wheel-dir", out, project)  # fmt: skip
        for wheel in out.glob("*.whl"):
            name, version = wheel.name.split("-")[:2]
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            lines.append(f"{name.replace('_', '-')}=={version} --hash=sha256:{digest}\n")
            wheel.rename(WHEELHOUSE / wheel.name)
        out.rmdir()
    PLUGINS.write_text("".join(lines))


def _install() -> None:
    """vLLM in the lab's own environment, which makes models and answers what vLLM would do."""
    _uv("pip", "sync", "--no-index", "--find-links", WHEELHOUSE, "--require-hashes",
        "--python", ENVIRONMENT / "bin/python", LOCKS / "cpu.lock", LAB_LOCK)  # fmt: skip


def _make_models() -> None:
    for maker, repository in REPOSITORIES.items():
        run(ENVIRONMENT / "bin/python", "-P", HERE / "models.py", maker, MODELS / repository)
    tiny, gated = MODELS / REPOSITORIES["tiny-llama"], MODELS / GATED
    shutil.copytree(tiny, gated, dirs_exist_ok=True)
    (gated / ".gated").touch()


def _uv(*words: str | Path) -> None:
    run(sys.executable, "-m", "uv", "--quiet", "--no-cache", *words)
