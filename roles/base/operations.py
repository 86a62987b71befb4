"""Operations of the base role."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from paramiko import SSHException
from pyinfra import host
from pyinfra.api import (
    FunctionCommand,
    Host,
    QuoteString,
    State,
    StringCommand,
    operation,
)
from pyinfra.api.exceptions import PyinfraError

from roles import debian, remote

from .facts import Essentials, Installed, Interrupted, KernelSettings, UserId

INTERVAL = 2.0  # seconds between two tries to reach a host that starts


def lacks(on: Host) -> str:
    """What a host lacks before anything of ours can work on it; "" for one that is fit."""
    said = on.get_fact(Essentials, _ignore_errors=True)  # as root, together with all else
    if said is None:
        said = on.get_fact(Essentials, _sudo=False)
    return "; ".join(said or ())


@operation(is_idempotent=False)
def rebooted(timeout: float = 1800) -> Iterator[StringCommand | FunctionCommand]:
    """The host was rebooted, and can be reached again.

    + timeout: seconds; servers with many GPUs take minutes to start

    pyinfra's own compares uptimes, which containers do not have, and its disconnecting ends our lock.
    """
    boot = ["cat", "/proc/sys/kernel/random/boot_id"]
    before: list[str] = []

    def remember(state: State, host: Host) -> bool:
        succeeded, id, _ = remote.run(host, *boot)
        before.append(id)
        return succeeded and bool(id)

    def await_it(state: State, host: Host) -> bool:
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            time.sleep(INTERVAL)
            with suppress(OSError, EOFError, SSHException, PyinfraError):
                host.connected = False
                type(host.connector).disconnect(host.connector)
                host.connect(show_errors=False)
                if host.connected and remote.run(host, *boot)[1] not in ("", *before):
                    return True
        remote.failure(host, f"not back {timeout:.0f} s after its reboot: look at its console")
        return False

    yield FunctionCommand(remember, (), {})
    yield StringCommand("(sleep 1; systemctl reboot) </dev/null >/dev/null 2>&1 &")
    yield FunctionCommand(await_it, (), {})


@operation()
def system_packages(packages: Sequence[str]) -> Iterator[StringCommand]:
    """Debian packages; nobody is asked for anything where all are installed.

    It is what a node begins with: at its first boot another apt is at work, and one may have been cut off.
    """
    there = host.get_fact(Installed, packages=tuple(packages))
    if not (absent := [name for name in packages if name not in there]):
        host.noop("the packages are installed")
        return
    if host.get_fact(Interrupted):
        yield StringCommand(debian.repaired())
    yield StringCommand(debian.refreshed())
    yield StringCommand(debian.installed(absent))


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
