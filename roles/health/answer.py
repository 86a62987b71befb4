"""What a replica answers, beside what it answered before."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pyinfra import host, state
from pyinfra.api import StringCommand, operation

from roles import remote

QUESTION = "/opt/rackserve/libexec/question.py"


@operation()
def answered(
    python: str, url: str, secrets: str, expected: str | None,
    heard: Callable[[str], None], otherwise: Callable[[str], None] | None = None,
) -> Iterator[StringCommand]:  # fmt: skip
    """Ask the server behind `url` a question; changes nothing. The host fails when it is not answered.

    + expected: what the answer must be; None for what nobody has heard yet
    + heard: gets the answer, while the run executes
    + otherwise: gets what is wrong, instead of the host failing
    """
    problem = _ask(python, url, secrets, expected, heard) if state.is_executing else None
    yield from remote.judged(host, problem, otherwise, f"{url} answers")


def _ask(
    python: str, url: str, secrets: str, expected: str | None, heard: Callable[[str], None]
) -> str | None:
    succeeded, out, err = remote.run(host, python, QUESTION, url, secrets, **remote.arguments(host))
    if not succeeded:
        return f"it does not answer: {''.join((err or out).strip().splitlines()[-1:])}"
    answer = out.strip()
    heard(answer)
    if expected not in (None, answer):
        return (
            f"it answers {answer} where it answered {expected} with the same weights"
            " (if that is meant: --data answers=any)"
        )
    return None
