"""Fetch a model from the hub: whole, verified and pinned, before any work; training itself opens no socket.

The hub's client compares sizes and leaves hashes to the sender; here each file is held against the hash that
the hub names it by. Only safetensors, JSON and texts are asked for, never pickles or code.
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

from lorakit.core import storage
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
_OFFLINE_REMEDY = "check the network and HF_HUB_OFFLINE, or give a local folder"


def download_model(spec: str, patterns: Sequence[str] = PIPELINE_FILES, what: str = "base") -> Path:
    """The local folder of `id` or `id@revision`: from the cache when it is known to be whole there, else from
    the hub; only the files that match `patterns`. `what` is what errors call it.

    What cannot be had is one `ConfigError` (`DiskError` when it cannot be stored, `DataError` when it arrived
    damaged) that says what to do.
    """
    from huggingface_hub import get_cached_repo_tree, snapshot_download

    name, _, revision = spec.partition("@")
    if ".." in revision:  # git has no such name, but a file system has
        raise ConfigError(
            f"{revision!r} is no revision", where=f"{what}: {spec}", remedy="check what follows @"
        )
    get = partial(
        snapshot_download,
        name,
        revision=revision or None,
        allow_patterns=list(patterns),
        ignore_patterns=IGNORE_PATTERNS,
    )
    with contextlib.suppress(Exception):  # not (wholly) in the local cache, for whatever reason: ask the hub
        get_cached_repo_tree(name, revision=revision or None)  # without it nobody knows what is missing
        return Path(get(local_files_only=True))
    try:
        folder = Path(_with_retries(get))
    except Exception as error:
        raise _hub_error(spec, error, what) from error
    _check_download(folder, f"{what}: {spec}")
    return folder


def _with_retries(get: Callable[[], str]) -> str:
    """`get`, tried again after a while when the hub is busy."""
    for wait in RETRY_DELAYS:
        try:
            return get()
        except Exception as error:
            if _status(error) not in _RETRYABLE_STATUS:
                raise
        time.sleep(wait)
    return get()


def _status(error: BaseException) -> int:
    """The HTTP status behind an error of the hub's client; 0 when there is none."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return int(getattr(response, "status_code", 0))


def _hub_error(spec: str, error: Exception, what: str) -> LorakitError:
    """One readable error for whatever the hub's client raised."""
    from huggingface_hub import errors

    name, _, revision = spec.partition("@")
    status, where = _status(error), f"{what}: {spec}"
    access = "accept its terms on its page, then `hf auth login`, or set HF_TOKEN"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        remedy = "free space there, or set HF_HOME to a folder on another disk"
        return DiskError(f"the {what} cannot be stored: {error.strerror}", where=where, remedy=remedy)
    if isinstance(error, errors.GatedRepoError):
        return ConfigError(f"access to this {what} must be asked for", where=where, remedy=access)
    if isinstance(error, errors.RevisionNotFoundError):
        return ConfigError(f"{name} has no revision {revision!r}", where=where, remedy="check what follows @")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ConfigError(
            f"the hub has no {name}, or it is private", where=where, remedy=f"check the name; {access}"
        )
    if status in (401, 403):
        return ConfigError(f"the hub refuses access ({status})", where=where, remedy=access)
    if status in _RETRYABLE_STATUS:
        return ConfigError(f"the hub is busy ({status})", where=where, remedy="try again later")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        text = f"the hub cannot be reached, and the {what} is not (wholly) in the local cache"
        return ConfigError(text, where=where, remedy=_OFFLINE_REMEDY)
    reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return ConfigError(
        f"the {what} could not be fetched: {reason}",
        where=where,
        remedy="check the name, the network and your access to it, or give a local folder",
    )


def _check_download(folder: Path, where: str) -> None:
    """Hold every file against the hash the hub named it by; a wrong one is taken out of the hub's cache."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and _hash_differs(file):
            storage.remove_file(file.resolve())
            raise DataError(
                f"{file.relative_to(folder)} arrived damaged, and was removed from the hub's cache",
                where=where,
                remedy="give the same command again to fetch it anew",
            )


def _hash_differs(file: Path) -> bool:
    """Whether a file is not what the cache names it by: its SHA-256, or git's SHA-1 for small files."""
    stated = Path(os.readlink(file)).name if file.is_symlink() else ""
    if re.fullmatch(r"[0-9a-f]{64}", stated):
        return storage.sha256_file(file) != stated
    if re.fullmatch(r"[0-9a-f]{40}", stated):
        data = file.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
        return stated not in (git.hexdigest(), hashlib.sha1(data, usedforsecurity=False).hexdigest())
    return False
