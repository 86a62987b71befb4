"""Operations of the base role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pyinfra import host, state
from pyinfra.api import OperationError, QuoteString, StringCommand, operation
from pyinfra.operations import apt

from roles import remote

from .facts import Essentials, Installed, KernelSettings, UserId


@operation()
def fit() -> Iterator[StringCommand]:
    """Nothing, on a host on which what is ours can work; others fail, and say what they lack."""
    lacks = host.get_fact(Essentials, _ignore_errors=True)  # as root, together with all else
    if lacks is None:
        lacks = host.get_fact(Essentials, _sudo=False)
    missing = "; ".join(lacks or ())
    if missing and state.is_executing:
        yield remote.failure(state.inventory.get_host(host.name), missing)
    elif missing:
        raise OperationError(f"{host.name}: {missing}")
    else:
        host.noop("fit")


@operation()
def system_packages(packages: Sequence[str]) -> Iterator[StringCommand]:
    """Debian packages; the index is fetched only when one is absent, not once a day."""
    if set(packages) <= set(host.get_fact(Installed, packages=tuple(packages))):
        host.noop("the packages are installed")
        return
    yield from apt.packages._inner(packages=list(packages), update=True, cache_time=86400, no_recommends=True)


@operation()
def system_user(user: str, home: str) -> Iterator[StringCommand]:
    """A system user without a shell. (server.user reads every account: slow, for one.)"""
    if host.get_fact(UserId, user=user):
        host.noop(f"user {user} exists")
        return
    yield StringCommand(
        "useradd", "--system", "--user-group", "--create-home", "--home-dir", QuoteString(home),
        "--shell", "/usr/sbin/nologin", QuoteString(user),
    )  # fmt: skip


@operation()
def kernel_settings(settings: Mapping[str, str]) -> Iterator[StringCommand]:
    """Settings as of now; one that is read-only here is reported, not applied."""
    now = host.get_fact(KernelSettings, settings=tuple(settings))
    apply = {}
    for name, wanted in settings.items():
        value, writable = now.get(name, ("absent", False))
        if value != wanted and not writable:
            host.log(f"{name} is {value}, not {wanted}, and cannot be written on this host")
        elif value != wanted:
            apply[name] = wanted
    if not apply:
        host.noop("kernel settings are as wanted")
        return
    for name, value in apply.items():
        yield StringCommand("sysctl", "-q", "-w", QuoteString(f"{name}={value}"))
