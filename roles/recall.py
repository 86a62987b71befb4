"""Few round trips: facts are remembered within a run, and asked for all at once.

pyinfra asks a host for each fact by itself, and for the same one again whenever another
operation wants it: some fifty executions for a run that changes nothing. Here a host's
answers are kept until something is done to it, and the questions of the last run are
asked ahead, in one execution. No answer outlives this run, AGE seconds, or the beginning of
execution, when the lock becomes ours; what is kept for the next run are the questions.
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
from typing import Any

from gevent.local import local
from pyinfra.api import Host, StringCommand
from pyinfra.connectors.util import CommandOutput, OutputLine

SCRIPT = Path(__file__).with_name("recall_remote.py").read_text()
AGE = 30.0  # seconds after which an answer is asked for again
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rackserve"

Answer = tuple[bool, CommandOutput]

_now = local()  # what each greenlet is doing: several ask the same host


def facts(on: Host) -> None:
    """Remember this host's facts from here on; doing it twice does nothing."""
    if not isinstance(getattr(on, "recall", None), Recall):
        on.recall = Recall(on)  # type: ignore[attr-defined]


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
        self.executing = False
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
        self._forget()
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
        self._forget()
        try:
            return self.run(command, *args, **connection)
        finally:
            self._forget()  # what another host's greenlet asked of this one meanwhile

    def _forget(self) -> None:
        self.touched = True
        self.answers = {}  # a new one: an answer still on its way is put into the old

    def _answer(self, command: str | StringCommand, *args: Any, **connection: Any) -> Answer:
        how = {
            name: value
            for name, value in connection.items()
            if value not in (None, False, "") and not name.startswith("print_")
        }
        if self.host.state.is_executing and not self.executing:
            self.executing = True
            self.answers, self.ahead = {}, {}  # those were from before the lock was ours
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
        source = f"COMMANDS = {commands!r}\n{SCRIPT}"
        answers, asked = self.answers, time.monotonic()
        succeeded, output = self.run(StringCommand("python3", "-I", "-S", "-"), _stdin=source, **how)
        with suppress(ValueError):
            answered = json.loads(output.stdout) if succeeded else []
            for command, (code, out, err) in zip(commands, answered, strict=False):
                question = json.dumps([command, how], sort_keys=True)
                answers[question] = (asked, (code == 0, _output(out, err)))

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


def _output(out: str, err: str) -> CommandOutput:
    lines = [OutputLine("stdout", line) for line in out.splitlines()]
    return CommandOutput(lines + [OutputLine("stderr", line) for line in err.splitlines()])


def _send_at_once(on: Host) -> None:
    """TCP_NODELAY: paramiko leaves it off, and each execution waits 40 ms for an ACK."""
    client = getattr(on.connector, "client", None)
    if client is not None:
        with suppress(AttributeError, OSError):  # a jump host's channel is no socket
            client.get_transport().sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
