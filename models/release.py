"""What a replica runs, and what of that its hosts have: as they say it, put together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

#: Before the name of a replica that is started without weights, once: nothing is served by it.
TRIAL = "trial-"


@dataclass(frozen=True)
class Release:
    """What a replica runs, under an id of all its files on all its hosts.

    The first of `hosts` has its API, at `address` and `port`; `devices` are the numbers of its GPUs on
    each; `requests` is how many it works on at once; `model` the folder of its weights.
    """

    replica: str
    id: str
    hosts: tuple[str, ...]
    address: str
    port: int
    health_port: int
    requests: int
    devices: tuple[int, ...]
    model: str
    parts: tuple[str, ...] = ()  # the units of its first host
    serves: str = ""  # the model's name
    names: tuple[str, ...] = ()  # by which clients ask for it

    @property
    def head(self) -> str:
        return self.hosts[0]

    def meets(self, other: Release) -> bool:
        """True when both want the same GPU."""
        return bool({*self.hosts} & {*other.hosts} and {*self.devices} & {*other.devices})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Release:
        own: dict[str, Any] = {
            field.name: tuple(one) if isinstance(one := said[field.name], list) else one
            for field in fields(cls)
            if field.name in said
        }
        return cls(**own)


@dataclass(frozen=True)
class Proof:
    """A release that was seen to generate: when (seconds since the epoch), and what it answered."""

    release: Release
    at: float
    answer: str


@dataclass(frozen=True)
class Found:
    """A replica as its hosts have it.

    `settled`: all have the same release, with the files as they were written, and run them. `up`: it
    generates. `hosts` are those that have anything of it. `proofs` are of the releases it can go back to.
    """

    release: Release | None
    hosts: tuple[str, ...]
    settled: bool = False
    up: bool = False
    proofs: tuple[Proof, ...] = ()

    def before(self, id: str) -> Proof | None:
        """The last release other than that one that was seen to generate."""
        others = (proof for proof in self.proofs if proof.release.id != id)
        return max(others, key=lambda proof: proof.at, default=None)

    def proof(self, id: str) -> Proof | None:
        return next((proof for proof in self.proofs if proof.release.id == id), None)


def merged(seen: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Found]:
    """{replica: Found} from {host: {replica: what roles/releases/node.py says of it there}}."""
    names = dict.fromkeys(name for its in seen.values() for name in its)
    return {name: _found({host: its[name] for host, its in seen.items() if name in its}) for name in names}


def _found(on: Mapping[str, Mapping[str, Any]]) -> Found:
    said = ((id, one) for its in on.values() for id, one in its["kept"].items() if one["proven"])
    proofs = [Proof(Release.from_json(one["release"]), one["proven"], one["answer"]) for _, one in said]
    latest = {proof.release.id: proof for proof in sorted(proofs, key=lambda proof: proof.at)}
    # One that a host has lost, or whose host is no longer among these, can be put back nowhere.
    whole = [
        proof
        for id, proof in latest.items()
        if all(host in on and id in on[host]["kept"] for host in proof.release.hosts)
    ]
    hosts = tuple(host for host, its in on.items() if its["there"])
    release = next(_installed(on.values()), None)
    return Found(
        release=release,
        hosts=hosts,
        settled=release is not None
        and {*hosts} == {*release.hosts}
        and all(on[host]["installed"] == release.id and on[host]["settled"] for host in hosts),
        up=any(its["up"] for its in on.values()),
        proofs=tuple(whole),
    )


def _installed(on: Iterable[Mapping[str, Any]]) -> Iterator[Release]:
    """Of its first host, if that is known; its hosts may have different ones when a run broke off."""
    said = [its["kept"].get(its["installed"]) for its in on]
    releases = [Release.from_json(one["release"]) for one in said if one]
    yield from sorted(releases, key=lambda release: release.id)
