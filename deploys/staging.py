"""A snapshot on every node of the plan: resolved and downloaded once, given on, verified everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pyinfra import host

from roles import runtime, secret, weights
from roles.barrier import barrier

from .cluster import cluster, here, on_control, plan, plans

if TYPE_CHECKING:
    from models.model import Model
    from models.plan import Plan
    from roles.weights.where import Staged

PYTHON = f"{runtime.TOOLS}/bin/python"


def fetched() -> list[Plan]:
    """Those of the plans whose weights are staged by us."""
    return [made for made in plans() if cluster().hosts[made.hosts[0]].weights_path is None]


def resolve(wanted: Sequence[Staged]) -> None:
    """The commit of each, asked of the hub or the mirror once."""
    for one in host.loop(wanted if on_control() else ()):
        weights.resolved(name=f"Resolve {one.repository}", python=PYTHON, model=one, source=_source())
    barrier(name="The commit is known")


def stage(of: Callable[[Model], Staged]) -> None:
    """What `of` makes of this host's model: the model itself, or what is to be there of it."""
    model, control = of(plan().model), cluster().control
    uplinks = [name for name in cluster().uplinks if plan(name) == plan()] or plan().hosts[:1]
    copies = weights.copies(weights.disks([*uplinks, *plan().hosts], weights.root(model)))
    uplinks = [name for name in uplinks if copies[name] == name]
    nodes = {name: cluster().hosts[name].address for name in dict.fromkeys(copies.values())}
    if host.name in nodes:
        weights.roomy(name="Look for room", python=PYTHON, model=model, control=control)
    barrier(name="There is room everywhere")
    if host.name in uplinks:
        weights.downloaded(
            name=f"Download {model.repository}",
            python=PYTHON, model=model, source=_source(), control=control, among=list(nodes), uplinks=uplinks,
        )  # fmt: skip
    barrier(name="What the hub has is here")
    if host.name in nodes:
        weights.staged(
            name=f"Stage {model.repository}",
            python=PYTHON, model=model, control=control, among=nodes, uplinks=uplinks,
            secret=secret.derive(secret.value(control), f"weights {model.repository}"),
        )  # fmt: skip
    barrier(name="Every copy is whole")
    if host.name in copies and host.name not in nodes:
        weights.shared(
            name=f"Look for {model.repository} on the shared file system",
            python=PYTHON, model=model, control=control, with_=copies[host.name],
        )  # fmt: skip


def usable() -> None:
    """The folder that the user staged is this host's model, where it serves one."""
    folder, model = here().weights_path, plan().model
    if host.name in plan().hosts:
        weights.usable(name=f"Check {folder}", python=PYTHON, folder=folder, model=model)


def _source() -> weights.Source:
    own = here()
    return weights.Source(own.hf_endpoint, own.hf_token, own.mirror, own.mirror_options)
