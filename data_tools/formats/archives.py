"""Zip and tar archives that may be hostile: everything is checked before the first file is handed out.

Refused are names that lead out of the folder, links and devices, encrypted and doubled members, too many or
too large ones, and archives that unpack to far more than they hold. Nothing is ever extracted by the library:
each member is read into memory, within its limit, and only its checked name is used.
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
_DIRECTORY_LIMIT = 256 << 20  # bytes of a zip's table of contents
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, struct.error)


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold. Photographs barely compress: 200 to 1 is a bomb, once it is large at all."""

    members: int = 500_000
    member_bytes: int = 512 << 20
    ratio: int = 200
    harmless_bytes: int = 100 << 20  # below that, any ratio will do


class ArchiveMember(NamedTuple):
    """A regular file in an archive."""

    name: str
    data: bytes


def is_zip(path: Path) -> bool:
    """Whether the file starts like a zip archive."""
    return _read_magic(path).startswith((b"PK\x03\x04", b"PK\x05\x06"))


def is_tar(path: Path) -> bool:
    """Whether the file is a tar archive, compressed or not."""
    try:
        with _decompressed(path) as file:
            return file.read(512)[257:262] == b"ustar"
    except (*_DAMAGE, DataError):
        return False


def read_zip(path: Path, limits: ArchiveLimits) -> Iterator[ArchiveMember]:
    """The files of a zip archive; a hostile or damaged one is a `DataError` before the first is read."""
    _check_directory(path, limits)
    with _damage_as_data_error(path), zipfile.ZipFile(path) as archive:
        names = _checked_names(path, archive.infolist(), limits)
        for info, name in names:
            with _damage_as_data_error(path, name), archive.open(info) as file:
                data = file.read(info.file_size + 1)
            if len(data) != info.file_size:
                raise _archive_error(path, f"{name!r} is not as long as the archive says")
            yield ArchiveMember(name, data)


def read_tar(path: Path, limits: ArchiveLimits) -> Iterator[ArchiveMember]:
    """The files of a tar archive (plain, gzip, bzip2 or xz), as a stream; checked in a pass of its own."""
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
    """Look at the end record alone: a table of a million entries would itself take a gigabyte to read."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 65_557))
        tail = file.read()
        place = tail.rfind(b"PK\x05\x06")
        if place < 0 or len(tail) < place + 22:
            raise _archive_error(path, "the archive is cut off: it has no table of contents")
        entries, size = struct.unpack_from("<HI", tail, place + 10)
        large = tail.rfind(b"PK\x06\x06", 0, place)  # the zip64 record, when the numbers do not fit
        if large >= 0 and len(tail) >= large + 48 and (entries == 0xFFFF or size == 0xFFFFFFFF):
            entries, size = struct.unpack_from("<QQ", tail, large + 32)
    if entries > limits.members:
        raise _too_many(path, limits, entries)
    if size > _DIRECTORY_LIMIT:
        raise _archive_error(path, f"a table of contents of {size} bytes")


def _checked_names(
    path: Path, infos: list[zipfile.ZipInfo], limits: ArchiveLimits
) -> list[tuple[zipfile.ZipInfo, str]]:
    names, found = _MemberChecks(path, limits), []
    for info in infos:
        if info.is_dir():
            continue
        name = names.add(info.orig_filename, info.file_size)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _archive_error(path, f"{name!r} is a link or a device, not a file")
        if info.flag_bits & 1:
            raise _archive_error(path, f"{name!r} is encrypted", "unpack it yourself, with its password")
        found.append((info, name))
    names.check_ratio(path.stat().st_size)
    return found


# ---- tar ---------------------------------------------------------------------------------------------------


class _TarInfo(tarfile.TarInfo):
    """A header that may not claim megabytes for a name: the library would read them all."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _TarInfo:
        info = super().frombuf(buf, encoding, errors)
        extended = tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE
        names = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
        if info.type in (*extended, *names) and not 0 <= info.size <= _HEADER_LIMIT:
            raise tarfile.HeaderError(f"an extended header of {info.size} bytes")
        return info


class _BoundedStream(io.RawIOBase):
    """An unpacked stream that stops when it has given far more than was read from the file."""

    def __init__(self, path: Path, packed: IO[bytes], unpacked: IO[bytes], limits: ArchiveLimits) -> None:
        self.path, self.packed, self.unpacked, self.limits = path, packed, unpacked, limits
        self.given = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.unpacked.read(size)
        self.given += len(data)
        allowed = self.limits.ratio * max(1, self.packed.tell())
        if self.given > max(allowed, self.limits.harmless_bytes):
            raise _bomb_error(self.path, self.limits)
        return data


def _tar_members(path: Path, limits: ArchiveLimits) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """(header, content) of every member, in the order of the stream, keeping none."""
    with _damage_as_data_error(path), open(path, "rb") as packed, _decompressed(path, packed) as unpacked:
        counted = _BoundedStream(path, packed, unpacked, limits)
        with tarfile.open(fileobj=counted, mode="r|", tarinfo=_TarInfo) as archive:
            for info in archive:
                if info.size > limits.member_bytes:
                    raise _too_large(path, info.name, info.size)
                content = archive.extractfile(info) if info.isreg() else None
                yield info, content or io.BytesIO()
                archive.members.clear()  # type: ignore[attr-defined] # the library would keep every header


def _check_tar_member(path: Path, info: tarfile.TarInfo, names: _MemberChecks, limits: ArchiveLimits) -> None:
    if info.isdir():
        names.count()
        return
    name = names.add(info.name, info.size)
    if not info.isreg() or info.issparse():
        raise _archive_error(path, f"{name!r} is a link, a device or sparse, not a plain file")


@contextlib.contextmanager
def _decompressed(path: Path, packed: IO[bytes] | None = None) -> Iterator[IO[bytes]]:
    """The file's content, without its compression."""
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
    """The members so far: how many, how large, and that none comes twice."""

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        self.path, self.limits = path, limits
        self.seen: set[str] = set()
        self.members = self.total = 0

    def count(self) -> None:
        """One more member of any kind."""
        self.members += 1
        if self.members > self.limits.members:
            raise _too_many(self.path, self.limits)

    def add(self, name: str, size: int) -> str:
        """The name as a relative POSIX path; raises for one that cannot be used."""
        spelt = _normalized_name(name)
        manifest.check_dataset_path(name, str(self.path))
        manifest.check_dataset_path(spelt, str(self.path))
        if spelt in self.seen:
            raise _archive_error(self.path, f"{spelt!r} is in the archive twice")
        if size > self.limits.member_bytes:
            raise _too_large(self.path, spelt, size)
        self.count()
        self.seen.add(spelt)
        self.total += size
        return spelt

    def check_ratio(self, packed: int) -> None:
        """Raise for a bomb."""
        if self.total > max(self.limits.harmless_bytes, self.limits.ratio * packed):
            raise _bomb_error(self.path, self.limits)


def _normalized_name(name: str) -> str:
    """Some Windows programs write backslashes; `./a` is `a`."""
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
    path: Path, message: str, remedy: str = "fetch it again, or unpack it yourself"
) -> DataError:
    return DataError(message, where=str(path), remedy=remedy)


def _too_many(path: Path, limits: ArchiveLimits, entries: int | None = None) -> DataError:
    what = f"{entries} files" if entries else "too many files"
    return _archive_error(path, f"{what}, the limit is {limits.members}", "split it into smaller archives")


def _too_large(path: Path, name: str, size: int) -> DataError:
    return _archive_error(path, f"{name!r} is {size} bytes large", "unpack it yourself if that is right")


def _bomb_error(path: Path, limits: ArchiveLimits) -> DataError:
    message = f"the archive unpacks to more than {limits.ratio} times its size"
    return _archive_error(path, message, "unpack it yourself if that is right")
