"""`rackserve plan` and `rackserve models`: what fits where, and why. Touches no host."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from models.errors import BadInput
from models.model import PRESETS, Model
from models.plan import Node, Request
from scripts.refusal import Refused
from scripts.report import against, chart, data, words
from scripts.report.explain import arithmetic
from scripts.report.found import Found

#: How --gpus is written: 16xH100, 8 x H200.
GPUS = re.compile(r"(\d+)\s*x\s*([\w-]+(?: [\w-]+)*)", re.IGNORECASE)

NOT_FIT = 3

#: Beyond this a number is a mistake, and planning it takes minutes.
MOST_GPUS = 10_000


@dataclass(frozen=True)
class Asked:
    """What is to be planned: a model on nodes."""

    model: Model
    nodes: tuple[Node, ...]
    request: Request


@click.command()
@click.argument("what", metavar="[MODEL]", required=False)
@click.option("-i", "--inventory", envvar="RACKSERVE_INVENTORY",
              help="An inventory's name or file; cluster unless --gpus is given.")  # fmt: skip
@click.option("--gpus", metavar="16xH100", help="So many GPUs in all, instead of an inventory.")
@click.option("--nodes", type=int, metavar="N", help="How many nodes they are in; full ones unless set.")
@click.option("--replicas", type=int, metavar="N", help="Copies of the model (1).")
@click.option("--tensor-parallel", "--tp", "tensor_parallel", type=int, metavar="N", help="Fix TP.")
@click.option("--pipeline-parallel", "--pp", "pipeline_parallel", type=int, metavar="N", help="Fix PP.")
@click.option("--context", type=int, metavar="TOKENS", help="Of a request, prompt and answer.")
@click.option("--concurrency", type=int, metavar="N", help="Requests of that length that must fit at once.")
@click.option("--optimize", type=click.Choice(["latency", "throughput"]),
              help="Choose the split, and the preset, for it.")  # fmt: skip
@click.option("--preset", type=click.Choice(list(PRESETS)), help="The model's own arguments for a use.")
@click.option("--vllm-arg", "vllm_args", multiple=True, metavar="NAME=VALUE", help="A flag of vLLM's.")
@click.option("--revision", help="Of a model that is read from the hub.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--explain", is_flag=True, help="The arithmetic, with its sources.")
@click.option("--plot", type=click.Path(path_type=Path, resolve_path=True), metavar="FILE.svg|png",
              help="A chart of the memory of a GPU of each stage.")  # fmt: skip
@click.option("--against-log", "log", type=click.Path(path_type=Path, resolve_path=True),
              help="Compare with what a running vLLM wrote into this log.")  # fmt: skip
def plan(what: str | None, as_json: bool, explain: bool, plot: Path | None,
         log: Path | None, **said: Any) -> None:  # fmt: skip
    """Say whether MODEL fits on these GPUs, split how, with how much context and how fast.

    MODEL is a name of `rackserve models`, ORG/NAME of the hub, or a folder with config.json.

    \b
        rackserve plan llama-3.1-405b --gpus 16xH100 --nodes 4
        rackserve plan deepseek-r1 -i inventories/cluster.py --context 32768 --concurrency 16
        rackserve plan Qwen/Qwen2.5-7B-Instruct --gpus 1xL40S --explain

    Without --context a fit means 8192 tokens for one request, and the context is the
    largest that fits. Exit codes: 0 it fits, 3 it does not, 2 bad input.
    """
    if plot is not None and plot.suffix.lower() not in (".svg", ".png"):
        raise Refused(f"--plot {plot}: must end in .svg or .png")
    try:
        asked = _asked(what, said)
        found = Found.of(asked.model, asked.nodes, asked.request)
        # A plan that does not fit is compared too: the log says that it runs.
        rows = against.compare(found.nearest, _read(log)) if log is not None else None
    except BadInput as error:
        raise Refused(str(error)) from None
    if as_json:
        shown = data.as_json(found) if rows is None else against.as_json(found.nearest, rows)
        shown |= {"explain": arithmetic(found)} if explain else {}
        click.echo(json.dumps(shown, indent=1))
    else:
        click.echo(words.as_text(found) if rows is None else against.as_text(found.nearest, rows))
        if explain:
            click.echo("\n".join(["", *arithmetic(found)]))
    if plot is not None:
        _plot(found, plot)
    if found.plan is None and rows is None:
        click.get_current_context().exit(NOT_FIT)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def models(as_json: bool) -> None:
    """List the models of the catalogue."""
    import models as catalogue

    try:
        listed = [catalogue.get(name) for name in catalogue.names()]
    except BadInput as error:
        raise Refused(str(error)) from None
    click.echo(
        json.dumps([data.entry(model) for model in listed], indent=1) if as_json else words.catalogue(listed)
    )


def _asked(what: str | None, said: Mapping[str, Any]) -> Asked:
    gpus, nodes = said["gpus"], said["nodes"]
    source = click.get_current_context().get_parameter_source("inventory")
    if gpus is not None and source is ParameterSource.COMMANDLINE:
        raise Refused("give either --gpus or an inventory")
    if nodes is not None and gpus is None:
        raise Refused("--nodes says how --gpus are spread: give both")
    if gpus is not None:
        if what is None:
            raise Refused("which model? `rackserve models` lists them")
        return Asked(_model(what, said), _nodes(gpus, nodes), _request(Request(), said))
    return _of_inventory(said["inventory"] or "cluster", what, said)


def _of_inventory(name: str, what: str | None, said: Mapping[str, Any]) -> Asked:
    """What `rackserve deploy serve` would plan there, with what is said over it."""
    from scripts import runner

    if what and os.path.isdir(what):
        what = os.path.abspath(what)  # reading an inventory changes the directory
    nodes, own, request = runner.read_inventory(runner.inventory_path(name), what)
    model = _model(what or own.model, said, own)
    without = [node.name for node in nodes if node.gpus and node.gpu is None]
    if without:
        raise Refused(
            f"{', '.join(without)}: no gpu is set, so there is no memory to plan; set it in the inventory"
        )
    return Asked(model, tuple(nodes), _request(request, said))


def _model(what: str, said: Mapping[str, Any], own: Any = None) -> Model:
    from models import source

    if not what:
        raise Refused("which model? `rackserve models` lists them")
    hub = () if own is None else (own.hf_endpoint, own.hf_token)
    chosen = source.find(what, said["revision"] or (own and own.revision), *hub)
    if own is not None:
        preset = said["preset"] or said["optimize"] or own.preset or own.optimize
        chosen = chosen.with_(preset=preset, arguments=own.vllm_args, environment=own.vllm_env)
    elif said["preset"] or said["optimize"]:
        chosen = chosen.with_(preset=said["preset"] or said["optimize"])
    return chosen.with_(arguments=_arguments(said["vllm_args"]))


def _request(request: Request, said: Mapping[str, Any]) -> Request:
    given = {
        key: said[key]
        for key in ("replicas", "tensor_parallel", "pipeline_parallel")
        if said[key] is not None
    }
    targets = {key: said[key] for key in ("context", "concurrency") if said[key] is not None}
    if said["optimize"] and said["replicas"] is None:
        given["replicas"] = None  # as many as are best for it
    optimize = said["optimize"] or request.optimize
    return replace(request, **given, targets=replace(request.targets, **targets), optimize=optimize)


def _nodes(gpus: str, count: int | None) -> tuple[Node, ...]:
    from models import hardware

    said = GPUS.fullmatch(gpus.strip())
    if not said:
        raise Refused(f"--gpus {gpus}: write how many and which, as in 16xH100")
    number, row = int(said[1]), hardware.gpu(said[2])
    if number < 1:
        raise Refused(f"--gpus {gpus}: must be at least 1 GPU")
    if number > MOST_GPUS:
        raise Refused(f"--gpus {gpus}: must be at most {MOST_GPUS} GPUs")
    if count is not None and count < 1:
        raise Refused(f"--nodes {count}: must be at least 1")
    nodes = count or max(1, -(-number // row.per_node))
    if number % nodes:
        hint = "" if count else f" of {row.per_node}: say --nodes"
        raise Refused(f"{number} GPUs do not spread evenly over {nodes} nodes{hint}")
    return tuple(
        Node(f"node{index}", f"0.0.0.{index}", number // nodes, row.name) for index in range(1, nodes + 1)
    )


def _arguments(given: Sequence[str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise Refused(f"--vllm-arg {one}: write NAME=VALUE, with vLLM's long name")
        if _flag(name) in arguments:
            raise Refused(f"--vllm-arg {one}: {_flag(name)} is said twice")
        try:
            arguments[_flag(name)] = json.loads(value)
        except (ValueError, RecursionError):
            arguments[_flag(name)] = value
    return arguments


def _flag(name: str) -> str:
    return name.removeprefix("--").replace("_", "-")


def _read(log: Path) -> str:
    try:
        return log.read_text(errors="replace")
    except OSError as error:
        raise Refused(f"--against-log {log}: {error.strerror}") from None


def _plot(found: Found, path: Path) -> None:
    try:
        chart.plot(found, path)
    except OSError as error:
        raise Refused(f"--plot {path}: {error.strerror}") from None
