"""Who may import whom, read from the sources."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
OURS = {"models", "roles", "deploys", "inventories", "scripts", "tests"}

#: What other roles stand on; every other role knows only itself.
SHARED = {"barrier", "debian", "files", "mounts", "network", "programs", "recall", "remote", "service",
          "units"}  # fmt: skip


def sources(folder):
    return sorted(path.relative_to(REPOSITORY) for path in (REPOSITORY / folder).rglob("*.py"))


def imports(path):
    """The dotted names a file imports, relative ones made absolute, inside functions too."""
    package = path.parent.parts
    found = set()
    for node in ast.walk(ast.parse((REPOSITORY / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            found.add(module)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def reaches(path):
    return {name.split(".")[0] for name in imports(path)}


def test_the_imports_of_a_known_file_are_seen():
    assert {"roles.barrier", "deploys.cluster", "pyinfra"} <= imports(Path("deploys/serve.py"))
    assert "models.model" in imports(Path("models/plan.py"))
    assert "roles.units.facts" in imports(Path("roles/units/__init__.py"))


@pytest.mark.parametrize("path", sources("models"), ids=str)
def test_models_know_nothing_of_pyinfra_or_of_what_is_above_them(path):
    assert not reaches(path) & {"pyinfra", "pyinfra_cli", "gevent", *(OURS - {"models"})}


@pytest.mark.parametrize("path", sources("roles"), ids=str)
def test_roles_know_nothing_of_what_is_above_them(path):
    assert not reaches(path) & (OURS - {"models", "roles"})


@pytest.mark.parametrize("path", sources("roles"), ids=str)
def test_a_role_uses_no_other_role_but_the_shared_ones(path):
    own = path.parts[1].removesuffix(".py")
    used = {name.split(".")[1] for name in imports(path) if name.startswith("roles.")}
    assert used <= SHARED | {own}


@pytest.mark.parametrize("name", sorted(SHARED))
def test_shared_roles_use_only_shared_ones(name):
    folder = [path for path in sources("roles") if path.parts[1].removesuffix(".py") == name]
    assert folder
    used = {used.split(".")[1] for path in folder for used in imports(path) if used.startswith("roles.")}
    assert used <= SHARED


@pytest.mark.parametrize("path", sources("deploys"), ids=str)
def test_deploys_know_nothing_of_scripts_inventories_or_tests(path):
    assert not reaches(path) & {"scripts", "inventories", "tests", "click"}


WEIGHTS = [str(path) for path in sources("roles/weights/node")]


@pytest.mark.parametrize(
    "path",
    [
        "roles/lock/lock.py",
        "roles/health/probe.py",
        "roles/health/question.py",
        "roles/gateway/admin.py",
        "roles/gateway/watch.py",
        "roles/releases/release.py",
        "roles/replicas/look.py",
        *WEIGHTS,
        *map(str, sources("roles/doctor/node")),
        *map(str, sources("roles/gang/node")),
    ],
)
def test_what_runs_on_a_node_imports_nothing_of_ours(path):
    assert not reaches(Path(path)) & {*OURS, "pyinfra"}


SWARM = [
    f"roles/weights/node/{name}.py" for name in ("pieces", "store", "dealing", "wire", "giving", "swarm")
]


#: All but the one for vLLM's Python.
DOCTOR = [str(path) for path in sources("roles/doctor/node") if path.stem != "allreduce"]
GANG = [str(path) for path in sources("roles/gang/node")]
SYSTEM = ["roles/lock/lock.py", "roles/replicas/look.py", "roles/gateway/admin.py"]


@pytest.mark.parametrize("path", [*SYSTEM, *SWARM, *DOCTOR, *GANG])
def test_what_runs_on_the_systems_python_needs_only_the_standard_library(path):
    import sys

    beside = {Path(other).stem for group in (SWARM, DOCTOR, GANG) if path in group for other in group}
    assert reaches(Path(path)) <= {*sys.stdlib_module_names, "__future__", *beside}
