"""Opening and reading of files that the user names: only regular files, at most so many bytes, valid text.

A pipe would block, a device such as /dev/zero never ends, and a file of gigabytes fills the memory; all are
refused before anything is read.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from typing import BinaryIO

from lorakit.core.errors import ConfigError, DataError

MAX_TEXT_BYTES = 16 << 20  # bytes of a text that people or tools write, such as a prompt file
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class NotAFileError(OSError):
    """The path is a folder, pipe, socket or device; `strerror` says which."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading. Raises NotAFileError for anything else, without waiting for it."""
    # Without O_NONBLOCK, opening a FIFO waits for a writer. Checking the open file avoids a race.
    flags = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_BINARY", "O_NOCTTY"))
    try:
        handle = os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError):
            raise error from None
        if stat.S_ISREG(mode):
            raise
        raise _not_a_file(mode) from error  # a socket, or a folder on Windows
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise _not_a_file(mode)
    return os.fdopen(handle, "rb")


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises OSError if it cannot be read, DataError if it is larger or not a regular file.
    """
    try:
        with open_regular(path) as file:
            size = min(limit, os.fstat(file.fileno()).st_size)
            data = file.read(size + 1)  # not `limit`: so many bytes would be allocated
            if len(data) > size:  # it grows, or is a file without a size in /proc
                data += file.read(limit + 1 - len(data))
    except NotAFileError as error:
        raise DataError(f"{error.strerror}, not a file", where=str(path)) from error
    if len(data) > limit:
        raise DataError(f"the file is larger than {_size(limit)}", where=str(path))
    return data


def read_bytes(
    path: str | os.PathLike[str],
    limit: int = MAX_TEXT_BYTES,
    *,
    error: type[ConfigError | DataError] = DataError,
    remedy: str | None = None,
) -> bytes:
    """Read a regular file of at most `limit` bytes; anything else is an `error` with path and `remedy`."""
    try:
        return read_regular(path, limit)
    except DataError as problem:
        raise error(problem.message, where=str(path), remedy=remedy) from problem
    except FileNotFoundError as problem:
        remedy = remedy or "check the path"
        raise error("the file does not exist", where=str(path), remedy=remedy) from problem
    except (OSError, ValueError) as problem:  # ValueError: a zero byte in the path
        reason = getattr(problem, "strerror", None) or str(problem)
        raise error(f"cannot read the file: {reason}", where=str(path), remedy=remedy) from problem


def read_text(
    path: str | os.PathLike[str],
    limit: int = MAX_TEXT_BYTES,
    *,
    error: type[ConfigError | DataError] = DataError,
    remedy: str | None = None,
) -> str:
    """Read UTF-8 text, with or without a byte order mark; see `read_bytes`.

    Raises `error` for bytes that are not UTF-8 and for control characters, with their place.
    """
    return decode_text(read_bytes(path, limit, error=error, remedy=remedy), str(path), error=error)


def decode_text(data: bytes, where: str, *, error: type[ConfigError | DataError] = DataError) -> str:
    """Decode UTF-8 text without its byte order mark, with `\\n` as the end of each line; see `read_text`."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            raise error(f"the text is {encoding}, not UTF-8", where=where, remedy="save the file as UTF-8")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as problem:
        message = f"byte {problem.start} (0x{data[problem.start]:02x}) is not UTF-8"
        raise error(message, where=where, remedy="save the file as UTF-8") from problem
    if match := _CONTROL_CHARACTER.search(text):
        line = text.count("\n", 0, match.start()) + 1
        message = f"the control character {ascii(match[0])[1:-1]} in line {line}"
        raise error(message, where=where, remedy="delete the character")
    return text


def _not_a_file(mode: int) -> NotAFileError:
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    return NotAFileError(0, kind)


def _size(limit: int) -> str:
    return f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"
