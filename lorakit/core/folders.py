"""Listing of folders that may be nested deeper than Python's recursion goes; paths between folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lorakit.core.errors import DataError

MAX_DEPTH = 64  # folders inside each other


def walk_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield everything below a folder that is not a folder itself, sorted by name in each; links stay links.

    Raises DataError for folders nested deeper than `MAX_DEPTH`, and OSError for one that cannot be listed.
    """
    pending = [(Path(folder), 0)]
    while pending:
        current, depth = pending.pop()
        if depth > MAX_DEPTH:
            remedy = "move the files into fewer folders"
            message = f"more than {MAX_DEPTH} folders inside each other"
            raise DataError(message, where=str(folder), remedy=remedy)
        folders = []
        for entry in sorted(os.scandir(current), key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                folders.append((current / entry.name, depth + 1))
            else:
                yield current / entry.name
        pending += reversed(folders)


def relative_path(path: str | os.PathLike[str], start: str | os.PathLike[str]) -> str:
    """Return the path from one folder to another with `/`; the absolute path if they are on two drives."""
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:  # Windows: two drives
        return Path(os.path.abspath(path)).as_posix()
