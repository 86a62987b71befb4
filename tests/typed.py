"""`rackserve plan` as it is typed, for the tests of what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from scripts.cli import main

REPOSITORY = Path(__file__).parents[1]
LLAMA = ("llama-3.1-70b-instruct", "--gpus", "4xH100")
R1 = ("deepseek-r1", "--gpus", "8xH100")


def rackserve(*words, inventory=None):
    """Run it; `inventory` is the one that the environment names."""
    done = CliRunner().invoke(main, ["plan", *map(str, words)], env={"RACKSERVE_INVENTORY": inventory})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def as_json(*words, ends=0, **environment):
    done = rackserve(*words, "--json", **environment)
    assert done.exit_code == ends, done.output
    return json.loads(done.stdout)


def refused(*words):
    """The one line with which it was refused as bad input."""
    done = rackserve(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("rackserve: ")
    return line


def in_a_new_process(*words, first=""):
    code = f"{first}\nfrom scripts.cli import main\nmain({list(words)!r})"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=environment
    )
