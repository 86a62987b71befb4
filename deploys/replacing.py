"""Replicas get their releases: out of the gateway, drained, put in place, tried, let in; or put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from pyinfra import host

from models.release import Found, Release
from models.rollout import Batch, Rollout, Step
from roles import gang, gateway, health, releases, runtime, service
from roles.barrier import barrier

from .cluster import gateways, here, on_control
from .rebooting import reboot

PYTHON = f"{runtime.TOOLS}/bin/python"

#: Of this run, by replica: what went wrong, what it answered, and what it did not answer in time.
problems: dict[str, str] = {}
answers: dict[str, str] = {}
slow: dict[str, str] = {}


def retire(rollout: Rollout, entry: releases.Entry) -> None:
    """Replicas that are no longer planned, drained and gone."""
    leaving, title = rollout.leaving, ", ".join(rollout.leaving)
    spare(title, list(leaving), [release for release in rollout.serving(0)])
    take_out(list(leaving), entry)
    stop({name: stopping(found) for name, found in leaving.items()})
    for name in host.loop([name for name, found in leaving.items() if host.name in found.hosts]):
        releases.put(name=f"Remove {name}", replica=name, id=None)
    barrier(name=f"{title} is gone")


def replace(rollout: Rollout, place: int, entry: releases.Entry) -> None:
    """One batch of a rollout. A replica that does not do well goes back to what it ran, and the run ends."""
    batch = rollout.batches[place]
    others = [release for release in rollout.serving(place) if release.replica not in batch.names]
    if not batch.fresh:
        spare(batch.title, batch.names, others)
    take_out(batch.names, entry)  # also those that only began to answer since the run was planned
    stop({step.name: step.hosts for step in batch.steps})
    reboot(batch.reboot)
    swap(batch.steps, lambda step: step.new)
    prove(batch)
    if gateways():
        with when(partial(well, batch)):
            let_in(rollout.serving(place + 1), batch.names, None if batch.fresh else failed)
            if not batch.fresh:
                watch(rollout, place)
    with when(partial(well, batch)):
        keep_answers(batch)
    if goes_back(batch):
        with when(partial(ill, batch)):
            undo(rollout, place, entry)
    if on_control():
        releases.judged(name=f"{batch.title} does well", entry=entry, problem=partial(said, batch))
    barrier(name=f"{batch.title} runs")


def undo(rollout: Rollout, place: int, entry: releases.Entry) -> None:
    """A batch as it was before; of a replica that was not there, or never well, nothing stays."""
    batch = rollout.batches[place]
    take_out(batch.names, entry, cut=True)
    stop({step.name: step.hosts for step in batch.steps})
    swap(batch.steps, lambda step: step.back.release if step.back else None)
    back = [step for step in batch.steps if step.back]
    for step in host.loop([step for step in back if step.back and host.name == step.back.release.head]):
        if step.back:
            generate(step.back.release, otherwise=partial(still, step.name))
    barrier(name=f"{batch.title} runs what it ran before")
    if gateways():
        let_in(rollout.serving(place), [step.name for step in back], still)


def spare(title: str, names: Sequence[str], others: Sequence[Release]) -> None:
    """All others answer, or the run ends here."""
    if at_gateway():
        gateway.enough(
            name=f"Look whether {title} can be spared",
            besides=names, others=[other.replica for other in others], anyway=here().degraded,
        )  # fmt: skip
    barrier(name=f"{title} can be spared")


def take_out(names: Sequence[str], entry: releases.Entry, cut: bool = False) -> None:
    """No gateway sends them anything more, and what they were sent has been answered, or may be cut.

    When one does not come to an end in time, all get requests again, and the run ends.
    """
    own, title = here(), ", ".join(names)
    waits = None if cut or own.cut else slow.__setitem__
    for name in host.loop(names if at_gateway() else ()):
        gateway.drain(name=f"Take {name} out of the gateway", replica=name)
    for name in host.loop(names if at_gateway() else ()):
        gateway.drained(
            name=f"Wait until {name} has answered",
            replica=name, timeout=own.drain_timeout, otherwise=partial(waits, name) if waits else ignored,
        )  # fmt: skip
    barrier(name=f"{title} answers nobody")
    if gateways() and waits:
        with when(lambda: bool(slow)):
            for name in host.loop(names if at_gateway() else ()):
                gateway.ready(name=f"Let {name} go on", replica=name)
            barrier(name=f"{title} goes on as it was")
        if on_control():
            releases.judged(name=f"{title} has answered", entry=entry, problem=too_slow)
        barrier(name=f"{title} can be stopped")


def let_in(
    serving: Sequence[Release], names: Sequence[str], otherwise: Callable[[str, str], None] | None = None
) -> None:
    """The gateways know where replicas are, and send these what comes."""
    if at_gateway():
        gateway.serving(servers=[server(release) for release in serving], port=here().gateway_port)
    for name in host.loop(names if at_gateway() else ()):
        gateway.ready(name=f"Let {name} into the gateway", replica=name)
    for name in host.loop(names if at_gateway() else ()):
        gateway.seen(
            name=f"Wait until the gateway sees {name}",
            replica=name, otherwise=partial(otherwise, name) if otherwise else None,
        )  # fmt: skip
    barrier(name=f"{', '.join(names)} is in the gateway")


def stop(hosts: Mapping[str, Sequence[str]]) -> None:
    """Replicas are stopped: on their first host, which tells the others, before these."""
    title = ", ".join(hosts)
    for name in host.loop([name for name, members in hosts.items() if members[:1] == (host.name,)]):
        gang.stopped(name=f"Stop {name}", replica=name)
    barrier(name=f"{title} has ended its work")
    for name in host.loop([name for name, members in hosts.items() if host.name in members[1:]]):
        gang.stopped(name=f"Stop {name} here, too", replica=name)
    barrier(name=f"{title} is stopped")


def swap(steps: Sequence[Step], to: Callable[[Step], Release | None]) -> None:
    """Releases in place and started on the hosts that they have, nothing on those that they have left."""
    title = ", ".join(step.name for step in steps)
    for step in host.loop([step for step in steps if host.name in step.hosts]):
        release = to(step)
        id = release.id if release and host.name in release.hosts else None
        releases.put(name=f"Put {step.name} in place", replica=step.name, id=id)
    barrier(name=f"{title} is in place")
    for step in host.loop([step for step in steps if (its := to(step)) and host.name in its.hosts]):
        gang.started(name=f"Start {step.name}", replica=step.name)
    barrier(name=f"{title} starts")


def prove(batch: Batch) -> None:
    """Each generates and answers as it did. Where none can go back to anything, the run ends here if not."""
    for step in host.loop([step for step in batch.steps if host.name == step.new.head]):
        otherwise = partial(failed, step.name) if goes_back(batch) else None
        generate(step.new, otherwise)
        with when(partial(is_well, step.name)):
            answered(step, otherwise)
    barrier(name=f"{batch.title} was tried")


def keep_answers(batch: Batch) -> None:
    """What one can go back to from now on."""
    for step in host.loop([step for step in batch.steps if host.name in step.new.hosts]):
        keep_answer(step)
    barrier(name=f"{batch.title} can be gone back to")


def confirm(staying: Sequence[Step]) -> None:
    """Replicas that are left as they are generate, or the run ends; what each answers is kept."""
    for step in host.loop([step for step in staying if host.name == step.new.head]):
        generate(step.new, otherwise=None)
        if step.old and not step.old.proofs:
            answered(step, None)
    barrier(name="Every replica that stays as it is generates")
    unproven = [step for step in staying if step.old and not step.old.proofs]
    for step in host.loop([step for step in unproven if host.name in step.new.hosts]):
        keep_answer(step)


def generate(release: Release, otherwise: Callable[[str], None] | None) -> None:
    """Wait until a replica, whose first host this is, generates."""
    health.generating(
        name=f"Wait until {release.replica} generates",
        python=PYTHON, url=url(release), secrets=secrets(release), units=list(release.parts),
        state=gang.state(release.replica), timeout=here().ready_timeout, otherwise=otherwise,
    )  # fmt: skip


def answered(step: Step, otherwise: Callable[[str], None] | None) -> None:
    """It answers a question, and as it did before."""
    health.answered(
        name=f"Compare what {step.name} answers",
        python=PYTHON, url=url(step.new), secrets=secrets(step.new),
        expected=step.expected if here().answers == "same" else None,
        heard=partial(answers.__setitem__, step.name), otherwise=otherwise,
    )  # fmt: skip


def keep_answer(step: Step) -> None:
    """It can be gone back to."""
    releases.proven(
        name=f"Keep what {step.name} answers",
        release=step.new, answer=partial(answers.__getitem__, step.name),
    )  # fmt: skip


def watch(rollout: Rollout, place: int) -> None:
    """The batch under load, beside the others; the first for longer, as a canary."""
    batch, own = rollout.batches[place], here()
    if at_gateway():
        first = not any(not earlier.fresh for earlier in rollout.batches[:place])
        gateway.watched(
            name=f"Watch {batch.title}",
            replicas=batch.names, seconds=own.watch if first else own.watch / 3,
            servers=[server(release) for release in rollout.serving(place + 1)],
            otherwise=failed,
        )  # fmt: skip
    barrier(name=f"{batch.title} was watched")


@contextmanager
def when(condition: Callable[[], bool]) -> Iterator[None]:
    """pyinfra's `host.when`, without an empty name in those of the operations."""
    name = host.current_deploy_name
    with host.when(condition):
        host.current_deploy_name = name
        yield


def server(release: Release) -> gateway.Server:
    return gateway.Server(
        name=release.replica, address=release.address, port=release.port,
        health_port=release.health_port, requests=release.requests,
        models=release.names or (release.serves,),
    )  # fmt: skip


def url(release: Release) -> str:
    return f"http://127.0.0.1:{release.port}"


def secrets(release: Release) -> str:
    return f"{service.folder(release.replica)}/vllm.env"


def at_gateway() -> bool:
    return host.name in gateways()


def failed(name: str, problem: str) -> None:
    problems.setdefault(name, problem)


def still(name: str, problem: str) -> None:
    known = problems.get(name, "another of its batch was not well")
    problems[name] = f"{known}; and what it ran before is not well either: {problem}"


def goes_back(batch: Batch) -> bool:
    return any(step.back for step in batch.steps)


def too_slow() -> str:
    more = "--data drain_timeout=SECONDS waits longer, --data cut=True does not wait for them"
    return "; ".join([*slow.values(), f"it goes on as it was; {more}"]) if slow else ""


def ignored(_: str) -> None:
    """What is left is cut."""


def stopping(found: Found) -> tuple[str, ...]:
    """Its hosts, the one with its API first."""
    return tuple(dict.fromkeys((*(found.release.hosts if found.release else ()), *found.hosts)))


def is_well(name: str) -> bool:
    return name not in problems


def ill(batch: Batch) -> bool:
    return any(name in problems for name in batch.names)


def well(batch: Batch) -> bool:
    return not ill(batch)


def said(batch: Batch) -> str:
    return "; ".join(f"{name} was put back: {problems[name]}" for name in batch.names if name in problems)
