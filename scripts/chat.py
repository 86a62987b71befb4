"""`rackserve chat`: ask the endpoint something."""

from __future__ import annotations

import json
from dataclasses import dataclass

import click

from models.release import TRIAL
from scripts.deploy import inventory_option
from scripts.runner import Failed
from scripts.status import look


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible API; the key stays out of what is printed."""

    url: str
    model: str
    key: str


@click.command()
@click.argument("question")
@inventory_option
@click.option("--model", help="Which, where several are served: the first unless said.")
@click.option("--max-tokens", default=256, show_default=True)
@click.option("--temperature", default=0.0, show_default=True)
def chat(question: str, inventory: str, model: str | None, max_tokens: int, temperature: float) -> None:
    """Ask the model QUESTION and print its answer as it comes."""
    ask(endpoint(inventory, model), question, max_tokens, temperature)


def endpoint(inventory: str, model: str | None = None) -> Endpoint:
    """The API of a model, or of the first: the gateway's, or its first replica's.

    Failed when nothing is served, or not that model.
    """
    from scripts import runner

    seen, trouble = look(inventory, "units")
    units = [(host, unit) for host, its in seen.items() for unit in its]
    there = [(host, unit) for host, unit in units if not unit["replica"].startswith(TRIAL)]
    gateways = [(host, unit["gateway"]) for host, unit in there if unit.get("gateway")]
    served = [(host, unit) for host, unit in there if unit.get("port")]
    for host, unit in served:
        if model in (None, unit["model"]):
            name, port = gateways[0] if gateways else (host, unit["port"])
            return Endpoint(f"http://{runner.address(name)}:{port}", unit["model"], unit["key"])
    if served and not trouble:
        names = ", ".join(dict.fromkeys(unit["model"] for _, unit in served))
        raise Failed(f"{model} is not served; there are: {names}")
    raise trouble or Failed("nothing is served; run `rackserve deploy serve_llama` first")


def ask(endpoint: Endpoint, question: str, max_tokens: int, temperature: float) -> None:
    # Imported late: after gevent's patches, which the look-up has made.
    import requests

    body = {
        "model": endpoint.model, "stream": True, "max_tokens": max_tokens,
        "temperature": temperature, "messages": [{"role": "user", "content": question}],
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    url = f"{endpoint.url}/v1/chat/completions"
    try:
        with requests.post(url, json=body, headers=headers, stream=True, timeout=600) as answer:
            if not answer.ok:
                raise Failed(f"{url} answered {answer.status_code}: {answer.text[:300]}")
            _print_stream(answer)
    except requests.ConnectionError:
        raise Failed(f"{url} does not answer; how it is: `rackserve status`, `rackserve logs`") from None
    except requests.RequestException as error:
        raise Failed(f"{url} did not answer to its end: {error}") from None


def _print_stream(answer) -> None:
    for line in answer.iter_lines(decode_unicode=True):
        if line.startswith("data: ") and line != "data: [DONE]":
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise Failed(f"the answer broke off: {event['error']}")
            for choice in event["choices"]:
                click.echo(choice["delta"].get("content") or "", nl=False)
    click.echo()
