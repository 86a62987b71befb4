"""Runs on a node, in the tools environment: resolve, fetch and check model snapshots.

    stage.py resolve --repository ORG/NAME --revision REV --path LINK
    stage.py fetch   --repository ... --commit SHA --path LINK --expected JSON
    stage.py join    --repository ... --commit SHA --path LINK --expected JSON
    stage.py status  --path LINK --commit SHA
    stage.py folder  --path FOLDER --expected JSON
    stage.py list    --path ROOT                             what is there, as JSON
    stage.py verify  --path ROOT [--repository ORG/NAME]     read it all again; what is wrong is marked
    stage.py excess  --path ROOT --keep N                    what older than the last N, and not linked to

Secrets come by stdin, as JSON, when --stdin is given: `token` for the hub; and for `join` its `secret`,
with `me`, `nodes` and `seeds` (host:port) and the `files` of the manifest. Errors are one line on stderr,
exit code 1. A snapshot appears at its final path whole and verified, or not at all:

    <org>--<name>/commits/<revision>     the commit a revision was resolved to
    <org>--<name>/.partial-<commit>/     while it is fetched; a next run resumes it
    <org>--<name>/snapshot-<commit>/     verified
    <org>--<name>/snapshot-<commit>.json its manifest, the same on every node: each file's size, sha256
    <org>--<name>/<revision>             a link to the snapshot: what vLLM is given
"""

from __future__ import annotations

import argparse
import errno
import fnmatch
import glob
import hashlib
import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import snapshots
import spread
from snapshots import StageError, sha256


def main() -> int:
    args = arguments().parse_args()
    args.said = json.load(sys.stdin) if args.stdin else {}
    try:
        return ACTIONS[args.action](args)
    except StageError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
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


def resolve(args: argparse.Namespace) -> int:
    info = ask_hub(args, args.revision)
    record = args.path.parent / "commits" / args.path.name
    record.parent.mkdir(parents=True, exist_ok=True)
    size = sum(file.size for file in info.siblings if not ignored(file.rfilename, args.ignore))
    snapshots.replace(record, f"{info.sha} {size}\n")
    return 0


def fetch(args: argparse.Namespace) -> int:
    partial, wanted = snapshots.begun(args.path, args.commit), wanted_files(args)
    drop_wrong(partial, wanted)
    missing = {name: file for name, file in wanted.items() if not (partial / name).exists()}
    snapshots.check_space(partial, {name: file.size for name, file in missing.items()})
    download(args, partial, list(missing))
    files = verify(partial, wanted)
    snapshots.check_config(partial, args.expected)
    snapshots.publish(args.path, args.repository, args.commit, files)
    return 0


def join(args: argparse.Namespace) -> int:
    spread.join(args.path, args.repository, args.commit, args.expected, args.said)
    return 0


def status(args: argparse.Namespace) -> int:
    print(json.dumps({"problem": snapshots.problem(args.path, args.commit)}))
    return 0


def published(args: argparse.Namespace) -> int:
    print(json.dumps(list(snapshots.published(args.path))))
    return 0


def verified(args: argparse.Namespace) -> int:
    snapshots.verify(args.path, args.repository)
    return 0


def excess(args: argparse.Namespace) -> int:
    print(json.dumps(snapshots.excess(args.path, args.keep)))
    return 0


def folder(args: argparse.Namespace) -> int:
    snapshots.check_config(args.path, args.expected)
    return 0


def ask_hub(args: argparse.Namespace, revision: str):
    """The hub's account of a repository at a revision, with each file's checksums."""
    from huggingface_hub import HfApi, errors

    api = HfApi(endpoint=args.endpoint, token=args.said.get("token") or False)
    try:
        info = api.model_info(args.repository, revision=revision, files_metadata=True, timeout=30)
        if info.gated:
            api.auth_check(args.repository)  # anyone may list a gated repository, not read it
        return info
    except errors.GatedRepoError:
        why = "this token has no access to it" if args.said.get("token") else "no token was given"
        raise StageError(
            f"{args.repository} is gated and {why}: ask for access on the model's page, "
            "then run with HF_TOKEN set"
        ) from None
    except errors.RevisionNotFoundError:
        raise StageError(f"{args.repository} has no revision {revision}") from None
    except errors.RepositoryNotFoundError:
        raise StageError(f"no repository {args.repository} (if it is private, set HF_TOKEN)") from None
    except Exception as error:
        if args.said.get("token") and getattr(getattr(error, "response", None), "status_code", None) == 401:
            raise StageError(
                f"the hub at {api.endpoint} does not know this token: correct HF_TOKEN"
            ) from None
        raise StageError(f"the hub at {api.endpoint} does not answer: {one_line(error)}") from None


def wanted_files(args: argparse.Namespace) -> dict:
    files = ask_hub(args, args.commit).siblings
    return {file.rfilename: file for file in files if not ignored(file.rfilename, args.ignore)}


def ignored(name: str, patterns: list[str]) -> bool:
    # As the client does: `original/` is all that is in it.
    return any(fnmatch.fnmatch(name, f"{p}*" if p.endswith("/") else p) for p in patterns)


def drop_wrong(partial: Path, wanted: dict) -> None:
    """Remove files of the wrong content, so that they are fetched again.

    The client trusts a file whose checksum it recorded, whatever became of it since, and
    leaves what a killed run had of a file: names are random, so no later run resumes it.
    """
    for orphan in partial.glob(".cache/**/*.incomplete"):
        orphan.unlink()
    for name, file in wanted.items():
        if (partial / name).exists() and not right(partial / name, file):
            (partial / name).unlink()
            (partial / f".cache/huggingface/download/{name}.metadata").unlink(missing_ok=True)


def download(args: argparse.Namespace, partial: Path, names: list[str]) -> None:
    """Fetch these files, and no other: the client fetches small ones again without need."""
    from huggingface_hub import snapshot_download

    if not names:
        return
    try:
        snapshot_download(
            args.repository, revision=args.commit, local_dir=partial, endpoint=args.endpoint,
            token=args.said.get("token") or False, allow_patterns=[glob.escape(name) for name in names],
        )  # fmt: skip
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StageError(f"{args.repository}: download broke off: {one_line(error)}; run it again") from None
    except Exception as error:
        raise StageError(f"{args.repository}: download broke off: {one_line(error)}; run it again") from None


def verify(partial: Path, wanted: dict) -> dict:
    """Check every file against the hub's checksum; returns the manifest's files."""

    def entry(name: str) -> tuple[str, dict]:
        path = partial / name
        if not right(path, wanted[name]):
            raise StageError(f"{name}: its checksum is not the hub's; run it again")
        digest = sha256(path) if wanted[name].lfs is None else wanted[name].lfs.sha256
        return name, {"size": wanted[name].size, "sha256": digest}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(pool.map(entry, wanted))


def right(path: Path, file) -> bool:
    """True when a file has the size and the checksum (sha256 of LFS, git's sha1) of the hub's."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if file.lfs is not None:
        return sha256(path) == file.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == file.blob_id


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


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
