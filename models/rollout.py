"""From what runs to what is to run: which replicas are replaced, in which order. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from .errors import InventoryError
from .release import Found, Proof, Release


@dataclass(frozen=True)
class Step:
    """One replica that gets a release, or only new boots; `old` is how it was found.

    `reboot` are those of its hosts that are rebooted while it is stopped.
    """

    new: Release
    old: Found | None = None
    reboot: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.new.replica

    @property
    def hosts(self) -> tuple[str, ...]:
        """All that have something of it, before or after; the first is the one that has its API before."""
        before = (*(self.was.hosts if self.was else ()), *(self.old.hosts if self.old else ()))
        back = self.back.release.hosts if self.back else ()
        return tuple(dict.fromkeys((*before, *self.new.hosts, *back)))

    @property
    def was(self) -> Release | None:
        return self.old.release if self.old else None

    @property
    def back(self) -> Proof | None:
        """What it goes back to when the new release fails: what it ran, if that was ever well."""
        if self.old is None or self.only_reboots:
            return None
        own = self.old.proof(self.was.id) if self.was and self.was.id != self.new.id else None
        return own or self.old.before(self.new.id)

    @property
    def only_reboots(self) -> bool:
        """No other release would be better off."""
        return bool(self.reboot) and not _differs(self.new, self.old)

    @property
    def expected(self) -> str | None:
        """What it answered with the same weights: best this release itself, else what ran before."""
        if self.old is None:
            return None
        known = (self.old.proof(self.new.id), self.back)
        return next(
            (proof.answer for proof in known if proof and proof.release.model == self.new.model), None
        )


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

    @property
    def reboot(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(host for step in self.steps for host in step.reboot))


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
        """Those to which a gateway is to send requests before anything is done."""
        return [name for name in self.well if name not in self.leaving]

    @property
    def well_after(self) -> list[str]:
        """Those to which a gateway is to send requests when all is done."""
        well = {*self.well, *(step.name for step in self.steps)}
        return [name for name in self.names if name in well]

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


def rollout(
    wanted: Sequence[Release],
    found: Mapping[str, Found],
    only: str | None = None,
    reboot: Collection[str] = (),
) -> Rollout:
    """What is to be done for every replica to run what is wanted, and no other replica to run.

    + only: the one replica that may be replaced; InventoryError when it is not planned
    + reboot: hosts that are to be rebooted, each while all replicas on it are stopped
    Those that answer nobody come first and all at once, unless they wait for another's GPUs; then one
    after another, in the plan's order.
    """
    names = [release.replica for release in wanted]
    if only is not None and only not in names:
        raise InventoryError(f"no replica {only}; there are: {', '.join(names)}")
    chosen = [
        Step(release, old := found.get(release.replica), _among(reboot, release, old))
        for release in wanted
        if only in (None, release.replica)
    ]
    steps = [step for step in chosen if step.reboot or _differs(step.new, step.old)]
    for step in steps if only else ():
        beside = [name for name, seen in found.items() if name != only and {*seen.hosts} & {*step.reboot}]
        if beside:
            raise InventoryError(f"{only} and {beside[0]} share a host that is rebooted: leave out --replica")
        if other := next((seen.release for name, seen in found.items() if name != only and seen.hosts
                          and seen.release and step.new.meets(seen.release)), None):  # fmt: skip
            raise InventoryError(f"{only} is to get GPUs of {other.replica}: replace both, without --replica")
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
    if leaving and not made.names:
        raise InventoryError("before the last run nothing was served: run the deploy teardown for that")
    left = [seen.release for name, seen in made.leaving.items() if name not in leaving and seen.release]
    return replace(made, leaving=leaving, staying=[*made.staying, *left])


def _differs(wanted: Release, found: Found | None) -> bool:
    """Also where a run broke off before it saw the release generate, and there is one to go back to."""
    if not found or found.release is None or found.release.id != wanted.id or not found.settled:
        return True
    return bool(found.proofs) and not found.proof(wanted.id)


def _among(reboot: Collection[str], release: Release, old: Found | None) -> tuple[str, ...]:
    """Those of the hosts to be rebooted that a replica has, before or after."""
    return tuple(
        host for host in dict.fromkeys((*release.hosts, *(old.hosts if old else ()))) if host in reboot
    )


def _answers(step: Step) -> bool:
    return step.old is not None and step.old.up


def _groups(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Steps of which one wants GPUs that another has, or on a host that is rebooted, together.

    In order of their first.
    """
    left = list(steps)
    while left:
        group = [left.pop(0)]
        for member in group:  # grows while we look
            near = [step for step in left if _meet(member, step)]
            group += near
            left = [step for step in left if step not in near]
        yield sorted(group, key=steps.index)


def _meet(one: Step, other: Step) -> bool:
    return bool({*one.reboot} & {*other.reboot}) or any(
        new.meets(was) for new, was in ((one.new, other.was), (other.new, one.was)) if was is not None
    )
