"""Tensors on disk that are computed once, addressed by content, in memory-mapped shards.

The key of an entry is the hash of everything that decides its value (content hash, crop, bucket and VAE;
caption and text encoders), so an edited image or another model never gets a stale entry. Entries are written
in groups; the small shards of one group are joined at the end, and shards are limited in size. Several
processes may write at once, and a kill loses only what was not written yet.

The hashes of a shard's entries are checked when it is opened for the first time after it changed, by its
size and times. A damaged entry counts as missing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from lorakit.core import checksums, platform, storage
from lorakit.core.errors import DataError, DiskError, NumericError, first_line
from lorakit.core.file_hashes import HASHES_FILE, FileHashes
from lorakit.core.progress import print_line
from lorakit.data import tensor_shards
from lorakit.data.tensor_shards import Entry, Shard, Tensors
from lorakit.models import base_model

KINDS = ("latents", "text", "conditioning", "masks")
SHARD_BYTES = 512 << 20  # bytes; a shard is not joined with others beyond this size
GROUP_BYTES = 64 << 20  # bytes that wait in memory before they are written
GROUP_SECONDS = 10.0  # seconds of work that a kill can lose
_LOCK_SECONDS = 120.0


def cache_key(**parts: object) -> str:
    """Return the key of a value: SHA-256 of everything that decides it."""
    return checksums.sha256_bytes(storage.dump_json(parts).encode())


def check_everything_again(folder: Path | None = None) -> None:
    """Forget which shards are intact, so that each is read and checked when it is opened next."""
    for kind in KINDS:
        storage.remove_file((folder or base_model.cache_folder()) / kind / HASHES_FILE)


class TensorCache:
    """Entries of one kind ("latents", "text", ...) in a folder that runs share."""

    def __init__(self, kind: str, folder: Path | None = None) -> None:
        self.kind, self.folder = kind, (folder or base_model.cache_folder()) / kind
        self._shards: dict[str, Shard] = {}
        self._damaged: dict[str, set[int] | None] = {}  # rows of the damaged entries of a shard, None for all
        self._places: dict[str, tuple[Shard, int]] = {}
        self._lock = threading.RLock()
        self._pending: dict[str, tuple[str, Tensors]] = {}  # group and tensors by key
        self._in_flight: dict[str, tuple[str, Tensors]] = {}
        self._pending_bytes, self._flushed_at = 0, 0.0
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    # ---- reading ------------------------------------------------------------------------------------------

    def missing(self, keys: Iterable[str]) -> set[str]:
        """Return the keys that have no intact entry."""
        self._open_new_shards()
        return {key for key in keys if self._find(key) is None}

    def get(self, key: str) -> Tensors | None:
        """Return the entry, or None if it is missing or damaged; its tensors are views of a mapped file."""
        entry = self._find(key)
        if entry is None:
            self._open_new_shards()
            entry = self._find(key)
        return entry

    def require(self, key: str) -> Tensors:
        """Return an entry that was stored before; DataError if it is missing or damaged now."""
        tensors = self.get(key)
        if tensors is None:
            raise DataError(
                "a cache entry was deleted or damaged during the run",
                where=str(self.folder),
                remedy="run the same command again: the entry is computed again and the run resumes",
            )
        return tensors

    def files(self) -> list[Path]:
        """Return the shards, by name."""
        return sorted(path for path in self.folder.glob(f"*{tensor_shards.SUFFIX}") if path.is_file())

    def _find(self, key: str) -> Tensors | None:
        for waiting in (self._pending, self._in_flight):
            if (item := waiting.get(key)) is not None:
                return item[1]
        place = self._places.get(key)
        return place[0].tensors(place[1]) if place else None

    def _open_new_shards(self) -> None:
        """Open the shards that other processes have written; a damaged one is named once."""
        with self._lock:
            paths = {path.name: path for path in self.files()}
            if new := [path for name, path in paths.items() if name not in self._shards | self._damaged]:
                hashes = FileHashes.load(self.folder)
                with contextlib.suppress(OSError, DiskError):
                    if any(hashes.known(path.name, _status(path)) is None for path in new):
                        hashes.start_reading()
                for path in new:
                    with contextlib.suppress(FileNotFoundError):  # another process has joined it with others
                        self._open(path, hashes)
                with contextlib.suppress(OSError, DiskError):
                    hashes.save(paths.keys() - self._damaged.keys())

    def _open(self, path: Path, hashes: FileHashes) -> None:
        status = _status(path)
        try:
            shard = Shard(path)
            intact = hashes.known(path.name, status) is not None
            damaged = [] if intact else shard.damaged_rows()
        except FileNotFoundError:
            raise
        except (OSError, DataError, RuntimeError, ValueError) as error:
            self._damaged[path.name] = None
            print_line(f"warning: {path} is damaged ({first_line(error)}): its entries are computed again")
            return
        if damaged:
            self._damaged[path.name] = set(damaged)
            text = f"{len(damaged)} of {len(shard.keys)} entries of {path} are damaged"
            print_line(f"warning: {text}: they are computed again")
        elif not intact:
            hashes.add(path.name, status, path.stem.rpartition("-")[2].rjust(64, "0"))
        self._add_shard(shard, set(damaged))

    def _add_shard(self, shard: Shard, damaged: set[int] | None = None) -> None:
        self._shards[shard.path.name] = shard
        for row, key in enumerate(shard.keys):
            if row not in (damaged or ()):
                self._places.setdefault(key, (shard, row))

    # ---- writing ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Write entries in groups within the block; small shards are joined at its end."""
        self._flushed_at = time.monotonic()
        self._writer = ThreadPoolExecutor(1, "cache")
        try:
            yield
        finally:
            writer, self._writer = self._writer, None
            try:
                self.flush()
            finally:
                writer.shutdown()
        self.join_shards()

    def put(self, key: str, tensors: Tensors, source: str, group: str = "") -> None:
        """Store an entry; `source` names the file or caption in error messages, `group` the kind of shard.

        Outside a `writing` block the entry is written at once. Raises NumericError for values that are not
        finite, which are never stored, and DiskError if the folder cannot be written.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise NumericError(
                    f"the model returned {name} with NaN or infinity",
                    where=source,
                    remedy="look at this input, or download the model again: one of them may be damaged",
                )
            if tensor.untyped_storage().nbytes() > tensor.nbytes:
                tensors[name] = tensor.clone()  # a row of a batch would keep the whole batch in memory
        self._pending[key] = tensor_shards.safe_group(group or self.kind), tensors
        self._pending_bytes += sum(tensor.nbytes for tensor in tensors.values())
        is_due = time.monotonic() - self._flushed_at > GROUP_SECONDS
        if self._writer is None:
            self.flush()
        elif self._pending_bytes >= GROUP_BYTES or is_due:
            self._wait()
            self._take_pending()
            self._writing = self._writer.submit(self._write_in_flight)

    def flush(self) -> None:
        """Write the entries that wait in memory. Raises DiskError with a remedy if that is not possible."""
        self._wait()
        self._take_pending()
        self._write_in_flight()

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _take_pending(self) -> None:
        self._in_flight = {**self._in_flight, **self._pending}
        self._pending, self._pending_bytes, self._flushed_at = {}, 0, time.monotonic()

    def _write_in_flight(self) -> None:
        groups: dict[str, list[Entry]] = {}
        for key, (group, tensors) in sorted(self._in_flight.items()):
            entry = tensor_shards.make_entry(key, tensors)
            groups.setdefault(f"{group} {tensor_shards.signature(entry.parts)}", []).append(entry)
        with self._cache_errors():
            for name, entries in groups.items():
                self._write(name.partition(" ")[0], entries)
        self._in_flight = {}

    def _write(self, group: str, entries: Sequence[Entry]) -> Path:
        path = self.folder / tensor_shards.shard_name(group, entries)
        tensor_shards.write_shard(path, entries)
        with self._lock:
            self._damaged.pop(path.name, None)
            try:
                shard = Shard(path)
            except FileNotFoundError:  # another process has joined it already: `get` finds the new one
                return path
            self._shards[path.name] = shard
            self._places |= {key: (shard, row) for row, key in enumerate(shard.keys)}
        return path

    def join_shards(self) -> None:
        """Join small shards of a group, and leave damaged entries out; waits while another process does."""
        if not self.folder.is_dir():
            return
        with (
            self._cache_errors(),
            storage.file_lock(self.folder / storage.LOCK, wait_seconds=_LOCK_SECONDS) as is_mine,
        ):
            if is_mine:
                self._open_new_shards()
                self._join_groups()
                storage.remove_partial_files(self.folder, owned="nobody")

    def _join_groups(self) -> None:
        names = {path.name for path in self.files()}
        groups: dict[str, list[Shard]] = {}
        for shard in self._shards.values():
            is_small = shard.size < SHARD_BYTES // 2 or shard.path.name in self._damaged
            if shard.path.name in names and is_small:
                groups.setdefault(tensor_shards.group_of(shard.path), []).append(shard)
        for group, shards in groups.items():
            if len(shards) > 1 or shards[0].path.name in self._damaged:
                self._join(group.rpartition("-")[0], shards)
        for name in [name for name, rows in self._damaged.items() if rows is None]:
            self._remove(self.folder / name)

    def _join(self, group: str, shards: Sequence[Shard]) -> None:
        """Write the entries of shards as few new ones, then remove them."""
        entries: dict[str, Entry] = {}
        for shard in shards:
            damaged = self._damaged.get(shard.path.name) or set()
            rows = ((row, key) for row, key in enumerate(shard.keys) if row not in damaged)
            entries |= {key: shard.entry(row) for row, key in rows}
        kept = {self._write(group, part) for part in _parts_of_size(entries)}
        for shard in shards:
            if shard.path not in kept:
                self._remove(shard.path)
                self._shards.pop(shard.path.name, None)

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(OSError, DiskError):  # Windows keeps a file that another process has mapped
            storage.remove_file(path)
            self._damaged.pop(path.name, None)

    @contextlib.contextmanager
    def _cache_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, DiskError) as error:
            raise DiskError(
                f"the cache cannot be written: {first_line(error)}",
                where=str(self.folder),
                remedy="free space there, or set LORAKIT_CACHE to a folder on another disk, and try again",
            ) from error


def _parts_of_size(entries: dict[str, Entry]) -> Iterator[list[Entry]]:
    """Yield entries, sorted by key, in parts of at most `SHARD_BYTES`."""
    part: list[Entry] = []
    size = 0
    for _, entry in sorted(entries.items()):
        own = sum(torch.Size(p.shape).numel() * p.dtype.itemsize for p in entry.parts)
        if part and size + own > SHARD_BYTES:
            yield part
            part, size = [], 0
        part.append(entry)
        size += own
    if part:
        yield part


def _status(path: Path) -> platform.FileStatus | None:
    return platform.file_status(path)
