"""Runs on a node, beside stage.py: commits and files of a copy of the weights folder, instead of the hub.

The copy is a folder of this node, on a web server, or in a store that speaks S3; the library is the same
for all three. A folder that is itself a snapshot will do as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import snapshots
from snapshots import StageError, is_full
from sources import File, one_line, persist

#: Options that are of the connection, whatever is spoken over it.
CLIENT = ("root_certificate", "allow_invalid_certificates", "proxy_url")
CHUNK = 2**20
#: A line that says nothing is given up; a request may take as long as it takes.
PATIENCE = {"connect_timeout": "10s", "read_timeout": "20s", "timeout": "30d", "allow_http": True}
RETRIES = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}


def at(address: str, options: Mapping[str, str], repository: str, records: Path) -> Mirror:
    """+ records: the folder for what a revision means here"""
    try:
        from obstore.exceptions import BaseError
    except ImportError:
        raise StageError("this node cannot read mirrors yet: run the deploy provision") from None

    if "@" in urlsplit(address).netloc:
        raise StageError("the mirror's address holds credentials: give them as mirror_options")
    try:
        store = _store(address, dict(options))
    except (BaseError, TypeError, ValueError) as error:
        raise StageError(f"the mirror {address}: {cause(error)}; correct mirror_options") from None
    if (Path(address) / "config.json").is_file():
        return Snapshot(address, store, "", Path(address), records)
    return Mirror(address, store, repository.replace("/", "--"))


def _store(address: str, options: dict[str, str]) -> Any:
    from obstore.store import HTTPStore, LocalStore, S3Store

    url = urlsplit(address)
    client: dict[str, Any] = {**PATIENCE, **{name: options.pop(name) for name in CLIENT if name in options}}
    how: dict[str, Any] = {"client_options": client, "retry_config": RETRIES}
    if url.scheme == "s3":
        # Without keys it would ask the cloud's own address for some.
        options.setdefault("skip_signature", "false" if "access_key_id" in options else "true")
        return S3Store(url.netloc, prefix=url.path.strip("/") or None, **options, **how)
    if url.scheme in ("http", "https"):
        if "username" in options:
            login = f"{options.pop('username')}:{options.pop('password', '')}"
            client["default_headers"] = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}
        if options:
            raise ValueError(f"{min(options)} is none of a web server's")
        return HTTPStore.from_url(address, **how)
    if not Path(address).is_dir():
        raise StageError(f"the mirror {address} is no folder here, nor http(s)://... or s3://...")
    return LocalStore(address)


@dataclass(frozen=True)
class Mirror:
    mend = "copy it there again"

    address: str
    store: Any
    model: str  # the name of its folder

    def __str__(self) -> str:
        return f"the mirror {self.address}"

    def commit(self, revision: str) -> str:
        path = f"{self.model}/commits/{revision.replace('/', '--')}"
        commit = self._text(path).partition(" ")[0].strip()
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise StageError(f"{self}: {path} names no commit; {self.mend}")
        return commit

    def files(self, commit: str) -> list[File]:
        path = f"{self.model}/snapshot-{commit}.json"
        try:
            files = json.loads(self._text(path))["files"]
            return [File(name, int(file["size"]), str(file["sha256"])) for name, file in files.items()]
        except (ValueError, KeyError, TypeError):
            raise StageError(f"{self}: {path} is torn; {self.mend}") from None

    def read(self, commit: str, file: File, to: Path) -> None:
        path = self.place(commit, file.name)
        with self._named(path):
            persist(lambda: self._read(path, file.size, to), to, passing)

    def place(self, commit: str, name: str) -> str:
        return f"{self.model}/snapshot-{commit}/{name}"

    def _read(self, path: str, size: int, to: Path) -> None:
        import obstore

        with to.open("ab") as opened:
            if opened.tell() >= size > 0:
                return
            try:
                got = obstore.get(self.store, path, options=_from(opened.tell()))
            except obstore.exceptions.NotSupportedError:  # as Python's own web server: the whole or nothing
                opened.truncate(0)
                got = obstore.get(self.store, path)
            if got.meta["size"] != size:
                raise StageError(f"{self}: {path} has {got.meta['size']} bytes and not {size}; {self.mend}")
            for chunk in got.stream(min_chunk_size=CHUNK):
                opened.write(chunk)
        if to.stat().st_size < size:
            raise EOFError("it ended too early")

    def _text(self, path: str) -> str:
        import obstore

        with self._named(path):
            return bytes(obstore.get(self.store, path).bytes()).decode(errors="replace")

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except FileNotFoundError:
            raise StageError(
                f"{self} has no {path}: copy the whole folder of the model there, or stage from the hub"
            ) from None
        except (PermissionDeniedError, UnauthenticatedError):
            raise StageError(f"{self} refuses {path} to who asks so: correct mirror_options") from None
        except StageError:
            raise
        except Exception as error:
            if is_full(error):
                raise
            raise StageError(f"{self}: {path} broke off: {cause(error)}; run it again") from None


@dataclass(frozen=True)
class Snapshot(Mirror):
    """A folder that someone made of a model; its commit is what its bytes make it."""

    root: Path
    records: Path

    def commit(self, revision: str) -> str:
        files = self._hashed()
        self.records.mkdir(parents=True, exist_ok=True)
        commit = _digest(files)
        snapshots.replace(self.records / f"{commit}.json", json.dumps(files))
        return commit

    def files(self, commit: str) -> list[File]:
        known = self.records / f"{commit}.json"  # unless another host resolved it
        files = json.loads(known.read_text()) if known.exists() else self._hashed()
        if _digest(files) != commit:
            raise StageError(f"{self} is not what was resolved before; put that there again")
        return [File(name, **file) for name, file in files.items()]

    def place(self, commit: str, name: str) -> str:
        return name

    def _hashed(self) -> dict[str, dict[str, Any]]:
        def entry(name: str) -> tuple[str, dict[str, Any]]:
            path = self.root / name
            if not path.exists():
                raise StageError(f"{self}: {name} is a link to nothing; copy with links followed (rsync -L)")
            return name, {"size": path.stat().st_size, "sha256": snapshots.sha256(path)}

        there = {path.relative_to(self.root).as_posix(): path for path in self.root.rglob("*")}
        ours = {name: path for name, path in there.items() if not re.search(r"(^|/)\.", name)}
        if linked := [name for name, path in ours.items() if path.is_symlink() and path.is_dir()]:
            raise StageError(
                f"{self}: {min(linked)} is a link to a folder; copy with links followed (rsync -L)"
            )
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return dict(pool.map(entry, sorted(name for name, path in ours.items() if not path.is_dir())))


def passing(error: Exception) -> bool:
    from obstore.exceptions import GenericError

    return isinstance(error, (GenericError, EOFError))


def cause(error: Exception) -> str:
    """What a store's error says, but for its stack, the headers, and what the server said of the keys."""
    said = one_line(error).split(" Debug source:")[0]
    status = re.search(r"status code: (\d+( [A-Z]\w+)*)", said)
    return status[1] if status else said.split(" - ")[-1]


def _from(have: int) -> dict[str, Any]:
    return {"range": {"offset": have}} if have else {}


def _digest(files: Mapping[str, Any]) -> str:
    return hashlib.sha1(json.dumps(files, sort_keys=True).encode()).hexdigest()
