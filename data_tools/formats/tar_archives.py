"""Read tar archives (plain, gzip, bzip2 or xz) that may be hostile, as a stream; see `archive_checks`."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data_tools.formats.archive_checks import (
    DAMAGE_ERRORS,
    ArchiveLimits,
    ArchiveMember,
    MemberChecks,
    archive_error,
    bomb_error,
    damage_as_data_error,
    normalized_name,
    too_large_error,
)
from lorakit.core.errors import DataError

_XZ_MEMORY, _CHUNK_BYTES = 192 << 20, 64 << 10
_MAX_COMMON_ATTRIBUTES = 1000  # attributes of all files, which tarfile copies for each file


def is_tar(path: Path) -> bool:
    """Return True if the file is a tar archive, compressed or not."""
    try:
        with _decompressed(path) as file:
            return file.read(512)[257:262] == b"ustar"
    except (*DAMAGE_ERRORS, DataError):
        return False


def read_tar(path: Path, limits: ArchiveLimits) -> Iterator[ArchiveMember]:
    """Yield the files of a tar archive (plain, gzip, bzip2 or xz) as a stream, after a pass of checks."""
    names = MemberChecks(path, limits)
    for info, _ in _tar_members(path, limits):
        _check_tar_member(path, info, names, limits)
    for info, file in _tar_members(path, limits):
        if info.isreg():
            with damage_as_data_error(path, info.name):
                data = file.read()
            yield ArchiveMember(normalized_name(info.name), data)


_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
# Bytes of one extended header: a name, attributes of a file, attributes of all files.
_HEADER_LIMITS = dict.fromkeys(_LONG_NAMES, 64 << 10) | dict.fromkeys(_EXTENDED, 256 << 10)
_HEADER_LIMITS[tarfile.XGLTYPE] = 8 << 10
_LONG_NUMBER = re.compile(rb"\d{64}")


class _TarInfo(tarfile.TarInfo):
    """A header that refuses what tarfile would read for hours, or would silently take for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _TarInfo:
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # the end mark
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}: the archive is cut off or damaged") from error
        if info.size < 0 or info.size > _HEADER_LIMITS.get(info.type, info.size):
            raise tarfile.ReadError(f"an extended header of {info.size} bytes")
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(_SPARSE)
        return info

    def _proc_pax(self, archive: Any) -> Any:
        """Read attributes; tarfile's search in them takes the square of the length of a long number."""
        stream = archive.fileobj
        data = stream.read(self._block(self.size))  # type: ignore[attr-defined]
        if _LONG_NUMBER.search(data):
            raise tarfile.ReadError("an attribute with a number of more than 63 digits")
        if b"GNU.sparse." in data:
            raise tarfile.ReadError(_SPARSE)
        if len(archive.pax_headers) > _MAX_COMMON_ATTRIBUTES:
            raise tarfile.ReadError("too many attributes of all files")
        archive.fileobj = _Replayed(data, stream)
        try:
            return super()._proc_pax(archive)  # type: ignore[misc]
        finally:
            archive.fileobj = stream


_SPARSE = "sparse files are not accepted"


class _Replayed:
    """A stream of which some bytes were read already: returns them again first."""

    def __init__(self, data: bytes, stream: Any) -> None:
        self.data, self.stream = data, stream

    def read(self, size: int) -> bytes:
        if not self.data:
            return bytes(self.stream.read(size))
        data, self.data = self.data, b""
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


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
            raise bomb_error(self.path, self.limits)
        return data


def _tar_members(path: Path, limits: ArchiveLimits) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Yield (header, content) of each member in the order of the stream."""
    with damage_as_data_error(path), open(path, "rb") as packed, _decompressed(path, packed) as unpacked:
        counted = _BoundedStream(path, packed, unpacked, limits)
        with tarfile.open(fileobj=counted, mode="r|", tarinfo=_TarInfo) as archive:
            for info in archive:
                if info.size > limits.max_member_bytes:
                    raise too_large_error(path, info.name, info.size)
                content = archive.extractfile(info) if info.isreg() else None
                yield info, content or io.BytesIO()
                archive.members.clear()  # type: ignore[attr-defined] # or tarfile would keep all headers


def _check_tar_member(path: Path, info: tarfile.TarInfo, names: MemberChecks, limits: ArchiveLimits) -> None:
    if info.isdir():
        names.count()
        return
    name = names.check_member(info.name, info.size)
    if not info.isreg() or info.issparse():
        raise archive_error(path, f"{name!r} is a link, a device or sparse, not a plain file")


@contextlib.contextmanager
def _decompressed(path: Path, packed: IO[bytes] | None = None) -> Iterator[IO[bytes]]:
    """Open the file's content, decompressed."""
    with contextlib.ExitStack() as stack:
        raw = packed or stack.enter_context(open(path, "rb"))
        head = raw.read(6)
        raw.seek(0)
        openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": _open_xz}
        for magic, opener in openers.items():
            if head.startswith(magic):
                yield stack.enter_context(opener(raw, "rb"))
                return
        yield raw


class _XzStream(io.RawIOBase):
    """An xz file, decompressed with at most `_XZ_MEMORY`; its header may ask for 4 GB."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw, self.decoder = raw, self._new_decoder()

    @staticmethod
    def _new_decoder() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, missing = [], size
        while missing and (data := self._read_some(missing)):
            parts.append(data)
            missing -= len(data) if size >= 0 else 0
        return b"".join(parts)

    def _read_some(self, size: int) -> bytes:
        while True:
            if self.decoder.eof:  # several xz files may follow each other, with zeros between them
                rest = self.decoder.unused_data.lstrip(b"\0")
                while not rest:
                    if not (chunk := self.raw.read(_CHUNK_BYTES)):
                        return b""
                    rest = chunk.lstrip(b"\0")
                self.decoder = self._new_decoder()
                data = self.decoder.decompress(rest, size)
            else:
                chunk = self.raw.read(_CHUNK_BYTES) if self.decoder.needs_input else b""
                if self.decoder.needs_input and not chunk:
                    raise EOFError("the compressed data are cut off")
                data = self.decoder.decompress(chunk, size)
            if data:
                return data


def _open_xz(raw: IO[bytes], mode: str) -> contextlib.closing[_XzStream]:
    return contextlib.closing(_XzStream(raw))
