"""Runs on a node, beside stage.py: commits and files of the Hugging Face hub, or one like it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapshots import StageError, is_full
from sources import File, one_line, persist

#: The longest range that is asked for: a whole file above that is not to be had over HTTP.
LONGEST = 40 * 10**9


@dataclass(frozen=True)
class Hub:
    mend = "run it again"

    endpoint: str | None
    repository: str
    token: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"the hub at {self.address}"

    @property
    def address(self) -> str:
        from huggingface_hub import constants

        return self.endpoint or constants.ENDPOINT

    def info(self, revision: str) -> Any:
        """The hub's account of the repository at a revision, with each file's checksums."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint, token=self.token or False)
        try:
            info = api.model_info(self.repository, revision=revision, files_metadata=True, timeout=30)
            if info.gated:
                api.auth_check(self.repository)  # anyone may list a gated repository, not read it
        except Exception as error:
            raise self.refusal(error, revision) or StageError(
                f"{self} does not answer: {one_line(error)}"
            ) from None
        return info

    def commit(self, revision: str) -> str:
        return str(self.info(revision).sha)

    def files(self, commit: str) -> list[File]:
        return [
            File(one.rfilename, one.size, one.lfs and one.lfs.sha256, one.blob_id)
            for one in self.info(commit).siblings
        ]

    def read(self, commit: str, file: File, to: Path) -> None:
        try:
            persist(lambda: self._read(commit, file, to), to, passing)
        except Exception as error:
            if is_full(error):
                raise
            broke = f"{self.repository}: download broke off: {one_line(error)}; run it again"
            raise self.refusal(error, commit) or StageError(broke) from None

    def _read(self, commit: str, file: File, to: Path) -> None:
        """With the client's function for one file: the client as a whole cannot resume one.

        It deletes what it has of a file, or, killed, leaves it under a random name; and what it gets from
        Xet it writes in no order.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(self.repository, file.name, revision=commit, endpoint=self.endpoint)
        headers = build_hf_headers(token=self.token or False)
        with to.open("ab") as opened:
            for end in [*range(LONGEST, file.size, LONGEST), file.size]:
                if (have := opened.tell()) < end:
                    part = {"Range": f"bytes=0-{end - 1}"} if end < file.size else {}
                    http_get(url, opened, resume_size=have, headers={**headers, **part}, expected_size=end)

    def refusal(self, error: Exception, revision: str) -> StageError | None:
        """What the user has to do about an answer of the hub's; None for what only broke."""
        from huggingface_hub import errors

        repository = self.repository
        if isinstance(error, errors.GatedRepoError):
            why = "this token has no access to it" if self.token else "no token was given"
            return StageError(
                f"{repository} is gated and {why}: ask for access on "
                f"{self.address}/{repository}, then run with HF_TOKEN set"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return StageError(f"{repository} has no revision {revision}")
        if isinstance(error, errors.RepositoryNotFoundError):
            return StageError(f"no repository {repository} (if it is private, set HF_TOKEN)")
        if self.token and getattr(getattr(error, "response", None), "status_code", None) == 401:
            return StageError(f"{self} does not know this token: correct HF_TOKEN")
        return None


def passing(error: Exception) -> bool:
    """Whether to ask again; what the client has asked five times already is not."""
    import httpx2

    if isinstance(error, (httpx2.ConnectError, httpx2.TimeoutException, httpx2.RemoteProtocolError)):
        return False
    status = getattr(getattr(error, "response", None), "status_code", 500)
    return isinstance(error, (httpx2.HTTPError, OSError)) and status >= 500
