"""Runs on a node, in the tools environment: resolve, fetch and check model snapshots.

    stage.py resolve --repository ORG/NAME --revision REV --path LINK
    stage.py fetch   --repository ... --commit SHA --path LINK --expected JSON
    stage.py join    --repository ... --commit SHA --path LINK --expected JSON
    stage.py status  --path LINK --commit SHA
    stage.py folder  --path FOLDER --expected JSON
    stage.py list    --path ROOT                             what is there, as JSON
    stage.py verify  --path ROOT [--repository ORG/NAME]     read it all again; what is wrong is marked
    stage.py excess  --path ROOT --keep N                    what older than the last N, and not linked to

Secrets come by stdin, as JSON, when --stdin is given: `token` for the hub, or the `mirror` to read from
instead and its `mirror_options`, and `share`, [i, n], when n hosts fetch, each its own part of the files,
and nothing is published; and for `join` its `secret`, with `me`, `nodes` and `seeds` (host:port) and the
`files` of the manifest. Errors are one line on stderr, exit code 1. A snapshot appears at its final path
whole and verified, or not at all:

    <org>--<name>/commits/<revision>     the commit a revision was resolved to
    <org>--<name>/.partial-<commit>/     while it is fetched; a next run resumes it
    <org>--<name>/.partial-<commit>.json the files of it that this host's share is, all verified
    <org>--<name>/snapshot-<commit>/     verified
    <org>--<name>/snapshot-<commit>.json its manifest, the same on every node: each file's size, sha256
    <org>--<name>/<revision>             a link to the snapshot: what vLLM is given
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import snapshots
from snapshots import StageError

if TYPE_CHECKING:
    from sources import Source


def main() -> int:
    args = arguments().parse_args()
    args.said = json.load(sys.stdin) if args.stdin else {}
    try:
        return ACTIONS[args.action](args)
    except StageError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        if not snapshots.is_full(error):
            raise
        print(f"{args.path.parent}: the disk is full; {args.repository} does not fit", file=sys.stderr)
    return 1


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--repository")
    parser.add_argument("--revision")
    parser.add_argument("--commit", default="")
    parser.add_argument("--endpoint")
    parser.add_argument("--expected", type=json.loads, default={})
    parser.add_argument("--ignore", action="append", default=[])
    parser.add_argument("--keep", type=int, default=1)
    parser.add_argument("--stdin", action="store_true")
    return parser


# What is not needed for `status`, which every run asks, is imported where it is.


def resolve(args: argparse.Namespace) -> int:
    import sources

    source = origin(args)
    commit = source.commit(args.revision)
    size = sum(file.size for file in sources.wanted(source, commit, args.ignore))
    snapshots.record(args.path, commit, size)
    return 0


def fetch(args: argparse.Namespace) -> int:
    import sources

    share, count = args.said.get("share", (0, 1))
    with snapshots.alone(args.path, args.commit) as waited:
        if waited and count == 1 and snapshots.problem(args.path, args.commit) is None:
            return 0
        source = origin(args)
        files = sources.wanted(source, args.commit, args.ignore)
        partial = snapshots.begun(args.path, args.commit, {file.name: file.sha256 for file in files})
        mine = set(sources.shares({file.name: file.size for file in files}, count)[share])
        snapshots.manifest(partial).unlink(missing_ok=True)
        fetched = sources.fetch(source, args.commit, partial, [file for file in files if file.name in mine])
        if share == 0:
            snapshots.check_config(partial, args.expected)
        if count > 1:
            snapshots.replace(snapshots.manifest(partial), json.dumps({"files": fetched}))
        else:
            snapshots.publish(args.path, args.repository, args.commit, fetched)
    return 0


def origin(args: argparse.Namespace) -> Source:
    import hub
    import mirror

    if address := args.said.get("mirror"):
        options = args.said.get("mirror_options") or {}
        return mirror.at(address, options, args.repository, args.path.parent / "commits")
    return hub.Hub(args.endpoint, args.repository, args.said.get("token"))


def join(args: argparse.Namespace) -> int:
    import spread

    spread.join(args.path, args.repository, args.commit, args.expected, args.said)
    return 0


def status(args: argparse.Namespace) -> int:
    print(json.dumps({"problem": snapshots.problem(args.path, args.commit)}))
    return 0


def published(args: argparse.Namespace) -> int:
    import upkeep

    print(json.dumps(list(upkeep.published(args.path))))
    return 0


def verified(args: argparse.Namespace) -> int:
    import upkeep

    upkeep.verify(args.path, args.repository)
    return 0


def excess(args: argparse.Namespace) -> int:
    import upkeep

    print(json.dumps(upkeep.excess(args.path, args.keep)))
    return 0


def folder(args: argparse.Namespace) -> int:
    snapshots.check_config(args.path, args.expected)
    return 0


ACTIONS = {
    "resolve": resolve, "fetch": fetch, "join": join, "status": status, "folder": folder,
    "list": published, "verify": verified, "excess": excess,
}  # fmt: skip


if __name__ == "__main__":
    os.umask(0o022)
    # Errors are one line: no progress bars and no warnings of the client beside them.
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_VERBOSITY="error")
    # The client keeps notes of its own, also beside a local folder: not in root's home.
    with tempfile.TemporaryDirectory() as home:
        os.environ["HF_HOME"] = home
        sys.exit(main())
