"""The answers that are right: each prompt's, asked for once, alone, of one server and not of a gateway."""

from __future__ import annotations

import json
from pathlib import Path

from tests.load.client import Client
from tests.load.judge import OK, judge

PROMPTS = (
    "The capital of France is", "1 2 3 4 5", "Once upon a time, in a rack far away,",
    "a head node schedules, workers compute", "the quick brown fox",
)  # fmt: skip


def record(file: Path, url: str, key: str, model: str, tokens: int) -> None:
    """Write {prompt: token ids} to `file`. Answers that are shorter are their beginnings."""
    client = Client(url, key)
    file.write_text(json.dumps({prompt: _answer(client, model, prompt, tokens) for prompt in PROMPTS}))


def _answer(client: Client, model: str, prompt: str, tokens: int) -> list[int]:
    body = {
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True,
    }  # fmt: skip
    answer = client.ask(body).answer
    outcome, why = judge(answer.tokens, answer)
    if outcome != OK or len(answer.tokens) != tokens:
        raise SystemExit(f"no expected answer to {prompt!r}: {outcome}, {len(answer.tokens)} tokens {why}")
    return answer.tokens
