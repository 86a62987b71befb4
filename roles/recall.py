"""Few round trips: facts are remembered within a run, and asked for all at once.

pyinfra asks a host for each fact by itself, and for the same one again whenever another
operation wants it: some fifty executions for a run that changes nothing. Here a host's
answers are kept until something is done to it, and the questions of the last run are
asked ahead, in one execution. No answer outlives this run, or AGE seconds, or is from before the
lock was free for us; what is kept for the next run are the questions.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import Any

from gevent.local import local
from pyinfra.api import Host, StringCommand
from pyinfra.connectors.util import CommandOutput, OutputLine

ASKING = """\
cd "$(mktemp -d -p /run 2>/dev/null || mktemp -d)" && trap 'rm -r "$PWD"' EXIT || exit
ask() { (eval "$2") </dev/null >"$1.stdout" 2>"$1.stderr"; echo $? >"$1.code"; }"""
ANSWERING = """\
wait
grep -aH '' *
"""
SILENCE = 60  # seconds
AGE = 30.0  # seconds after which an answer is asked for again
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rackserve"

Answer = tuple[bool, CommandOutput]

_now = local()  # what each greenlet is doing: several ask the same host


def facts(on: Host) -> None:
    """Remember this host's facts from here on; doing it twice does nothing."""
    if not isinstance(getattr(on, "recall", None), Recall):
        on.recall = Recall(on)  # type: ignore[attr-defined]


def afresh(on: Host, since: float) -> None:
    """The lock is ours from here on: what was asked before `since` (time.monotonic()) is asked again.

    Once in a run: what is done later is our own doing.
    """
    memory = getattr(on, "recall", None)
    if isinstance(memory, Recall) and not memory.locked:
        memory.locked = True
        memory.answers = {how: answer for how, answer in memory.answers.items() if answer[0] >= since}
        memory.ahead = {way: asked for way, asked in memory.ahead.items() if asked >= since}


def forget(on: Host) -> None:
    """Something was done to this host by another way than its connection."""
    if isinstance(memory := getattr(on, "recall", None), Recall):
        memory.forget()


@contextmanager
def aside() -> Iterator[None]:
    """What this greenlet runs in here is not a fact, and changes nothing that one would see."""
    with _doing("aside"):
        yield


@contextmanager
def _doing(what: str) -> Iterator[None]:
    before = getattr(_now, "doing", None)
    _now.doing = what
    try:
        yield
    finally:
        _now.doing = before


class Recall:
    """The memory of one host, put between it and its connector."""

    def __init__(self, on: Host) -> None:
        self.host = on
        self.touched = False  # something was done to the host in this run
        self.locked = False  # nobody else's run does anything to it
        self.ahead: dict[str, float] = {}  # when what was asked ahead, by way of asking
        self.answers: dict[str, tuple[float, Answer]] = {}
        self.asked: dict[str, None] = {}  # in order
        self.run, self.get_fact = on.connector.run_shell_command, on.get_fact
        self.put_file, self.disconnect = on.connector.put_file, on.connector.disconnect
        on.get_fact = self._get_fact  # type: ignore[method-assign]
        on.connector.run_shell_command = self._run  # type: ignore[method-assign]
        on.connector.put_file = self._put_file  # type: ignore[method-assign]
        on.connector.disconnect = self._disconnect  # type: ignore[method-assign]
        _send_at_once(on)

    def _get_fact(self, *args: Any, **kwargs: Any) -> Any:
        with _doing("fact"):
            return self.get_fact(*args, **kwargs)

    def _put_file(self, *args: Any, **kwargs: Any) -> bool:
        self.forget()
        return self.put_file(*args, **kwargs)

    def _disconnect(self) -> None:
        self._save()
        self.disconnect()

    def _run(self, command: str | StringCommand, *args: Any, **connection: Any) -> Answer:
        doing = getattr(_now, "doing", None)
        if doing == "fact":
            return self._answer(command, *args, **connection)
        if doing == "aside":
            return self.run(command, *args, **connection)
        self.forget()
        try:
            return self.run(command, *args, **connection)
        finally:
            self.forget()  # what another host's greenlet asked of this one meanwhile

    def forget(self) -> None:
        self.touched = True
        self.answers = {}  # a new one: an answer still on its way is put into the old

    def _answer(self, command: str | StringCommand, *args: Any, **connection: Any) -> Answer:
        how = {
            name: value
            for name, value in connection.items()
            if value not in (None, False, "") and not name.startswith("print_")
        }
        if any("password" in name for name in how):
            return self.run(command, *args, **connection)
        words = command if isinstance(command, str) else command.get_raw_value()
        question = json.dumps([words, how], sort_keys=True, default=str)
        self.asked[question] = None
        if not self._knows(question) and not self.touched:
            self._ask_ahead(how)
        if not self._knows(question):
            answers, asked = self.answers, time.monotonic()
            answers[question] = (asked, self.run(command, *args, **connection))
            return answers[question][1]
        return self.answers[question][1]

    def _knows(self, question: str) -> bool:
        return question in self.answers and time.monotonic() - self.answers[question][0] < AGE

    def _ask_ahead(self, how: dict[str, Any]) -> None:
        """Ask all that the last run asked in that way; a host that cannot is asked one by one."""
        way = json.dumps(how, sort_keys=True)
        questions = (json.loads(question) for question in self._last_run())
        commands = [command for command, its in questions if its == how]
        if len(commands) < 2 or time.monotonic() - self.ahead.get(way, -AGE) < AGE:
            return
        self.ahead[way] = time.monotonic()
        answers, asked = self.answers, time.monotonic()
        _, output = self.run(StringCommand("sh", "-s"), _stdin=_all_at_once(commands), **how)
        for number, answer in _answers(output.stdout_lines):
            question = json.dumps([commands[number], how], sort_keys=True)
            answers[question] = (asked, answer)

    @property
    def _file(self) -> Path:
        data = self.host.data
        deploy = self.host.state.current_deploy_filename
        where = f"{deploy} {self.host.name} {data.get('ssh_hostname')} {data.get('ssh_port')}"
        return CACHE / f"{hashlib.sha256(where.encode()).hexdigest()[:16]}.json"

    def _last_run(self) -> list[str]:
        with suppress(OSError, ValueError):
            return json.loads(self._file.read_text())
        return []

    def _save(self) -> None:
        """Keep the questions; without a home to keep them in, the next run is slower."""
        with suppress(OSError):
            CACHE.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = self._file.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps(list(self.asked)))
            new.chmod(0o600)
            new.replace(self._file)


def _all_at_once(commands: list[str]) -> str:
    """A script that runs them side by side, and prints each line of theirs as NUMBER.KIND:LINE.

    In a shell, which has begun before Python has imported what it would need. Their output is
    in files of a memory file system where there is one to write to: there may be secrets in it.
    """
    return "\n".join(
        (ASKING, *(f"ask {n} {quote(command)} &" for n, command in enumerate(commands)), ANSWERING)
    )


def _answers(lines: list[str]) -> Iterator[tuple[int, Answer]]:
    """(NUMBER, answer) of every command that came to its end."""
    printed: dict[int, list[OutputLine]] = {}
    codes: dict[int, str] = {}
    for line in lines:
        number, _, rest = line.partition(".")
        kind, _, text = rest.partition(":")
        if kind == "code":
            codes[int(number)] = text
        elif kind in ("stdout", "stderr"):
            printed.setdefault(int(number), []).append(OutputLine(kind, text))
    for number, code in codes.items():
        yield number, (code == "0", CommandOutput(printed.get(number, [])))


def _send_at_once(on: Host) -> None:
    """TCP_NODELAY: paramiko leaves it off, and each execution waits 40 ms for an ACK.

    And a connection that was cut ends the run after SILENCE, not when the kernel has tried for a quarter
    of an hour; a long command that says nothing is no silence, its kernel answers.
    """
    client = getattr(on.connector, "client", None)
    if client is not None:
        with suppress(AttributeError, OSError):  # a jump host's channel is no socket
            sock = client.get_transport().sock
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE // 4)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE // 4)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE * 1000)
