"""Remembering facts, on this machine by pyinfra's own local connector."""

import math
import os
import subprocess
import time
from pathlib import Path

import pytest
from pyinfra.api import Config, FactBase, Host, Inventory, State, StringCommand
from pyinfra.api.connect import connect_all
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.state import StateStage
from pyinfra.context import ctx_host, ctx_state

from roles import recall


class Content(FactBase[str]):
    """What is in a file."""

    def command(self, path: str) -> str:
        return f"cat {path}"

    def process(self, output: list[str]) -> str:
        return "\n".join(output)


class Asked:
    """A host under recall, and the commands that really went to it."""

    def __init__(self) -> None:
        self.state = State(Inventory((["@local"], {})), Config())
        with ctx_state.use(self.state):
            connect_all(self.state)
        self.state.current_stage = StateStage.Prepare
        self.host: Host = self.state.inventory.get_host("@local")
        self.sent: list[str] = []
        run = self.host.connector.run_shell_command

        def counted(command, *args, **arguments):
            self.sent.append(str(command))
            return run(command, *args, **arguments)

        self.host.connector.run_shell_command = counted  # type: ignore[method-assign]
        recall.facts(self.host)

    def content(self, path: Path) -> str:
        with ctx_state.use(self.state), ctx_host.use(self.host):
            return self.host.get_fact(Content, path=str(path))

    def does(self, command: str) -> None:
        with ctx_state.use(self.state):
            assert self.host.run_shell_command(StringCommand(command))[0]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "CACHE", tmp_path / "cache")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("old")
    return path


def test_a_fact_is_asked_once(file: Path) -> None:
    asked = Asked()
    assert [asked.content(file), asked.content(file)] == ["old", "old"]
    assert len(asked.sent) == 1


def test_what_is_done_to_the_host_is_seen_by_the_next_fact(file: Path) -> None:
    asked = Asked()
    assert asked.content(file) == "old"
    asked.does(f"printf new > {file}")
    assert asked.content(file) == "new"


def test_an_upload_is_seen_too(file: Path, tmp_path: Path) -> None:
    asked = Asked()
    assert asked.content(file) == "old"
    (tmp_path / "source").write_text("new")
    with ctx_state.use(asked.state):
        asked.host.put_file(str(tmp_path / "source"), str(file))
    assert asked.content(file) == "new"


def test_what_is_run_aside_makes_nothing_forgotten(file: Path) -> None:
    asked = Asked()
    asked.content(file)
    with recall.aside():
        asked.does("true")
    asked.content(file)
    assert len(asked.sent) == 2


def test_what_was_seen_before_the_lock_was_free_is_forgotten_once(file: Path) -> None:
    asked = Asked()
    assert asked.content(file) == "old"
    file.write_text("new")  # another run's doing, before we had the lock
    recall.afresh(asked.host, since=time.monotonic())
    assert asked.content(file) == "new"
    recall.afresh(asked.host, since=math.inf)
    asked.content(file)
    assert len(asked.sent) == 2


def test_what_was_seen_while_the_lock_was_free_is_kept(file: Path) -> None:
    free, asked = time.monotonic(), Asked()
    asked.content(file)
    recall.afresh(asked.host, since=free)
    asked.content(file)
    assert len(asked.sent) == 1


def test_an_old_answer_is_asked_for_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    asked.content(file)
    monkeypatch.setattr(recall, "AGE", 0.0)
    file.write_text("new")
    assert asked.content(file) == "new"


def test_the_next_run_asks_for_all_at_once_and_gets_what_is_true_now(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("2")
    first = Asked()
    first.content(file), first.content(other)
    first.host.connector.disconnect()
    file.write_text("new")

    second = Asked()
    assert (second.content(file), second.content(other)) == ("new", "2")
    assert len(second.sent) == 1


def test_what_is_asked_ahead_is_answered_as_it_would_be_by_itself(tmp_path: Path) -> None:
    """Exit codes, empty lines, no newline at the end, what looks like our own lines, and quotes."""
    commands = [
        "printf 'a\\n\\nb'", "printf '\\n'", "true", "echo out; echo 1.stdout:err >&2; exit 3",
        "cat", "echo 'it'\"'s\"; # quoted", "syntax ( error", "exec false",
    ]  # fmt: skip
    asked = Asked().host
    with ctx_state.use(asked.state):
        alone = [asked.recall.run(StringCommand(command), _stdin="") for command in commands]
        _, together = asked.recall.run(StringCommand("sh", "-s"), _stdin=recall._all_at_once(commands))
    answers = dict(recall._answers(together.stdout_lines))
    for number, (succeeded, output) in enumerate(alone):
        if "syntax" in commands[number]:
            assert not answers[number][0]
            continue
        assert answers[number][0] == succeeded
        assert answers[number][1].stdout_lines == output.stdout_lines
        assert answers[number][1].stderr_lines == output.stderr_lines


def test_nothing_is_left_of_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "mktemp").write_text(f"#!/bin/sh\nmkdir {tmp_path}/made\necho {tmp_path}/made\n")
    (tmp_path / "mktemp").chmod(0o755)
    script = recall._all_at_once(["echo secret", f"ls {tmp_path}/made"])
    said = subprocess.run(["sh", "-s"], input=script, capture_output=True, text=True, check=True).stdout
    assert "0.stdout:secret" in said and "1.stdout:1.stdout" in said
    assert not (tmp_path / "made").exists()


def test_a_file_that_is_gone_fails_as_it_would_without_us(file: Path) -> None:
    first = Asked()
    first.content(file)
    first.host.connector.disconnect()
    file.unlink()
    with pytest.raises(PyinfraError, match="No hosts remaining"):
        Asked().content(file)
