"""Quantized weights on disk, so that a base model is quantized once: by this process or any other.

The key of an entry names all that its content depends on; the content is checked by its hash, which is kept
as long as the file does not change. Entries are used as memory maps, which all processes share. They may be
deleted at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from lorakit.core import checksums, storage
from lorakit.core.errors import DataError, DiskError
from lorakit.core.file_hashes import FileHashes
from lorakit.core.progress import print_line
from lorakit.core.tensor_files import TensorLayout, write_in_parts

WEIGHTS_FILE, RECORD_FILE = "weights.safetensors", "weights.json"
_LOCK_SECONDS = 24 * 3600.0  # another process may be quantizing a large network

Tensors = Iterable[tuple[str, torch.Tensor]]


def stored_tensors(
    cache: Path,
    key: Mapping[str, Any],
    layouts: Mapping[str, TensorLayout],
    compute: Callable[[], Tensors],
) -> dict[str, torch.Tensor]:
    """Return the tensors of an entry, from `compute()` if it is missing or damaged.

    Where the folder cannot be written to, they are computed into memory, with a line that says so.
    """
    folder = cache / checksums.sha256_bytes(storage.dump_json(key).encode())
    try:
        with storage.file_lock(
            folder.with_suffix(storage.LOCK), wait_seconds=_LOCK_SECONDS, on_wait=_say_who_works
        ):
            if not _is_valid(folder):
                _write(folder, key, layouts, compute())
        return storage.read_safetensors(folder / WEIGHTS_FILE)
    except DiskError as error:
        print_line(f"the quantized weights cannot be kept on disk, and are computed at each start: {error}")
        return dict(compute())


def _say_who_works() -> None:
    print_line("another process quantizes this base model: waiting for its result")


def _write(
    folder: Path, key: Mapping[str, Any], layouts: Mapping[str, TensorLayout], tensors: Tensors
) -> None:
    """Write an entry; its record comes last."""
    storage.remove_file(folder / RECORD_FILE)
    file = write_in_parts(folder / WEIGHTS_FILE, layouts, tensors, {"format": "pt"})
    record = {"of": dict(key), "sha256": checksums.sha256_file(file)}
    storage.write_json(folder / RECORD_FILE, record)


def _is_valid(folder: Path) -> bool:
    """Return True for an entry that is as it was written; a damaged one is reported."""
    if not (folder / RECORD_FILE).is_file():
        return False
    try:
        recorded = storage.read_json(folder / RECORD_FILE)["sha256"]
        hashes = FileHashes.load(folder)
        hashes.start_reading()
        actual = hashes.sha256(WEIGHTS_FILE, folder / WEIGHTS_FILE)
        hashes.save([WEIGHTS_FILE])
    except (OSError, DataError, KeyError, TypeError):
        recorded, actual = "", None
    if recorded != actual:
        print_line(f"the quantized weights in {folder} are damaged: they are computed again")
    return recorded == actual
