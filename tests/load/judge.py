"""What came of an answer, and what it is worth beside the expected one, token by token. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

OK, WRONG, TRUNCATED, FAILED = OUTCOMES = ("ok", "wrong", "truncated", "failed")

DATA, DONE = b"data: ", b"[DONE]"


@dataclass
class Answer:
    """As much of it as came. `broke` is what ended it from outside, as text."""

    status: int = 0
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    whole: bool = False  # a stream's [DONE], or the end of a body
    broke: str = ""

    def line(self, line: bytes) -> None:
        """Take one line of a stream of server-sent events."""
        if not line.startswith(DATA):
            return
        if line[len(DATA) :].strip() == DONE:
            self.whole = True
        else:
            self._take(line[len(DATA) :])

    def body(self, body: bytes) -> None:
        """Take the whole body of an answer that is no stream, or of a refusal."""
        self._take(body)
        self.whole = not self.broke

    def _take(self, text: bytes) -> None:
        try:
            said = json.loads(text)
            if "error" in said:
                self.broke = str(said["error"].get("message", said["error"]))
                return
            choice = said["choices"][0]
            self.tokens += choice.get("token_ids") or []
            self.finish = choice.get("finish_reason") or self.finish
        except (ValueError, LookupError, TypeError, AttributeError):
            self.broke = f"not an answer of OpenAI's API: {text[:80]!r}"


def judge(expected: Sequence[int], answer: Answer) -> tuple[str, str]:
    """The outcome and why; a wrong token counts for more than an end that came too early."""
    if answer.status != 200:
        return FAILED, f"{answer.status or 'no answer'}: {answer.broke}"
    for place, (wanted, got) in enumerate(zip(expected, answer.tokens, strict=False)):
        if wanted != got:
            return WRONG, f"token {place} is {got}, not {wanted}"
    if len(answer.tokens) > len(expected):
        return WRONG, f"{len(answer.tokens)} tokens, not {len(expected)}"
    if answer.broke or not answer.whole or answer.finish != "length":
        end = answer.broke or (f"finish_reason {answer.finish}" if answer.whole else "no [DONE]")
        return TRUNCATED, f"after {len(answer.tokens)} of {len(expected)} tokens: {end}"
    if len(answer.tokens) < len(expected):
        return WRONG, f"{len(answer.tokens)} tokens, not {len(expected)}"
    return OK, ""
