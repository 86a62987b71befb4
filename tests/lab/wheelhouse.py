"""A flat folder of distributions, served as the page of links that installers read.

It may hold a Python for uv too, and the list in which uv finds it.
"""

import hashlib
import json
import platform
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from roles.runtime.operations import PYTHONS

SUFFIXES = (".whl", ".tar.gz", ".json")


@dataclass(frozen=True)
class Wheelhouse:
    """Request handlers over one folder, re-read at each question."""

    folder: Path

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/wheelhouse/", self.index), web.get("/wheelhouse/{name}", self.download)]

    async def index(self, _: web.Request) -> web.Response:
        links = "".join(f'<a href="{quote(name)}">{escape(name)}</a><br>\n' for name in self._names())
        return web.Response(text=f"<!DOCTYPE html>\n<body>\n{links}</body>\n", content_type="text/html")

    async def download(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in self._names():
            raise web.HTTPNotFound
        return web.FileResponse(self.folder / name)

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name.endswith(SUFFIXES))


def list_python(archive: Path, version: str, url: str) -> Path:
    """Write beside a packed Python the list in which uv finds it; returns that."""
    major, minor, patch = map(int, version.split("."))
    entry = {
        "name": "cpython", "arch": {"family": platform.machine(), "variant": None}, "os": "linux",
        "libc": "gnu", "major": major, "minor": minor, "patch": patch, "prerelease": "", "variant": None,
        "url": url, "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(), "build": "1",
    }  # fmt: skip
    listed = archive.with_name(PYTHONS)
    listed.write_text(json.dumps({f"cpython-{version}-linux-{platform.machine()}-gnu": entry}))
    return listed
