"""Checks of the members of zip and tar archives: their names, number and sizes."""

from __future__ import annotations

import contextlib
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lorakit import manifest
from lorakit.core.errors import DataError, first_line

DAMAGE_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, struct.error),
    # Errors of zipfile and tarfile themselves on damaged input, such as names that are not UTF-8.
    *(NotImplementedError, RuntimeError, ValueError, IndexError, KeyError, TypeError, OverflowError),
    *(MemoryError, AssertionError, AttributeError),
)
_MAX_NAME_BYTES, _MAX_PART_BYTES, _MAX_DEPTH = 1024, 255, 64  # of a member's name


@dataclass(frozen=True)
class ArchiveLimits:
    """Limits of an archive. Photographs hardly compress, so a large archive with 200 to 1 is a bomb."""

    max_members: int = 500_000
    max_member_bytes: int = 512 << 20
    max_ratio: int = 200
    ratio_free_bytes: int = 64 << 20  # up to this size, any ratio is allowed


class ArchiveMember(NamedTuple):
    """A regular file in an archive."""

    name: str
    data: bytes


class MemberChecks:
    """Checks of all members together: their number and sizes, and that no name occurs twice."""

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        self.path, self.limits = path, limits
        self.seen: set[str] = set()
        self.folders: set[str] = set()
        self.members = self.total = 0

    def count(self) -> None:
        """Count one more member of any type."""
        self.members += 1
        if self.members > self.limits.max_members:
            raise too_many_error(self.path, self.limits)

    def check_member(self, name: str, size: int) -> str:
        """Return the name as a relative POSIX path; raise `DataError` for one that cannot be used."""
        normalized = normalized_name(name)
        manifest.check_dataset_path(name, str(self.path))
        manifest.check_dataset_path(normalized, str(self.path))
        self._check_name(normalized)
        if size > self.limits.max_member_bytes:
            raise too_large_error(self.path, normalized, size)
        self.count()
        self.seen.add(normalized)
        self.total += size
        return normalized

    def _check_name(self, name: str) -> None:
        try:
            encoded = name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise archive_error(self.path, f"the name {name[:80]!r} is not UTF-8") from error
        parts = encoded.split(b"/")
        if (
            len(encoded) > _MAX_NAME_BYTES
            or len(parts) > _MAX_DEPTH
            or max(map(len, parts)) > _MAX_PART_BYTES
        ):
            message = f"a name of {len(encoded)} bytes in {len(parts) - 1} folders: {name[:80]!r}..."
            raise archive_error(self.path, message, "unpack it yourself, and shorten the name")
        parents = ["/".join(name.split("/")[:depth]) for depth in range(1, len(parts))]
        if name in self.seen:
            raise archive_error(self.path, f"{name!r} is in the archive twice")
        if name in self.folders or not self.seen.isdisjoint(parents):
            raise archive_error(self.path, f"{name!r} is a file and a folder in the archive")
        self.folders.update(parents)

    def check_ratio(self, packed: int) -> None:
        """Raise `DataError` if the archive unpacks to far more than its size (a zip bomb)."""
        if self.total > max(self.limits.ratio_free_bytes, self.limits.max_ratio * packed):
            raise bomb_error(self.path, self.limits)


def normalized_name(name: str) -> str:
    """Return the name with slashes (some Windows programs write backslashes) and without `./`."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


@contextlib.contextmanager
def damage_as_data_error(path: Path, name: str = "") -> Iterator[None]:
    """Turn the errors of zipfile and tarfile into a DataError that names the archive."""
    try:
        yield
    except DAMAGE_ERRORS as error:
        what = f"{name!r} cannot be read" if name else "the archive is damaged"
        reason = first_line(error) if str(error) else "it is damaged"
        raise archive_error(path, f"{what}: {reason}") from error


def archive_error(
    path: Path, message: str, remedy: str = "download it again, or unpack it yourself"
) -> DataError:
    """Return the error for an archive that is not read."""
    return DataError(message, where=str(path), remedy=remedy)


def too_many_error(path: Path, limits: ArchiveLimits, entries: int | None = None) -> DataError:
    """Return the error for an archive of too many files."""
    what = f"{entries} files" if entries else "too many files"
    return archive_error(path, f"{what}; the limit is {limits.max_members}", "split it into smaller archives")


def too_large_error(path: Path, name: str, size: int) -> DataError:
    """Return the error for a member that is too large."""
    return archive_error(path, f"{name!r} is {size} bytes large", "unpack it yourself if you trust it")


def bomb_error(path: Path, limits: ArchiveLimits) -> DataError:
    """Return the error for an archive that unpacks to far more than its size."""
    message = f"the archive unpacks to more than {limits.max_ratio} times its size"
    return archive_error(path, message, "unpack it yourself if you trust it")
