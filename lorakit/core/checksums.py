"""Hashes of files, and the list of sizes and hashes beside them (`files.json`) that says what was written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lorakit.core import input_files, strict_json
from lorakit.core.errors import DataError

CHECKSUMS_FILE = "files.json"


def sha256_bytes(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal SHA-256 of a file, read in chunks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_sha1(path: str | os.PathLike[str]) -> str:
    """Return the SHA-1 by which git, and a model hub for small files, names the content of a file."""
    digest = hashlib.sha1(b"blob %d\0" % os.stat(path).st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def find_folder_damage(folder: str | os.PathLike[str], names: Iterable[str] = ()) -> str | None:
    """Return the damage of a committed folder as text, or None if every file has its recorded size and hash.

    With `names`, only these files are checked; files that are not in the list are ignored.
    """
    root = Path(folder)
    try:
        manifest = _read_list(root)
        if absent := [name for name in names if name not in manifest]:
            return f"{CHECKSUMS_FILE} does not list {', '.join(absent)}"
        for name in names or manifest:
            file, entry = root / name, manifest[name]
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["size"] or sha256_file(file) != entry["sha256"]:
                return f"{name} is damaged"
    except (OSError, DataError, KeyError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS_FILE}: {error}"
    return None


def is_changed(path: str | os.PathLike[str]) -> bool:
    """Return True if the list of hashes in a file's folder has another hash for it."""
    file = Path(path)
    if not file.with_name(CHECKSUMS_FILE).is_file():
        return False
    try:
        recorded = _read_list(file.parent)[file.name]["sha256"]
    except (DataError, KeyError, TypeError):  # the list of another program, or a damaged one
        return False
    return sha256_file(file) != recorded


def _read_list(folder: Path) -> Any:
    data = input_files.read_regular(folder / CHECKSUMS_FILE, strict_json.MAX_BYTES)
    return strict_json.parse_json(data, str(folder / CHECKSUMS_FILE))
