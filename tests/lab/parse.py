"""Runs in a vLLM's environment: does its own parser take these config files?

Reads [{"arguments": {...}, "environment": {...}}, ...] from stdin and prints {"version": vLLM's,
"wrong": [what is wrong with each, or null], "names": [its flags]}. Names are matched whole: the
parser itself takes any prefix of one.
"""

import json
import os
import sys
import tempfile

os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

import vllm.platforms  # noqa: E402
from vllm.platforms.cpu import CpuPlatform  # noqa: E402

vllm.platforms.current_platform = CpuPlatform()  # a GPU's vLLM on a machine without one

import yaml  # noqa: E402
from vllm import envs  # noqa: E402
from vllm.entrypoints.cli.serve import ServeSubcommand  # noqa: E402
from vllm.reasoning import ReasoningParserManager  # noqa: E402
from vllm.tool_parsers import ToolParserManager  # noqa: E402
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402


class Refused(Exception):
    """What the parser said instead of exiting."""


def _refuse(message: str) -> None:
    raise Refused(message)


def main() -> None:
    parser = FlexibleArgumentParser()
    serve = ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    parser.error = serve.error = _refuse  # type: ignore[method-assign]
    wrong = [_wrong(parser, serve, case) for case in json.load(sys.stdin)]
    names = [name[2:] for name in serve._option_string_actions if name.startswith("--")]
    print(json.dumps({"version": vllm.__version__, "wrong": wrong, "names": names}))


def _wrong(parser: FlexibleArgumentParser, serve: FlexibleArgumentParser, case: dict) -> str | None:
    options = serve._option_string_actions
    unknown = [name for name in case["arguments"] if f"--{name}" not in options and name != "model"]
    unknown += [name for name in case["environment"] if name[:5] == "VLLM_" and name not in known_variables()]
    if unknown:
        return f"unknown: {', '.join(unknown)}"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(case["arguments"], file, sort_keys=False)
        file.flush()
        try:
            parsed = parser.parse_args(["serve", "--config", file.name])
            ServeSubcommand().validate(parsed)
            _check_parsers(case["arguments"])
        except (Refused, ValueError, TypeError, KeyError, SystemExit) as error:
            return f"refused: {error}"
    for name in ("tensor-parallel-size", "pipeline-parallel-size", "max-model-len"):
        told, understood = case["arguments"].get(name), getattr(parsed, name.replace("-", "_"))
        if told is not None and told != understood:
            return f"{name} is {told} and was understood as {understood}"
    return None


def _check_parsers(arguments: dict) -> None:
    """vLLM looks these names up when the server starts, not when it parses."""
    for name, manager in (
        ("tool-call-parser", ToolParserManager),
        ("reasoning-parser", ReasoningParserManager),
    ):
        if name in arguments and arguments[name] not in manager.list_registered():
            raise Refused(f"no {name} {arguments[name]}")


def known_variables() -> set[str]:
    return set(envs.environment_variables)


if __name__ == "__main__":
    main()
