"""Read zip archives that may be hostile: everything is checked before the first file is returned.

Refused are names that lead out of the folder, links and devices, encrypted members, names that occur twice,
too many or too large members, and archives that unpack to far more than their size. Members are not extracted
to disk: each is read into memory, within its limit, and only its checked name is used. `tar_archives` does
the same for tars.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from data_tools.formats.archive_checks import (
    ArchiveLimits,
    ArchiveMember,
    MemberChecks,
    archive_error,
    damage_as_data_error,
    too_many_error,
)

_DIRECTORY_LIMIT = 96 << 20  # bytes of a zip's central directory; in memory it takes six times that
_DIRECTORY_ENTRY = b"PK\x01\x02"
_UTF8_FLAG, _UNICODE_PATH = 0x800, 0x7075
_END_RECORD_BYTES = 65_557 + 76  # the end record with the longest comment, and the zip64 record before it


def is_zip(path: Path) -> bool:
    """Return True if the file starts like a zip archive."""
    with open(path, "rb") as file:
        return file.read(8).startswith((b"PK\x03\x04", b"PK\x05\x06"))


def read_zip(path: Path, limits: ArchiveLimits) -> Iterator[ArchiveMember]:
    """Yield the files of a zip archive; a hostile or damaged one is a `DataError` before the first file."""
    _check_directory(path, limits)
    with damage_as_data_error(path), zipfile.ZipFile(path) as archive:
        names = _checked_names(path, archive.infolist(), limits)
        for info, name in names:
            with damage_as_data_error(path, name), archive.open(info) as file:
                data = file.read(info.file_size + 1)
            if len(data) != info.file_size:
                raise archive_error(path, f"{name!r} does not have the size that the archive states")
            yield ArchiveMember(name, data)


def _check_directory(path: Path, limits: ArchiveLimits) -> None:
    """Check the central directory before zipfile reads it: a million entries would take a gigabyte.

    The number of entries that the end record states is not believed; they are counted.
    """
    with open(path, "rb") as file:
        file_size = file.seek(0, io.SEEK_END)
        tail_start = file.seek(max(0, file_size - _END_RECORD_BYTES))
        tail = file.read()
        place = tail.rfind(b"PK\x05\x06")
        if place < 0 or len(tail) < place + 22:
            raise archive_error(path, "the archive is cut off: it has no central directory")
        directories = [(tail_start + place, int.from_bytes(tail[place + 12 : place + 16], "little"))]
        large = tail.rfind(b"PK\x06\x06", 0, place)  # the zip64 record, which zipfile prefers
        if large >= 0 and len(tail) >= large + 48:
            size = int.from_bytes(tail[large + 40 : large + 48], "little")
            is_placeholder = directories[0][1] == 0xFFFFFFFF
            directories = [*([] if is_placeholder else directories), (tail_start + large, size)]
        for end, size in directories:
            if min(size, end) > _DIRECTORY_LIMIT:
                raise archive_error(path, f"its central directory has {size} bytes")
            start = file.seek(max(0, end - size))
            entries = file.read(end - start).count(_DIRECTORY_ENTRY)
            if entries > limits.max_members:
                raise too_many_error(path, limits, entries)


def _checked_names(
    path: Path, infos: list[zipfile.ZipInfo], limits: ArchiveLimits
) -> list[tuple[zipfile.ZipInfo, str]]:
    names, checked = MemberChecks(path, limits), []
    for info in infos:
        if info.is_dir():
            continue
        name = names.check_member(_decoded_name(info), info.file_size)
        file_type = stat.S_IFMT(info.external_attr >> 16)
        if file_type not in (0, stat.S_IFREG):
            raise archive_error(path, f"{name!r} is a link or a device, not a file")
        if info.flag_bits & 1:
            raise archive_error(path, f"{name!r} is encrypted", "unpack it yourself, with its password")
        checked.append((info, name))
    names.check_ratio(path.stat().st_size)
    return checked


def _decoded_name(info: zipfile.ZipInfo) -> str:
    """Return the name of a member: in UTF-8, which many programs write without saying so, else in cp437.

    Info-ZIP's extra field 0x7075 has the name in UTF-8 with a checksum of the other one.
    """
    if info.flag_bits & _UTF8_FLAG or info.orig_filename.isascii():
        return info.orig_filename
    raw = info.orig_filename.encode("cp437")
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == _UNICODE_PATH and size > 5 and extra[5:9] == struct.pack("<I", zlib.crc32(raw)):
            raw = extra[9 : 4 + size]
            break
        extra = extra[4 + size :]
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return info.orig_filename
