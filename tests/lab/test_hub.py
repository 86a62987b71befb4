"""The lab's hub, asked by the real huggingface_hub client, pip and the `hf` command."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .hub_testing import (
    GATED,
    KEPT_BYTES,
    MIB,
    OPEN,
    READER,
    SHARD,
    SHARD_BYTES,
    STRANGER,
    WHEEL,
    RunningHub,
    cutting_relay,
    get,
    git_sha1,
    make_model,
    running_hub,
    sha256,
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


def test_snapshot_is_downloaded_whole(hub: RunningHub, tmp_path: Path) -> None:
    folder = Path(hub.download(OPEN, tmp_path))
    for path in ("config.json", "extra/notes.txt", SHARD):
        assert (folder / path).read_bytes() == (hub.root / OPEN / path).read_bytes()
    assert not (folder / ".revisions").exists()


def test_cache_layout_is_filled_as_well(hub: RunningHub, tmp_path: Path) -> None:
    folder = Path(snapshot_download(OPEN, endpoint=hub.url, token=False, cache_dir=tmp_path))
    assert folder.name == hub.api.model_info(OPEN).sha
    assert sha256(folder / SHARD) == sha256(hub.root / OPEN / SHARD)


def test_command_line_uses_the_endpoint_variable(hub: RunningHub, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": READER,
    }
    command = [
        str(Path(sys.executable).with_name("hf")),
        "download",
        GATED,
        f"--local-dir={tmp_path / 'model'}",
    ]
    subprocess.run(command, env=environment, check=True, timeout=60)
    assert sha256(tmp_path / "model" / SHARD) == sha256(hub.root / GATED / SHARD)


def test_dry_run_tells_the_sizes(hub: RunningHub, tmp_path: Path) -> None:
    plan = hub.download(OPEN, tmp_path, dry_run=True)
    assert {item.filename: item.file_size for item in plan}[SHARD] == SHARD_BYTES
    assert not (tmp_path / "model" / SHARD).exists()


def test_cut_download_is_resumed_by_range(hub: RunningHub, tmp_path: Path) -> None:
    with cutting_relay(hub, limit=16 * MIB) as relay:
        folder = Path(hub.download(OPEN, tmp_path, endpoint=relay.url, allow_patterns=SHARD))
    assert relay.cuts == 1
    assert sha256(folder / SHARD) == sha256(hub.root / OPEN / SHARD)
    resumed = [line for line in hub.log.read_text().splitlines() if f'range="bytes={KEPT_BYTES}-"' in line]
    assert len(resumed) == 1 and " 206 " in resumed[0]


def test_range_is_answered_in_part(hub: RunningHub) -> None:
    status, headers, body = get(hub, f"/{OPEN}/resolve/main/{SHARD}", Range="bytes=256-511")
    assert (status, body) == (206, bytes(range(256)))
    assert headers["Content-Range"] == f"bytes 256-511/{SHARD_BYTES}"
    assert get(hub, f"/{OPEN}/resolve/main/{SHARD}", Range=f"bytes={SHARD_BYTES}-")[0] == 416


def test_metadata_carries_the_real_digests(hub: RunningHub) -> None:
    files = {file.rfilename: file for file in hub.api.model_info(OPEN, files_metadata=True).siblings or []}
    lfs, config = files[SHARD].lfs, (hub.root / OPEN / "config.json").read_bytes()
    assert lfs and (lfs.sha256, lfs.size) == (sha256(hub.root / OPEN / SHARD), SHARD_BYTES)
    assert files["config.json"].lfs is None
    assert files["config.json"].blob_id == git_sha1(config)
    assert files[SHARD].blob_id != git_sha1((hub.root / OPEN / SHARD).read_bytes())


@pytest.mark.parametrize("path", ["config.json", SHARD])
def test_etag_is_the_digest_that_the_metadata_names(hub: RunningHub, path: str) -> None:
    listed = {file.rfilename: file for file in hub.api.model_info(OPEN, files_metadata=True).siblings or []}[
        path
    ]
    head = hub.api.get_hf_file_metadata(url=hf_hub_url(OPEN, path, endpoint=hub.url))
    assert head.etag == (listed.lfs.sha256 if listed.lfs else listed.blob_id)
    assert head.size == listed.size
    assert head.xet_file_data is None


def test_client_verifies_the_checksums(hub: RunningHub, tmp_path: Path) -> None:
    folder = Path(hub.download(OPEN, tmp_path))
    (folder / "config.json").write_text("{}")
    report = hub.api.verify_repo_checksums(OPEN, local_dir=folder)
    assert [mismatch["path"] for mismatch in report.mismatches] == ["config.json"]


def test_tree_refs_and_paths_are_listed(hub: RunningHub) -> None:
    assert [entry.path for entry in hub.api.list_repo_tree(OPEN)] == ["config.json", SHARD, "extra"]
    assert [entry.path for entry in hub.api.list_repo_tree(OPEN, "extra")] == ["extra/notes.txt"]
    assert [info.path for info in hub.api.get_paths_info(OPEN, ["config.json", "none"])] == ["config.json"]
    assert [branch.name for branch in hub.api.list_repo_refs(OPEN).branches] == ["main", "v1"]


def test_commit_pins_a_revision(hub: RunningHub, tmp_path: Path) -> None:
    commit = hub.api.model_info(OPEN, revision="v1").sha
    assert commit != hub.api.model_info(OPEN).sha
    folder = Path(hub.download(OPEN, tmp_path, revision=commit))
    assert '"num_hidden_layers": 1' in (folder / "config.json").read_text()


def test_commit_follows_the_content(hub: RunningHub) -> None:
    folder = hub.root / "lab" / "edited"
    make_model(folder)
    before = hub.api.model_info("lab/edited").sha
    assert before == hub.api.model_info(OPEN).sha
    (folder / "config.json").write_text("{}")
    assert hub.api.model_info("lab/edited").sha != before


def test_gated_repository_is_listed_but_not_read(hub: RunningHub, tmp_path: Path) -> None:
    assert hub.api.model_info(GATED).gated == "manual"
    with pytest.raises(GatedRepoError, match="Please log in") as refusal:
        hub.download(GATED, tmp_path)
    assert refusal.value.response.status_code == 401


def test_token_without_access_is_refused(hub: RunningHub, tmp_path: Path) -> None:
    with pytest.raises(GatedRepoError, match="not in the authorized list") as refusal:
        hub.download(GATED, tmp_path, token=STRANGER)
    assert refusal.value.response.status_code == 403
    with pytest.raises(GatedRepoError):
        hub.api.auth_check(GATED, token=STRANGER)


def test_unknown_token_is_refused_for_public_repositories(hub: RunningHub, tmp_path: Path) -> None:
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as refusal:
        hub.download(OPEN, tmp_path, token="hf_expired")
    assert refusal.type is HfHubHTTPError
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        hub.api.whoami(token="hf_expired")


def test_token_with_access_reads_a_gated_repository(hub: RunningHub, tmp_path: Path) -> None:
    folder = Path(hub.download(GATED, tmp_path, token=READER))
    assert sha256(folder / SHARD) == sha256(hub.root / GATED / SHARD)
    assert hub.api.whoami(token=READER)["name"] == "lab"


@pytest.mark.parametrize(("token", "status"), [(False, 401), (READER, 404)])
def test_unknown_repository(hub: RunningHub, tmp_path: Path, token: Any, status: int) -> None:
    with pytest.raises(RepositoryNotFoundError) as refusal:
        hub.download("lab/absent", tmp_path, token=token)
    assert refusal.type is RepositoryNotFoundError
    assert refusal.value.response.status_code == status


@pytest.mark.parametrize("revision", ["absent", "refs/pr/1", "0" * 40])
def test_unknown_revision(hub: RunningHub, tmp_path: Path, revision: str) -> None:
    with pytest.raises(RevisionNotFoundError):
        hub.download(OPEN, tmp_path, revision=revision)


def test_unknown_file(hub: RunningHub, tmp_path: Path) -> None:
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(OPEN, "absent.json", endpoint=hub.url, token=False, cache_dir=tmp_path)


@pytest.mark.parametrize(
    "path", ["..%2F..%2Ftokens", "../../tokens", ".revisions/v1/config.json", "%2e%2e/tokens"]
)
def test_nothing_else_is_served(hub: RunningHub, path: str) -> None:
    assert get(hub, f"/{GATED}/resolve/main/{path}", Authorization=f"Bearer {READER}")[0] == 404
    assert get(hub, f"/wheelhouse/{path}")[0] == 404


def test_pip_finds_the_wheelhouse(hub: RunningHub, tmp_path: Path) -> None:
    links = ["--no-index", "--find-links", f"{hub.url}/wheelhouse/"]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--isolated",
        "download",
        "--no-cache-dir",
        "--dest",
        str(tmp_path),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    subprocess.run([*pip, *links, "labtoy"], env=environment, check=True, timeout=60)
    assert (tmp_path / WHEEL).is_file()


def test_tokens_stay_out_of_the_log(hub: RunningHub, tmp_path: Path) -> None:
    hub.download(GATED, tmp_path, token=READER, allow_patterns="config.json")
    log = hub.log.read_text()
    assert f"GET /{GATED}/resolve" in log
    assert READER not in log
