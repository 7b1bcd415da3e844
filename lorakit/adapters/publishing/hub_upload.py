"""The upload of a published run to a repository of the model hub, as one commit.

Nothing is overwritten that somebody else wrote: a file is replaced only if it is still what an earlier
publication uploaded, which the repository's publication.json says.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.adapters.publishing.publication import LIST_FILE, Publication, parse_file_list, read_file_list
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError, LorakitError
from lorakit.models import hub

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_MAX_NAMES = 5  # in a sentence
_NETWORK_REMEDY = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, then run the same command again"
_TOKEN_REMEDY = "run `hf auth login`, or set HF_TOKEN, with a token that may write"


@dataclass(frozen=True)
class Upload:
    """A finished upload; `commit` is empty if the repository had everything already."""

    repository: str
    url: str
    commit: str
    is_private: bool
    uploaded: tuple[str, ...]
    removed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "uploaded": list(self.uploaded), "removed": list(self.removed)}


@dataclass(frozen=True)
class _RemoteRepository:
    """A repository before the upload: its commit, and its files by name."""

    commit: str
    is_private: bool
    files: Mapping[str, Any]
    published: Mapping[str, Mapping[str, Any]]
    """The files of an earlier publication, as they were uploaded."""


def upload_publication(
    publication: Publication, repository: str, *, public: bool = False, replace_files: bool = False
) -> Upload:
    """Upload a folder to OWNER/NAME; a repository that does not exist is created, private unless `public`.

    Raises ConfigError without a token, right or network, for a public repository without `public`, and for
    files in it that somebody else wrote, unless `replace_files`.
    """
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if not token:
        raise ConfigError(
            "there is no token of the model hub on this machine", where=repository, remedy=_TOKEN_REMEDY
        )
    _check_name(repository)
    api = HfApi(token=token)
    try:
        remote = _open_repository(api, repository, public)
        return _commit(api, repository, publication, remote, replace_files)
    except LorakitError:
        raise
    except Exception as error:
        raise _upload_error(error, repository) from error


def _check_name(repository: str) -> None:
    if not _NAME.fullmatch(repository) or ".." in repository or "--" in repository:
        raise ConfigError(
            f"{repository!r} is not the name of a repository",
            where="--to",
            remedy="write OWNER/NAME, your user name or organization and the repository",
        )


def _open_repository(api: Any, repository: str, public: bool) -> _RemoteRepository:
    """Return the repository, created if it does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(repository)
    except RepositoryNotFoundError:
        api.create_repo(repository, private=not public)
        info = api.repo_info(repository)
    if not info.private and not public:
        raise ConfigError(
            "this repository is public, and nothing is published to everybody without being asked to",
            where=repository,
            remedy="add --public, or give the name of a private or new repository",
        )
    entries = api.list_repo_tree(repository, recursive=True, revision=info.sha)
    files = {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}
    published = _read_published(api, repository, info.sha) if LIST_FILE in files else {}
    return _RemoteRepository(info.sha, bool(info.private), files, published)


def _read_published(api: Any, repository: str, commit: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the list of an earlier publication; nothing for another file of that name."""
    with tempfile.TemporaryDirectory(prefix="lorakit-") as folder:
        file = api.hf_hub_download(repository, LIST_FILE, revision=commit, local_dir=folder)
        try:
            return parse_file_list(storage.read_json(Path(file)), LIST_FILE)
        except DataError:
            return {}


def _commit(
    api: Any, repository: str, publication: Publication, remote: _RemoteRepository, replace_files: bool
) -> Upload:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    local = _local_files(publication)
    changed = [name for name in local if not _is_equal(remote.files.get(name), local[name])]
    foreign = [
        name
        for name in changed
        if name in remote.files and name != LIST_FILE and not _is_published(remote, name)
    ]
    if LIST_FILE in remote.files and not remote.published:
        foreign.append(LIST_FILE)
    if foreign and not replace_files:
        names = ", ".join(foreign[:_MAX_NAMES]) + (", ..." if len(foreign) > _MAX_NAMES else "")
        raise ConfigError(
            f"the repository has other files of these names: {names}",
            where=repository,
            remedy="give another repository, or add --replace to overwrite them",
        )
    removed = [name for name in remote.published if name not in local and _is_published(remote, name)]
    url = f"{api.endpoint}/{repository}"
    if not changed and not removed:
        return Upload(repository, url, "", remote.is_private, (), ())
    operations: list[Any] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=publication.folder / name) for name in changed
    ]
    operations += [CommitOperationDelete(path_in_repo=name) for name in removed]
    result = api.create_commit(
        repository, operations, commit_message="Publish with lorakit", parent_commit=remote.commit
    )
    return Upload(repository, url, result.oid, remote.is_private, tuple(changed), tuple(removed))


def _local_files(publication: Publication) -> dict[str, Mapping[str, Any]]:
    """Return the files with their hashes; the list of them has none, and is always uploaded."""
    return {**(read_file_list(publication.folder) or {}), LIST_FILE: {}}


def _is_equal(remote_file: Any, row: Mapping[str, Any] | None) -> bool:
    """Compare a file of the repository with recorded hashes."""
    if remote_file is None or not row:
        return False
    if remote_file.lfs is not None:
        return bool(remote_file.lfs.sha256 == row.get("sha256"))
    return bool(remote_file.blob_id == row.get("git_sha1"))


def _is_published(remote: _RemoteRepository, name: str) -> bool:
    """Return True if a file of the repository is still what an earlier publication uploaded."""
    return _is_equal(remote.files.get(name), remote.published.get(name))


def _upload_error(error: Exception, repository: str) -> LorakitError:
    """Translate an error of the hub's client."""
    from huggingface_hub import errors

    status = hub.http_status(error)
    if status == 401:
        return ConfigError("the hub does not accept the token", where=repository, remedy=_TOKEN_REMEDY)
    if status == 403:
        return ConfigError(
            "the token has no right to write to this repository",
            where=repository,
            remedy=f"check the owner's name; {_TOKEN_REMEDY}",
        )
    if status in (409, 412):
        return ConfigError(
            "the repository was changed or created by somebody else at the same time",
            where=repository,
            remedy="look at it, then run the same command again",
        )
    if status:
        return ConfigError(
            f"the hub refuses the upload ({status}): {_reason(error)}",
            where=repository,
            remedy="try again later",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ConfigError("HF_HUB_OFFLINE forbids the network", where=repository, remedy=_NETWORK_REMEDY)
    return ConfigError(
        f"the hub cannot be reached: {_reason(error)}", where=repository, remedy=_NETWORK_REMEDY
    )


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
