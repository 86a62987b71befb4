"""Staging as a node does it, for its tests: the script, on a folder of its own."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from hashlib import sha1
from pathlib import Path

from tests.lab.hub_testing import OPEN, SHARD

SCRIPT = Path(__file__).parents[1] / "roles/weights/node/stage.py"
FILES = ["config.json", "extra/notes.txt", SHARD]
EXPECTED = {"num_hidden_layers": 2}


def until(true, what, seconds=20):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Node:
    """A folder to stage into, and the script."""

    def __init__(self, hub, folder):
        self.hub, self.folder = hub, folder
        self.path = folder / "lab--open" / "main"

    def at(self, repository):
        """The same node, for another repository."""
        other = Node(self.hub, self.folder)
        other.path = self.folder / repository.replace("/", "--") / "main"
        return other

    def begun(self, name, content):
        """What a run that broke off left of a file."""
        rest = (
            self.model / f".partial-{self.commit()}/.rackserve/{sha1(name.encode()).hexdigest()}.incomplete"
        )
        rest.parent.mkdir(parents=True)
        rest.write_bytes(content)

    @property
    def model(self):
        return self.path.parent

    def command(self, action, *, repository=OPEN, revision="main", expected=None, endpoint=None,
                commit=None, ignore=(), path=None):  # fmt: skip
        words = [sys.executable, SCRIPT, action, "--path", path or self.path, "--repository", repository,
                 "--revision", revision, "--endpoint", endpoint or self.hub.url,
                 "--expected", json.dumps(expected or EXPECTED)]  # fmt: skip
        words += ["--commit", commit or self.commit(repository, revision)] if action != "resolve" else []
        words += [word for pattern in ignore for word in ("--ignore", pattern)]
        return [str(word) for word in words]

    def commit(self, repository=OPEN, revision="main"):
        return self.hub.api.model_info(repository, revision=revision).sha

    @property
    def environment(self):
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return {**clean, "HF_HOME": str(self.folder / "home")}

    def __call__(self, action, *, token=None, said=None, within=(), **options):
        """(succeeded, stdout, stderr)."""
        said = {**({"token": token} if token else {}), **(said or {})}
        done = subprocess.run(
            [*within, *self.command(action, **options), *(["--stdin"] if said else [])],
            input=json.dumps(said), env=self.environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode in (0, 1), done.stderr
        options = said.get("mirror_options", {}).items()
        for secret in (
            token,
            *(value for name, value in options if name.endswith(("key", "key_id", "word"))),
        ):
            assert not secret or secret not in done.stdout + done.stderr
        return done.returncode == 0, done.stdout, done.stderr

    @contextmanager
    def running(self, action, *, token=None, said=None, within=(), **options):
        """The same, while it runs; it is killed at the end."""
        said = {**({"token": token} if token else {}), **(said or {})}
        with subprocess.Popen(
            [*within, *self.command(action, **options), *(["--stdin"] if said else [])],
            env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        ) as process:  # fmt: skip
            try:
                process.stdin.write(json.dumps(said))
                process.stdin.close()
                process.stdin = None
                yield process
            finally:
                process.kill()

    def refused(self, action, **options):
        """The one line that a run was refused with."""
        succeeded, _, err = self(action, **options)
        assert not succeeded
        assert len(err.splitlines()) == 1, err
        return err.strip()

    def staged(self, **options):
        succeeded, _, err = self("fetch", **options)
        assert succeeded and not err, err
        return self

    def like(self, other):
        """What another node has is here, too."""
        shutil.copytree(other.folder, self.folder, symlinks=True, dirs_exist_ok=True)
        return self

    def problem(self, **options):
        succeeded, out, err = self("status", **options)
        assert succeeded, err
        return json.loads(out)["problem"]

    @contextmanager
    def fetched(self):
        """The list of files that the hub is asked the content of meanwhile."""
        start, names = self.hub.log.stat().st_size, []
        yield names
        for line in self.hub.log.read_text()[start:].splitlines():
            if '"GET /' in line and "/resolve/" in line:
                names.append(line.split("/resolve/")[1].split("/", 1)[1].split(" ")[0])

    @property
    def incomplete(self):
        """The bytes of each file that broke off."""
        return sorted(file.stat().st_size for file in self.model.rglob("*.incomplete"))

    def shown(self):
        """What there is of the model at places where vLLM or a person would look."""
        return sorted(path.name for path in self.model.glob("[!.]*")) if self.model.exists() else []
