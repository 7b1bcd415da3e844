"""Download of models from the Hugging Face hub: complete, verified and pinned; training opens no socket.

The hub's client compares only sizes; here the hash of each file is compared with the one that the hub names.
Only safetensors, JSON and text files are requested, never pickles or code.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lorakit.core import checksums, storage
from lorakit.core.errors import ConfigError, DataError, DiskError, LorakitError

PIPELINE_FILES = [
    "model_index.json",
    "modular_model_index.json",
    "lorakit.json",
    *(f"*/*.{end}" for end in ("json", "safetensors", "txt", "model", "jinja")),
]
IGNORE_PATTERNS = ["*.fp16.safetensors", "*.fp16-*", "*.non_ema.safetensors", "*flax*", "safety_checker/*"]
RETRY_DELAYS = (1.0, 3.0, 9.0)  # seconds before asking a busy hub again
_RETRYABLE_STATUS = (429, 500, 502, 503, 504)
_OFFLINE_REMEDY = "check the network and HF_HUB_OFFLINE, or name a local folder"


class UnreachableError(ConfigError):
    """The hub cannot be reached, and the local cache lacks the model."""


def download_model(spec: str, patterns: Sequence[str] = PIPELINE_FILES, role: str = "base") -> Path:
    """Return the local folder of `id` or `id@revision` with the files that match `patterns`.

    A complete copy in the cache is used without the network. `role` names the model in errors. Raises
    ConfigError if the download fails, DiskError if it cannot be stored, DataError if a file is damaged.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = spec.partition("@")
    if ".." in revision:  # git has no such name, but a file system has
        raise ConfigError(
            f"{revision!r} is not a revision", where=f"{role}: {spec}", remedy="check the part after @"
        )
    get = partial(
        snapshot_download,
        name,
        revision=revision or None,
        allow_patterns=list(patterns),
        ignore_patterns=IGNORE_PATTERNS,
    )
    if folder := cached_model(spec, patterns):
        return folder
    try:
        folder = Path(_with_retries(get))
    except Exception as error:
        raise _hub_error(spec, error, role) from error
    _check_download(folder, f"{role}: {spec}")
    return folder


def cached_model(spec: str, patterns: Sequence[str] = PIPELINE_FILES) -> Path | None:
    """Return the folder of a complete copy in the local cache; None if it is missing or incomplete."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download

    name, _, revision = spec.partition("@")
    with contextlib.suppress(Exception):
        get_cached_repo_tree(name, revision=revision or None)  # else missing files would go unnoticed
        folder = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=list(patterns),
            ignore_patterns=IGNORE_PATTERNS,
            local_files_only=True,
        )
        return Path(folder)
    return None


def _with_retries(get: Callable[[], str]) -> str:
    """Call `get`, again after a delay if the hub is busy."""
    for wait in RETRY_DELAYS:
        try:
            return get()
        except Exception as error:
            if http_status(error) not in _RETRYABLE_STATUS:
                raise
        time.sleep(wait)
    return get()


def http_status(error: BaseException) -> int:
    """Return the HTTP status behind an error of the hub's client; 0 if there is none."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return int(getattr(response, "status_code", 0))


def _hub_error(spec: str, error: Exception, role: str) -> LorakitError:
    """Translate an error of the hub's client."""
    from huggingface_hub import errors

    name, _, revision = spec.partition("@")
    status, where = http_status(error), f"{role}: {spec}"
    access = "accept the terms on its page, then run `hf auth login` or set HF_TOKEN"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        remedy = "free space there, or set HF_HOME to a folder on another disk"
        return DiskError(f"the {role} cannot be stored: {error.strerror}", where=where, remedy=remedy)
    if isinstance(error, errors.GatedRepoError):
        return ConfigError(f"access to this {role} must be requested", where=where, remedy=access)
    if isinstance(error, errors.RevisionNotFoundError):
        return ConfigError(
            f"{name} has no revision {revision!r}", where=where, remedy="check the part after @"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ConfigError(
            f"the hub has no {name}, or it is private", where=where, remedy=f"check the name; {access}"
        )
    if status in (401, 403):
        return ConfigError(f"the hub refuses access ({status})", where=where, remedy=access)
    if status in _RETRYABLE_STATUS:
        return ConfigError(f"the hub is busy ({status})", where=where, remedy="try again later")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        text = f"the hub cannot be reached, and the local cache has no complete copy of the {role}"
        return UnreachableError(text, where=where, remedy=_OFFLINE_REMEDY)
    reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return ConfigError(
        f"the {role} could not be downloaded: {reason}",
        where=where,
        remedy="check the name, the network and your access to it, or name a local folder",
    )


def _check_download(folder: Path, where: str) -> None:
    """Compare the hash of each file with the hub's; remove a wrong file from the hub's cache."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and _hash_differs(file):
            storage.remove_file(file.resolve())
            raise DataError(
                f"{file.relative_to(folder)} was damaged in the download and removed from the hub's cache",
                where=where,
                remedy="run the same command again to download it again",
            )


def _hash_differs(file: Path) -> bool:
    """Return True if a file does not match its name in the cache: SHA-256, or git's SHA-1 if small."""
    cached_hash = Path(os.readlink(file)).name if file.is_symlink() else ""
    if re.fullmatch(r"[0-9a-f]{64}", cached_hash):
        return checksums.sha256_file(file) != cached_hash
    if re.fullmatch(r"[0-9a-f]{40}", cached_hash):
        plain = hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
        return cached_hash not in (checksums.git_blob_sha1(file), plain)
    return False
