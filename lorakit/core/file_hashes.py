"""Hashes of a folder's files, kept so that files which have not changed need not be read again.

A hash counts while size, time of modification, time of change and number (inode, file id) of its file are the
same. The time of change is set by the file system: a program that restores the time of modification is
noticed, and so is a copy of the folder. FAT and some network drives do not have it; there such a change of
equal size stays unnoticed until every file is read on request.

Clocks of file systems are coarse: a file may change twice within one tick, and only the first state was
hashed. So a hash is kept only if the file was older, when it was read, than any tick is long, by the clock of
its own file system. The kept hashes are a cache: the file may be deleted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from lorakit.core import checksums, input_files, platform, storage
from lorakit.core.errors import DataError, DiskError
from lorakit.core.platform import FileStatus

HASHES_FILE = ".lorakit-hashes"
MAX_TICK_NS = 5_000_000_000  # FAT keeps even seconds, rounded up or down, of a file and of the clock's file
MAX_CLOCK_ERROR_NS = 86_400_000_000_000  # of a file on another file system, whose clock is not known
_HEADER = "lorakit-hashes 1"
_ENTRY = re.compile(r"([0-9a-f]{64}) (\d+) (-?\d+) (-?\d+) (\d+) (.+)", re.DOTALL)
_MAX_BYTES = 512 << 20
_Entry = tuple[str, int, int, int, int]  # hash, size, modified, changed, number


class FileHashes:
    """The kept hashes of the files of a dataset, by their names in it."""

    def __init__(self, folder: Path, entries: Mapping[str, _Entry] | None = None) -> None:
        self.folder = folder
        self._entries = dict(entries or {})
        self._count, self._is_changed = len(self._entries), False
        self._clock: tuple[int, int] | None = None  # time and device of a file that was just written

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> FileHashes:
        """Read the kept hashes; a missing or damaged file holds none."""
        root = Path(folder)
        try:
            data = input_files.read_regular(root / HASHES_FILE, _MAX_BYTES)
            return cls(root, _parse(data.decode("utf-8")))
        except (OSError, DataError, ValueError):
            return cls(root)

    def known(self, name: str, status: FileStatus | None) -> str | None:
        """Return the kept hash of a file with this status; None if the file has to be read."""
        entry = self._entries.get(name)
        return entry[0] if entry is not None and status is not None and entry[1:] == status[:4] else None

    def sha256(self, name: str, path: str | os.PathLike[str]) -> str:
        """Return the hash of a file, and read it only if it may have changed. Raises OSError."""
        status = platform.file_status(path)
        digest = self.known(name, status)
        if digest is None:
            digest = checksums.sha256_file(path)
            self.add(name, status, digest)
        return digest

    def start_reading(self) -> None:
        """Note the time; to be called before the first file is read whose hash is going to be kept."""
        try:
            status = file_system_clock(self.folder)
        except (OSError, DiskError):
            return  # a folder that cannot be written to keeps no hashes either
        self._clock = status.modified, status.device

    def add(self, name: str, status: FileStatus | None, sha256: str) -> None:
        """Keep the hash of a file with this status before it was read, if no change can hide in a tick."""
        if self._clock is None or self.known(name, status) == sha256:
            return
        now, device = self._clock
        self._is_changed |= self._entries.pop(name, None) is not None
        if status is not None and sha256:
            margin = MAX_TICK_NS if status.device == device else MAX_CLOCK_ERROR_NS
            if max(status.modified, status.changed) < now - margin:
                self._entries[name] = (sha256, *status[:4])
                self._is_changed = True

    def save(self, names: Iterable[str]) -> None:
        """Write the hashes of these files, which are those of the dataset; the others are gone."""
        entries = {name: entry for name in names if (entry := self._entries.get(name)) is not None}
        if not self._is_changed and len(entries) == self._count:
            return
        if not entries:
            storage.remove_file(self.folder / HASHES_FILE)
            return
        with storage.open_atomic(self.folder / HASHES_FILE) as file:
            file.write(f"{_HEADER}\0\n".encode())
            for name, entry in sorted(entries.items()):
                file.write(f"{' '.join(map(str, entry))} {name}\0\n".encode())


def file_system_clock(folder: Path) -> FileStatus:
    """Return the status of a file written now: the time of the folder's file system, maybe of a server."""
    probe = storage.partial_path(folder)
    try:
        storage.write_bytes(probe, b"")
        status = platform.file_status(probe)
    finally:
        storage.remove_file(probe)
    assert status is not None
    return status


def _parse(text: str) -> dict[str, _Entry]:
    """Parse the kept hashes. Raises ValueError for anything but what `save` writes."""
    header, *lines, end = text.split("\0\n")
    if header != _HEADER or end:
        raise ValueError("not a file of hashes")
    entries: dict[str, _Entry] = {}
    for line in lines:
        match = _ENTRY.fullmatch(line)
        if match is None:
            raise ValueError("not an entry of a hash")
        digest, size, modified, changed, number, name = match.groups()
        entries[name] = digest, int(size), int(modified), int(changed), int(number)
    return entries
