"""A folder of images that nothing can be written to, also if the tests run as root."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_NOBODY = 65534


@contextlib.contextmanager
def ordinary_user() -> Iterator[Path]:
    """Yield a new folder of a user without the rights of root, who this process is within the block."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    is_root = hasattr(os, "setresuid") and os.getuid() == 0
    if is_root:
        os.setresuid(_NOBODY, _NOBODY, 0)  # the saved one gives the rights back
    try:
        yield folder
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
        shutil.rmtree(folder, onerror=_remove_anyway)


def make_read_only(folder: Path, *, required: bool = True) -> Path:
    """Take the permission to write from a folder, its subfolders and files.

    If it is `required`, the test is skipped where this user can still write.
    """
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if required and os.access(folder, os.W_OK):
        pytest.skip(f"folders cannot be made read-only on {sys.platform}")
    return folder


def _remove_anyway(function: object, path: str, error: object) -> None:
    for parent in (Path(path).parent, Path(path)):
        parent.chmod(0o777)
    os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
