"""From what runs to what is to run: which replicas are replaced, in which order. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from .errors import InventoryError


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
    serves: str = ""  # the name by which clients ask for the model

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


@dataclass(frozen=True)
class Step:
    """One replica that gets a release; `old` is how it was found."""

    new: Release
    old: Found | None = None

    @property
    def name(self) -> str:
        return self.new.replica

    @property
    def hosts(self) -> tuple[str, ...]:
        """All that have something of it, before or after; the first is the one that has its API before."""
        before = (*(self.was.hosts if self.was else ()), *(self.old.hosts if self.old else ()))
        return tuple(dict.fromkeys((*before, *self.new.hosts)))

    @property
    def was(self) -> Release | None:
        return self.old.release if self.old else None

    @property
    def back(self) -> Proof | None:
        """What it goes back to when the new release fails."""
        return self.old.before(self.new.id) if self.old else None

    @property
    def expected(self) -> str | None:
        """What it answered last time with the same weights."""
        if self.old is None or self.was is None or self.was.model != self.new.model:
            return None
        proof = self.old.proof(self.was.id)
        return proof.answer if proof else None


@dataclass(frozen=True)
class Batch:
    """Replicas that are replaced together: mostly one, more where they hand GPUs to each other."""

    steps: tuple[Step, ...]
    fresh: bool  # none of them answers now

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(step.name for step in self.steps)

    @property
    def title(self) -> str:
        return ", ".join(self.names)


@dataclass(frozen=True)
class Rollout:
    """All that a run does: `leaving` first, then batch after batch. `staying` are not touched."""

    leaving: Mapping[str, Found]
    batches: Sequence[Batch]
    staying: Sequence[Release] = ()
    well: Sequence[str] = ()  # those that generate now, and those of `staying` that are about to

    def __bool__(self) -> bool:
        return bool(self.leaving or self.batches)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        return tuple(step for batch in self.batches for step in batch.steps)

    @property
    def answering(self) -> list[str]:
        """Those to which a gateway is to send requests before anything is done, if anything is."""
        return [name for name in self.well if name not in self.leaving] if self else []

    @property
    def names(self) -> tuple[str, ...]:
        """The replicas that are there in the end."""
        return tuple(release.replica for release in self.serving(len(self.batches)))

    def serving(self, done: int) -> list[Release]:
        """What the replicas are after that many batches: what they get, or still have."""
        after = {step.name for batch in self.batches[:done] for step in batch.steps}
        now = [step.new if step.name in after else step.was for step in self.steps]
        known = [release for release in (*now, *self.staying) if release is not None]
        return sorted(known, key=lambda release: (len(release.replica), release.replica))


def rollout(wanted: Sequence[Release], found: Mapping[str, Found], only: str | None = None) -> Rollout:
    """What is to be done for every replica to run what is wanted, and no other replica to run.

    + only: the one replica that may be replaced; InventoryError when it is not planned
    Those that answer nobody come first and all at once, unless they wait for another's GPUs; then one
    after another, in the plan's order.
    """
    names = [release.replica for release in wanted]
    if only is not None and only not in names:
        raise InventoryError(f"no replica {only}; there are: {', '.join(names)}")
    steps = [
        Step(release, found.get(release.replica))
        for release in wanted
        if only in (None, release.replica) and _differs(release, found.get(release.replica))
    ]
    there = {name: seen for name, seen in found.items() if seen.hosts}
    leaving = {name: seen for name, seen in there.items() if name not in names and only is None}
    groups = list(_groups(steps))
    at_once = [step for group in groups if not any(map(_answers, group)) for step in group]
    later = [Batch(tuple(group), fresh=False) for group in groups if any(map(_answers, group))]
    touched = {step.name for step in steps}
    staying = [
        seen.release for name, seen in there.items() if name not in (*touched, *leaving) and seen.release
    ]
    batches = [*([Batch(tuple(at_once), fresh=True)] if at_once else []), *later]
    well = [
        name
        for name, seen in there.items()
        if seen.release and (seen.up or seen.settled and name not in touched)
    ]
    return Rollout(leaving, batches, staying, well)


def before(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """{replica: release} of before the last run, and before those that broke off and that it finished.

    Of a rollback that broke off, what it was to put in place. `runs` are the history's entries, the oldest
    first; InventoryError when there is none.
    """
    if not runs:
        raise InventoryError("nothing has run yet: there is nothing to go back to")
    last, targets = runs[-1], {}
    if last["deploy"] == "rollback" and last["outcome"] != "done":
        return {name: now for name, (_, now) in last["replicas"].items()}
    for run in reversed(runs):
        if run is not last and (run["outcome"] != "begun" or last["deploy"] == "rollback"):
            break
        targets.update({name: was for name, (was, _) in run["replicas"].items()})
    return targets


def back(found: Mapping[str, Found], targets: Mapping[str, str]) -> Rollout:
    """What is to be done for replicas to run the releases of those ids again; {replica: id}.

    Without an id a replica is to go. InventoryError when a release is not kept.
    """
    wanted = []
    for name, id in ((name, id) for name, id in targets.items() if id):
        proof = found[name].proof(id) if name in found else None
        if proof is None:
            raise InventoryError(f"{name}: its release {id} is not kept; deploy it anew")
        wanted.append(proof.release)
    made = rollout(wanted, found)
    leaving = {name: seen for name, seen in made.leaving.items() if targets.get(name) == ""}
    left = [seen.release for name, seen in made.leaving.items() if name not in leaving and seen.release]
    return replace(made, leaving=leaving, staying=[*made.staying, *left])


def _differs(wanted: Release, found: Found | None) -> bool:
    return not found or found.release is None or found.release.id != wanted.id or not found.settled


def _answers(step: Step) -> bool:
    return step.old is not None and step.old.up


def _groups(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Steps of which one wants GPUs that another has, together; in order of their first."""
    left = list(steps)
    while left:
        group = [left.pop(0)]
        for member in group:  # grows while we look
            near = [step for step in left if _meet(member, step)]
            group += near
            left = [step for step in left if step not in near]
        yield sorted(group, key=steps.index)


def _meet(one: Step, other: Step) -> bool:
    return any(new.meets(was) for new, was in ((one.new, other.was), (other.new, one.was)) if was is not None)


def merged(seen: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Found]:
    """{replica: Found} from {host: {replica: what roles/releases/node.py says of it there}}."""
    names = dict.fromkeys(name for its in seen.values() for name in its)
    return {name: _found({host: its[name] for host, its in seen.items() if name in its}) for name in names}


def _found(on: Mapping[str, Mapping[str, Any]]) -> Found:
    proofs = {
        (id, said["proven"]): Proof(Release.from_json(said["release"]), said["proven"], said["answer"])
        for its in on.values()
        for id, said in its["kept"].items()
        if said["proven"]
    }
    hosts = tuple(host for host, its in on.items() if its["there"])
    release = next(_installed(on.values()), None)
    return Found(
        release=release,
        hosts=hosts,
        settled=release is not None
        and {*hosts} == {*release.hosts}
        and all(on[host]["installed"] == release.id and on[host]["settled"] for host in hosts),
        up=any(its["up"] for its in on.values()),
        proofs=tuple(proofs.values()),
    )


def _installed(on: Iterable[Mapping[str, Any]]) -> Iterator[Release]:
    """Of its first host, if that is known; its hosts may have different ones when a run broke off."""
    said = [its["kept"].get(its["installed"]) for its in on]
    releases = [Release.from_json(one["release"]) for one in said if one]
    yield from sorted(releases, key=lambda release: release.id)
