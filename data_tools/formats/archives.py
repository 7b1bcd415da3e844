"""Read zip and tar archives that may be hostile: everything is checked before the first file is returned.

Refused are names that lead out of the folder, links and devices, encrypted members, names that occur twice,
too many or too large members, and archives that unpack to far more than their size. Members are not extracted
to disk: each is read into memory, within its limit, and only its checked name is used.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from lorakit import manifest
from lorakit.core.errors import DataError

_HEADER_LIMIT = 1 << 20  # bytes of one extended tar header (a long name)
_DIRECTORY_LIMIT = 256 << 20  # bytes of a zip's central directory
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, struct.error)


@dataclass(frozen=True)
class ArchiveLimits:
    """Limits of an archive. Photographs hardly compress, so a large archive with 200 to 1 is a bomb."""

    max_members: int = 500_000
    max_member_bytes: int = 512 << 20
    max_ratio: int = 200
    ratio_free_bytes: int = 100 << 20  # up to this size, any ratio is allowed


class ArchiveMember(NamedTuple):
    """A regular file in an archive."""

    name: str
    data: bytes


def is_zip(path: Path) -> bool:
    """Return True if the file starts like a zip archive."""
    return _read_magic(path).startswith((b"PK\x03\x04", b"PK\x05\x06"))


def is_tar(path: Path) -> bool:
    """Return True if the file is a tar archive, compressed or not."""
    try:
        with _decompressed(path) as file:
            return file.read(512)[257:262] == b"ustar"
    except (*_DAMAGE, DataError):
        return False


def read_zip(path: Path, limits: ArchiveLimits) -> Iterator[ArchiveMember]:
    """Yield the files of a zip archive; a hostile or damaged one is a `DataError` before the first file."""
    _check_directory(path, limits)
    with _damage_as_data_error(path), zipfile.ZipFile(path) as archive:
        names = _checked_names(path, archive.infolist(), limits)
        for info, name in names:
            with _damage_as_data_error(path, name), archive.open(info) as file:
                data = file.read(info.file_size + 1)
            if len(data) != info.file_size:
                raise _archive_error(path, f"{name!r} does not have the size that the archive states")
            yield ArchiveMember(name, data)


def read_tar(path: Path, limits: ArchiveLimits) -> Iterator[ArchiveMember]:
    """Yield the files of a tar archive (plain, gzip, bzip2 or xz) as a stream, after a pass of checks."""
    names = _MemberChecks(path, limits)
    for info, _ in _tar_members(path, limits):
        _check_tar_member(path, info, names, limits)
    for info, file in _tar_members(path, limits):
        if info.isreg():
            with _damage_as_data_error(path, info.name):
                data = file.read()
            yield ArchiveMember(_normalized_name(info.name), data)


# ---- zip ---------------------------------------------------------------------------------------------------


def _check_directory(path: Path, limits: ArchiveLimits) -> None:
    """Check the end record only: reading a directory of a million entries would take a gigabyte."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 65_557))
        tail = file.read()
        place = tail.rfind(b"PK\x05\x06")
        if place < 0 or len(tail) < place + 22:
            raise _archive_error(path, "the archive is cut off: it has no central directory")
        entries, size = struct.unpack_from("<HI", tail, place + 10)
        large = tail.rfind(b"PK\x06\x06", 0, place)  # the zip64 record, when the numbers do not fit
        if large >= 0 and len(tail) >= large + 48 and (entries == 0xFFFF or size == 0xFFFFFFFF):
            entries, size = struct.unpack_from("<QQ", tail, large + 32)
    if entries > limits.max_members:
        raise _too_many(path, limits, entries)
    if size > _DIRECTORY_LIMIT:
        raise _archive_error(path, f"its central directory has {size} bytes")


def _checked_names(
    path: Path, infos: list[zipfile.ZipInfo], limits: ArchiveLimits
) -> list[tuple[zipfile.ZipInfo, str]]:
    names, checked = _MemberChecks(path, limits), []
    for info in infos:
        if info.is_dir():
            continue
        name = names.check_member(info.orig_filename, info.file_size)
        file_type = stat.S_IFMT(info.external_attr >> 16)
        if file_type not in (0, stat.S_IFREG):
            raise _archive_error(path, f"{name!r} is a link or a device, not a file")
        if info.flag_bits & 1:
            raise _archive_error(path, f"{name!r} is encrypted", "unpack it yourself, with its password")
        checked.append((info, name))
    names.check_ratio(path.stat().st_size)
    return checked


# ---- tar ---------------------------------------------------------------------------------------------------


class _TarInfo(tarfile.TarInfo):
    """A header that refuses names of megabytes, which tarfile would read whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _TarInfo:
        info = super().frombuf(buf, encoding, errors)
        extended = tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE
        names = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
        if info.type in (*extended, *names) and not 0 <= info.size <= _HEADER_LIMIT:
            raise tarfile.HeaderError(f"an extended header of {info.size} bytes")
        return info


class _BoundedStream(io.RawIOBase):
    """A decompressed stream that raises when it has returned far more than was read from the file."""

    def __init__(self, path: Path, packed: IO[bytes], unpacked: IO[bytes], limits: ArchiveLimits) -> None:
        self.path, self.packed, self.unpacked, self.limits = path, packed, unpacked, limits
        self.bytes_read = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.unpacked.read(size)
        self.bytes_read += len(data)
        allowed = self.limits.max_ratio * max(1, self.packed.tell())
        if self.bytes_read > max(allowed, self.limits.ratio_free_bytes):
            raise _bomb_error(self.path, self.limits)
        return data


def _tar_members(path: Path, limits: ArchiveLimits) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Yield (header, content) of each member in the order of the stream."""
    with _damage_as_data_error(path), open(path, "rb") as packed, _decompressed(path, packed) as unpacked:
        counted = _BoundedStream(path, packed, unpacked, limits)
        with tarfile.open(fileobj=counted, mode="r|", tarinfo=_TarInfo) as archive:
            for info in archive:
                if info.size > limits.max_member_bytes:
                    raise _too_large(path, info.name, info.size)
                content = archive.extractfile(info) if info.isreg() else None
                yield info, content or io.BytesIO()
                archive.members.clear()  # type: ignore[attr-defined] # or tarfile would keep all headers


def _check_tar_member(path: Path, info: tarfile.TarInfo, names: _MemberChecks, limits: ArchiveLimits) -> None:
    if info.isdir():
        names.count()
        return
    name = names.check_member(info.name, info.size)
    if not info.isreg() or info.issparse():
        raise _archive_error(path, f"{name!r} is a link, a device or sparse, not a plain file")


@contextlib.contextmanager
def _decompressed(path: Path, packed: IO[bytes] | None = None) -> Iterator[IO[bytes]]:
    """Open the file's content, decompressed."""
    with contextlib.ExitStack() as stack:
        raw = packed or stack.enter_context(open(path, "rb"))
        head = raw.read(6)
        raw.seek(0)
        openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
        for magic, opener in openers.items():
            if head.startswith(magic):
                yield stack.enter_context(opener(raw, "rb"))
                return
        yield raw


# ---- both --------------------------------------------------------------------------------------------------


class _MemberChecks:
    """Checks of all members together: their number and sizes, and that no name occurs twice."""

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        self.path, self.limits = path, limits
        self.seen: set[str] = set()
        self.members = self.total = 0

    def count(self) -> None:
        """Count one more member of any type."""
        self.members += 1
        if self.members > self.limits.max_members:
            raise _too_many(self.path, self.limits)

    def check_member(self, name: str, size: int) -> str:
        """Return the name as a relative POSIX path; raise `DataError` for one that cannot be used."""
        normalized = _normalized_name(name)
        manifest.check_dataset_path(name, str(self.path))
        manifest.check_dataset_path(normalized, str(self.path))
        if normalized in self.seen:
            raise _archive_error(self.path, f"{normalized!r} is in the archive twice")
        if size > self.limits.max_member_bytes:
            raise _too_large(self.path, normalized, size)
        self.count()
        self.seen.add(normalized)
        self.total += size
        return normalized

    def check_ratio(self, packed: int) -> None:
        """Raise `DataError` if the archive unpacks to far more than its size (a zip bomb)."""
        if self.total > max(self.limits.ratio_free_bytes, self.limits.max_ratio * packed):
            raise _bomb_error(self.path, self.limits)


def _normalized_name(name: str) -> str:
    """Return the name with slashes (some Windows programs write backslashes) and without `./`."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _read_magic(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(8)


@contextlib.contextmanager
def _damage_as_data_error(path: Path, name: str = "") -> Iterator[None]:
    try:
        yield
    except (*_DAMAGE, NotImplementedError, RuntimeError) as error:
        what = f"{name!r} cannot be read" if name else "the archive is damaged"
        raise _archive_error(path, f"{what}: {error}") from error


def _archive_error(
    path: Path, message: str, remedy: str = "download it again, or unpack it yourself"
) -> DataError:
    return DataError(message, where=str(path), remedy=remedy)


def _too_many(path: Path, limits: ArchiveLimits, entries: int | None = None) -> DataError:
    what = f"{entries} files" if entries else "too many files"
    return _archive_error(
        path, f"{what}; the limit is {limits.max_members}", "split it into smaller archives"
    )


def _too_large(path: Path, name: str, size: int) -> DataError:
    return _archive_error(path, f"{name!r} is {size} bytes large", "unpack it yourself if you trust it")


def _bomb_error(path: Path, limits: ArchiveLimits) -> DataError:
    message = f"the archive unpacks to more than {limits.max_ratio} times its size"
    return _archive_error(path, message, "unpack it yourself if you trust it")
