"""A flat folder of distributions, served as the page of links that installers read."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

SUFFIXES = (".whl", ".tar.gz")


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
