"""A Hugging Face-compatible endpoint for the lab, and a wheelhouse next to it.

    python -m tests.lab.hub --root ROOT --wheelhouse DIR --host ADDR --port PORT --tokens FILE

serves the repositories under ROOT (see `hub_store`) so that the real client works with
HF_ENDPOINT=http://ADDR:PORT, and the wheels in DIR for `--no-index --find-links
http://ADDR:PORT/wheelhouse/`. No Xet headers are sent, so the client uses plain HTTP.

Each line of FILE is a token and, after it, the gated repositories that it may read
(patterns such as `org/*`; none means all of them; `-` matches none).

Answers are those of the real Hub where the client can tell the difference: a gated
repository can be listed by anyone, only its files are refused; a token that is not in
FILE is refused everywhere, for public repositories too.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import click
from aiohttp import web

from . import hub_replies as replies
from .hub_store import MAIN, Repository, Revision, Store
from .wheelhouse import Wheelhouse

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Tokens = dict[str, list[str]]

# The Authorization header is left out on purpose.
LOG_FORMAT = '%a "%r" %s %Tfs range="%{Range}i"'
ETAG = web.RequestKey("etag", str)


@dataclass(frozen=True)
class Hub:
    """Request handlers over one store of repositories."""

    store: Store
    grants: Path | None

    @property
    def tokens(self) -> Tokens:
        """Read at each question: a token may expire."""
        return read_tokens(self.grants)

    def routes(self) -> list[web.RouteDef]:
        api = "/api/models/{org}/{name}"
        return [
            web.get("/api/whoami-v2", self.whoami),
            web.get(api, self.model_info),
            web.get(api + "/revision/{revision}", self.model_info),
            web.get(api + "/auth-check", self.auth_check),
            web.get(api + "/refs", self.refs),
            web.get(api + "/tree/{revision}", self.tree),
            web.get(api + "/tree/{revision}/{path:.+}", self.tree),
            web.post(api + "/paths-info/{revision}", self.paths_info),
            web.get("/{org}/{name}/resolve/{revision}/{path:.+}", self.resolve),
        ]

    async def whoami(self, request: web.Request) -> web.Response:
        if _bearer(request) is None:
            raise replies.invalid_token()
        return web.json_response({"type": "user", "id": "lab", "name": "lab", "orgs": []})

    async def model_info(self, request: web.Request) -> web.Response:
        repository, revision = await self._find(request)
        return web.json_response(replies.model_info(repository, revision, blobs="blobs" in request.query))

    async def auth_check(self, request: web.Request) -> web.Response:
        repository, _ = await self._find(request)
        self._authorize(request, repository)
        return web.json_response({})

    async def refs(self, request: web.Request) -> web.Response:
        repository, _ = await self._find(request)
        return web.json_response(replies.refs(repository))

    async def tree(self, request: web.Request) -> web.Response:
        _, revision = await self._find(request)
        folder = request.match_info.get("path", "")
        entries = replies.tree(revision, folder, request.query.get("recursive", "").lower() == "true")
        if folder and not entries:
            raise replies.entry_not_found(revision)
        return web.json_response(entries)

    async def paths_info(self, request: web.Request) -> web.Response:
        _, revision = await self._find(request)
        wanted = (str(path) for path in (await request.post()).getall("paths", []))
        return web.json_response(
            [replies.tree_file(revision.files[path]) for path in wanted if path in revision.files]
        )

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        pinned, path = request.match_info["revision"], request.match_info["path"]
        known = self.store.with_file(_repository_id(request), pinned, path)
        repository, revision = (known, known.revisions[pinned]) if known else await self._find(request)
        self._authorize(request, repository)
        file = revision.files.get(path)
        if file is None:
            raise replies.entry_not_found(revision)
        request[ETAG] = file.etag
        return web.FileResponse(file.source, headers=replies.file_headers(file, revision))

    async def _find(self, request: web.Request) -> tuple[Repository, Revision]:
        repository = await asyncio.to_thread(self.store.repository, _repository_id(request))
        if repository is None:
            raise replies.repository_not_found(anonymous=_bearer(request) is None)
        name = request.match_info.get("revision", MAIN)
        revision = repository.revision(name)
        if revision is None:
            raise replies.revision_not_found(name)
        return repository, revision

    def _authorize(self, request: web.Request, repository: Repository) -> None:
        if not repository.gated:
            return
        token = _bearer(request)
        if token is None:
            raise replies.login_needed(repository)
        if not any(fnmatch(repository.id, grant) for grant in self.tokens[token]):
            raise replies.access_denied(repository)

    @web.middleware
    async def check_token(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse an unknown token before anything else is looked at, as the Hub does."""
        token = _bearer(request)
        if token is not None and token not in self.tokens:
            raise replies.invalid_token()
        return await handler(request)

    async def hash_all(self, _: web.Application) -> None:
        """Hash every file before the port opens: the client waits 10 s for an ETag."""
        for repository_id in self.store.ids():
            await asyncio.to_thread(self.store.repository, repository_id)


def create_app(root: Path, wheelhouse: Path | None, tokens: Path | None) -> web.Application:
    """Build the application; both folders must exist."""
    hub = Hub(Store(root), tokens)
    app = web.Application(middlewares=[hub.check_token])
    app.on_startup.append(hub.hash_all)
    app.on_response_prepare.append(_set_etag)
    app.add_routes([web.get("/healthz", _healthz), *hub.routes()])
    app.add_routes(Wheelhouse(wheelhouse).routes() if wheelhouse else [])
    return app


def read_tokens(file: Path | None) -> Tokens:
    """Map each token to the patterns of gated repositories that it may read."""
    lines = file.read_text().splitlines() if file else []
    return {token: grants or ["*"] for token, *grants in map(str.split, filter(str.strip, lines))}


async def _healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _set_etag(request: web.Request, response: web.StreamResponse) -> None:
    # FileResponse writes an ETag of its own from the modification time; the client wants a digest.
    if ETAG in request:
        response.headers["ETag"] = f'"{request[ETAG]}"'


def _bearer(request: web.Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _repository_id(request: web.Request) -> str:
    return f"{request.match_info['org']}/{request.match_info['name']}"


_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--root", type=_FOLDER, required=True, help="Folder of <org>/<name> repositories.")
@click.option("--wheelhouse", type=_FOLDER, help="Folder of wheels, served under /wheelhouse/.")
@click.option("--host", required=True, help="Address to listen on.")
@click.option("--port", type=int, required=True)
@click.option("--tokens", type=_FILE, help="File of tokens and the gated repositories each may read.")
def main(root: Path, wheelhouse: Path | None, host: str, port: int, tokens: Path | None) -> None:
    """Serve repositories to the Hugging Face client, and wheels to installers."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    app = create_app(root, wheelhouse, tokens)
    web.run_app(app, host=host, port=port, access_log_format=LOG_FORMAT)


if __name__ == "__main__":
    main()
