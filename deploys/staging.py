"""A snapshot on every node of the plan: resolved and downloaded once, given on, verified everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyinfra import host

from roles import runtime, secret, weights
from roles.barrier import barrier

from .cluster import cluster, here, on_control, plan, plans

if TYPE_CHECKING:
    from models.model import Model
    from roles.weights.where import Staged

PYTHON = f"{runtime.TOOLS}/bin/python"


def stage(of: Callable[[Model], Staged]) -> None:
    """What `of` makes of each host's model: the model itself, or what is to be there of it."""
    own, model, control = here(), of(plan().model), cluster().control
    source = weights.Source(own.hf_endpoint, own.hf_token, own.mirror, own.mirror_options)
    uplinks = [name for name in cluster().uplinks if plan(name) == plan()] or plan().hosts[:1]
    copies = weights.copies(weights.disks([*uplinks, *plan().hosts], weights.root(model)))
    uplinks = [name for name in uplinks if copies[name] == name]
    nodes = {name: cluster().hosts[name].address for name in dict.fromkeys(copies.values())}
    for one in host.loop([of(made.model) for made in plans()] if on_control() else ()):
        weights.resolved(name=f"Resolve {one.repository}", python=PYTHON, model=one, source=source)
    barrier(name="The commit is known")
    if host.name in nodes:
        weights.roomy(name="Look for room", python=PYTHON, model=model, control=control)
    barrier(name="There is room everywhere")
    if host.name in uplinks:
        weights.downloaded(
            name=f"Download {model.repository}",
            python=PYTHON, model=model, source=source, control=control, among=list(nodes), uplinks=uplinks,
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
    """The folder that the user staged is this host's model."""
    folder, model = here().weights_path, plan().model
    weights.usable(name=f"Check {folder}", python=PYTHON, folder=folder, model=model)
