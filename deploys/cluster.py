"""From pyinfra's inventory to the values that deploys follow. Reads; changes nothing."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar

from pyinfra import host, inventory, state
from pyinfra.api.exceptions import PyinfraError
from pyinfra.connectors import util

from models.errors import BadInput, InventoryError
from roles import base, lock, recall, service, weights
from roles.network import Interface

from .planning import of_host, plans_of
from .settings import Settings, check_names, check_same, check_typos, settings

if TYPE_CHECKING:
    from pyinfra.api import FactBase, Host
    from pyinfra.api.inventory import Inventory

    from models.plan import Node, Plan, Replica

T = TypeVar("T")

# What pyinfra has loaded stays until the end: looking through it for garbage then takes a tenth
# of a run that changes nothing.
gc.freeze()

# pyinfra would ask for a password of sudo's at the terminal, a host at a time, or end in an EOFError where
# there is none. Answered with none, the question fails, and what the host lacks is said by `fit`.
util.getpass = lambda prompt: ""


class Refused(PyinfraError):
    """Bad input, as pyinfra prints it: one line, before anything is changed."""


@dataclass(frozen=True)
class Cluster:
    """An inventory read and checked: the control host, and every host's settings."""

    control: Host
    hosts: dict[str, Settings]
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what the settings were read from

    @property
    def nodes(self) -> list[Node]:
        from models.plan import Node

        return [Node(name, own.address, own.gpus, own.gpu) for name, own in self.hosts.items()]

    @property
    def uplinks(self) -> list[str]:
        """The hosts that are to download, if some were named."""
        return [name for name, own in self.hosts.items() if own.uplink]


def cluster() -> Cluster:
    """This run's cluster; Refused when the inventory is not one."""
    return refusing(_read_cluster)


def reached() -> Cluster:
    """This run's cluster, of which some hosts may be out of reach: enough for who only looks."""
    return refusing(lambda: read(inventory))


def begin() -> None:
    """How every deploy that changes something begins: its hosts are fit, and the lock is ours."""
    if cluster().control not in state.activated_hosts:
        name = cluster().control.name
        raise Refused(f"{name} holds the lock, and --limit leaves it out: add --limit {name}")
    # For each operation pyinfra asks of each frame which module it is in. A deploy's file is none, and
    # inspect looks through all there are each time: a twentieth of a run that changes nothing.
    inspect.modulesbyfile[os.path.abspath(state.current_exec_filename or "")] = "__main__"
    recall.facts(inventory.get_host(host.name))
    fit()
    if on_control():
        lock.hold(name="Hold the lock")
    lock.held(name="The lock is held")


def fit() -> None:
    """What is ours can work on every host; Refused says what any of them lacks."""
    base.lacks(inventory.get_host(host.name))  # each its own, side by side, before one asks all
    with _once:
        refuse(_unfit())


def refuse(problems: Sequence[str]) -> None:
    """End the run where there are any, before anything is changed."""
    if problems:
        raise Refused("; ".join(problems))


def on_control() -> bool:
    """True for the code that is running for the control host."""
    return host.name == cluster().control.name


def here() -> Settings:
    """The settings of the host that this code is running for."""
    return cluster().hosts[host.name]


def plans() -> list[Plan]:
    """This run's plans, one for each model; Refused says why there can be none."""
    # What the deploy's own data says (serve_llama's model) is seen through `host` only, which is
    # whichever host came first: it is for all that do not say otherwise.
    said = host.get_deploy_data() or {}
    return refusing(lambda: _make_plans(said))


def plan(name: str = "") -> Plan:
    """Of the model that a host serves, or this host; of the first where it serves none."""
    return of_host(plans(), name or host.name)


def planned() -> list[Replica]:
    """The replicas of all plans."""
    return [replica for made in plans() for replica in made.replicas]


def gateways() -> list[str]:
    """The hosts that are gateways; Refused when `gateway` names none of the inventory."""
    return refusing(lambda: gateways_of(cluster(), here()))


def payloads() -> list[weights.Payload]:
    """The folders that `--data _folders=A,B` names."""
    folders = str(host.data.get("_folders") or "").split(",")
    return refusing(lambda: [weights.Payload(folder.rstrip("/") or folder) for folder in folders])


def network_of(name: str) -> dict[str, str]:
    """The network variables of a host; Refused when it has no such address."""
    own = cluster().hosts[name]
    interface = own.interface or asked(name).get_fact(Interface, address=own.address, _sudo=False)
    if not interface:
        raise Refused(f"{name}: no interface has the address {own.address}; correct `address`")
    return service.network(own.address, interface)


def asked(name: str) -> Host:
    """A host of this run that is not the one whose turn it is, to ask it something."""
    other = inventory.get_host(name)
    recall.facts(other)
    return other


def seen(
    fact: type[FactBase[T]], provided: Callable[[Settings], object],
    arguments: Callable[[Settings], dict[str, Any]] = lambda _: {},
) -> dict[str, T]:  # fmt: skip
    """{host: what a fact says of it}, of the hosts of this run whose settings say that it is `provided`.

    A host that cannot be asked is not among them: what it lacks is said by `fit`.
    """
    active = {member.name for member in state.activated_hosts}
    looks = {
        name: asked(name).get_fact(fact, **arguments(own), _ignore_errors=True)
        for name, own in cluster().hosts.items()
        if name in active and provided(own)
    }
    return {name: look for name, look in looks.items() if look}


def read(source: Inventory) -> Cluster:
    """Check an inventory: one head, a host at least, addresses that differ."""
    check_names(source.override_data)
    names = [member.name for group in ("head", "workers") for member in _group(source, group)]
    heads = _group(source, "head")
    if not names:
        raise InventoryError("the inventory has no hosts: fill the groups head and workers")
    if len(heads) != 1:
        found = ", ".join(member.name for member in heads) or "none"
        raise InventoryError(f"the inventory needs one host in the group head; it has {found}")
    data = {name: _data(source, name).dict() for name in dict.fromkeys(names)}
    for name, given in data.items():
        check_typos(name, given)
    hosts = {name: settings(name, given) for name, given in data.items()}
    check_same(hosts)
    by_address: dict[str, str] = {}
    for name, own in hosts.items():
        other = by_address.setdefault(own.address, name)
        if other != name:
            raise InventoryError(f"{other} and {name} have the same address {own.address}")
    return Cluster(control=heads[0], hosts=hosts, data=data)


def gateways_of(cluster: Cluster, own: Settings) -> list[str]:
    """The hosts that the settings make gateways."""
    said = own.gateway
    if isinstance(said, bool):
        return [cluster.control.name] if said else []
    names = [name.strip() for name in (said.split(",") if isinstance(said, str) else said)]
    for name in names:
        if name not in cluster.hosts:
            raise InventoryError(f"gateway: no host {name} in the inventory")
    return names


_once = RLock()  # hosts are prepared side by side

#: Of this run, by what the deploy's own data says.
_plans: dict[str, list[Plan]] = {}


@cache
def _unfit() -> list[str]:
    lacks = {one.name: base.lacks(one) for one in state.activated_hosts}
    return [f"{name}: {said}" for name, said in lacks.items() if said]


@cache
def _read_cluster() -> Cluster:
    # The first host that fails ends the run: a cluster with one rank missing serves nothing.
    state.config.FAIL_PERCENT = 0
    state.config.lock_current_state()  # which pyinfra goes back to after it has read a deploy
    if state.failed_hosts:
        names = ", ".join(sorted(host.name for host in state.failed_hosts))
        raise InventoryError(f"{names}: cannot be reached over SSH; nothing was changed on any host")
    return read(inventory)


def _make_plans(said: Mapping[str, Any]) -> list[Plan]:
    key = repr(sorted(said.items()))
    if key not in _plans:
        _plans[key] = plans_of(_read_cluster(), said)
    return _plans[key]


def refusing(read):
    """What `read` returns; bad input that it raises is Refused, as pyinfra prints it."""
    try:
        return read()
    except BadInput as error:
        raise Refused(str(error)) from None


def _group(source: Inventory, name: str) -> list[Host]:
    return list(source.groups.get(name, ()))


def _data(source: Inventory, name: str):
    return source.get_host(name).data
