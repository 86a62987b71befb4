"""What the Hub answers: its JSON, its headers and its refusals, from repositories alone."""

import json
from typing import Any
from urllib.parse import quote

from aiohttp import web

from .hub_store import Repository, Revision, StoredFile

Json = dict[str, Any]

_REFUSALS: dict[int, type[web.HTTPException]] = {
    401: web.HTTPUnauthorized,
    403: web.HTTPForbidden,
    404: web.HTTPNotFound,
}


def model_info(repository: Repository, revision: Revision, blobs: bool) -> Json:
    """Describe a revision; `blobs` adds each file's size and digests."""
    return {
        "id": repository.id,
        "author": repository.id.split("/")[0],
        "sha": revision.commit,
        "private": False,
        "gated": "manual" if repository.gated else False,
        "disabled": False,
        "tags": [],
        "siblings": [_sibling(file, blobs) for file in revision.files.values()],
    }


def refs(repository: Repository) -> Json:
    branches = [_ref(name, revision.commit) for name, revision in repository.revisions.items()]
    return {"branches": branches, "converts": [], "tags": [], "pullRequests": []}


def tree(revision: Revision, folder: str, recursive: bool) -> list[Json]:
    """List the files under a folder ("" for the root), all on one page."""
    prefix = f"{folder.strip('/')}/".lstrip("/")
    files = [file for path, file in revision.files.items() if path.startswith(prefix)]
    here = [file for file in files if recursive or "/" not in file.path[len(prefix) :]]
    names = {prefix + file.path[len(prefix) :].split("/")[0] for file in files if file not in here}
    return [tree_file(file) for file in here] + [_tree_folder(name) for name in sorted(names)]


def tree_file(file: StoredFile) -> Json:
    lfs = {"lfs": {"oid": file.digest.sha256, **_lfs_sizes(file)}} if file.is_lfs else {}
    return {"type": "file", "oid": file.blob_id, "size": file.size, "path": file.path, **lfs}


def file_headers(file: StoredFile, revision: Revision) -> dict[str, str]:
    linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)} if file.is_lfs else {}
    return {"X-Repo-Commit": revision.commit, **linked}


def repository_not_found(anonymous: bool) -> web.HTTPException:
    """Refuse a name that is not there; the Hub does not tell strangers so."""
    # Over plain HTTP the client reads a 401 without this code as a bare HfHubHTTPError.
    if anonymous:
        return _refusal(401, "RepoNotFound", "Invalid username or password.")
    return _refusal(404, "RepoNotFound", "Repository not found")


def revision_not_found(name: str) -> web.HTTPException:
    return _refusal(404, "RevisionNotFound", f"Invalid rev id: {quote(name)}")


def entry_not_found(revision: Revision) -> web.HTTPException:
    return _refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": revision.commit})


def login_needed(repository: Repository) -> web.HTTPException:
    need = "You must have access to it and be authenticated to access it. Please log in."
    return _refusal(401, "GatedRepo", f"Access to model {repository.id} is restricted. {need}")


def access_denied(repository: Repository) -> web.HTTPException:
    state = "is restricted and you are not in the authorized list."
    return _refusal(403, "GatedRepo", f"Access to model {repository.id} {state}")


def invalid_token() -> web.HTTPException:
    # No error code: the client tells this case by the words alone.
    return _refusal(401, None, "Invalid credentials in Authorization header")


def _refusal(status: int, code: str | None, message: str, **headers: str) -> web.HTTPException:
    coded = {"X-Error-Code": code} if code else {}
    return _REFUSALS[status](
        headers={**coded, "X-Error-Message": message, **headers},
        text=json.dumps({"error": message}),
        content_type="application/json",
    )


def _sibling(file: StoredFile, blobs: bool) -> Json:
    if not blobs:
        return {"rfilename": file.path}
    lfs = {"lfs": {"sha256": file.digest.sha256, **_lfs_sizes(file)}} if file.is_lfs else {}
    return {"rfilename": file.path, "size": file.size, "blobId": file.blob_id, **lfs}


def _lfs_sizes(file: StoredFile) -> dict[str, int]:
    return {"size": file.size, "pointerSize": len(file.pointer)}


def _ref(name: str, commit: str) -> Json:
    return {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}


def _tree_folder(path: str) -> Json:
    return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
