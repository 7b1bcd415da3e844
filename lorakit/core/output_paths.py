"""Checks of output paths before any work: a portable name, write permission and free space."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from lorakit.core import platform
from lorakit.core.errors import ConfigError, DiskError

MIN_FREE_BYTES = 64 << 20  # enough for the checkpoints and exports of a small run
NAME_LIMIT, PATH_LIMIT = 255, 4000  # bytes of UTF-8
_INNER_LENGTH = 80  # characters of the longest path that is written below a run's folder
_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def check_output_path(path: str | os.PathLike[str], key: str) -> None:
    """Refuse a path that cannot be created here or on another operating system; `key` names it in errors.

    Only the parts of the path that do not exist yet are checked. Raises ConfigError for an invalid name and
    DiskError for a folder without write permission or free space.
    """
    whole, where = Path(os.path.abspath(path)), f"{key}: {path}"
    _check_length(whole, where)
    place = next(parent for parent in (whole, *whole.parents) if os.path.lexists(parent))
    if not place.exists() or (not place.is_dir() and place != whole):
        kind = "a file" if place.exists() else "a broken link"
        raise ConfigError(f"{place} is {kind}, not a folder", where=where, remedy="choose another folder")
    for name in whole.relative_to(place).parts:
        if _FORBIDDEN.search(name) or _RESERVED.fullmatch(name) or name != name.strip(" ").rstrip("."):
            raise ConfigError(
                f"{name!r} is not a valid file name on every operating system",
                where=where,
                remedy='avoid < > : " | ? * \\, spaces and dots at the end, and names such as con or nul',
            )
    _check_writable_and_free(place if place.is_dir() else place.parent, where)


def _check_length(whole: Path, where: str) -> None:
    try:
        names = [len(name.encode("utf-8")) for name in whole.parts]
    except UnicodeEncodeError as error:
        raise ConfigError("the path is not valid Unicode", where=repr(where)) from error
    if max(names) > NAME_LIMIT or sum(names) + len(names) > PATH_LIMIT:
        remedy = f"use names of at most {NAME_LIMIT} bytes and paths of at most {PATH_LIMIT}"
        raise ConfigError("the path is too long", where=f"{where[:100]}...", remedy=remedy)
    limit = platform.max_path_length() - _INNER_LENGTH
    if len(str(whole)) > limit:
        remedy = (
            f"use a path of at most {limit} characters, or turn on long paths (LongPathsEnabled) in Windows"
        )
        raise ConfigError("the path is too long for Windows", where=f"{where[:100]}...", remedy=remedy)


def _check_writable_and_free(folder: Path, where: str) -> None:
    if not platform.is_writable_folder(folder):
        remedy = "choose a folder with write permission"
        raise DiskError(f"cannot write to {folder}", where=where, remedy=remedy)
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        remedy = "free space, or choose a folder on another disk"
        raise DiskError(f"only {free >> 20} MiB are free on the disk of {folder}", where=where, remedy=remedy)
