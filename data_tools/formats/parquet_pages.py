"""Checks of a parquet file before its reader allocates memory: the sizes that its headers state.

A page of a few bytes can state that it unpacks to 2 GB, and a footer of a few megabytes becomes gigabytes in
memory. Headers are in Thrift's compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md); only the numbers that
matter are read (https://github.com/apache/parquet-format, `PageHeader`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

MAX_FOOTER_BYTES = 4 << 20
MAX_COLUMNS = 1000
MAX_PAGES = 100_000
MAX_PAGE_BYTES = 192 << 20  # of one page, unpacked
MAX_PAGE_BYTES_OF_ALL = 384 << 20  # of the largest pages of all columns together, which are in memory at once
MAX_VALUES = 10_000_000  # of one column in one row group
MAX_LIST_BYTES = 512 << 20  # of the values of lists in one row group, if each is as long as the longest
_HEADER_BYTES = 64 << 10
_STRUCT, _LISTS = 12, (9, 10)
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _MAP = 1, 2, 3, 7, 8, 11
_UNPACKED_SIZE, _PACKED_SIZE = 2, 3  # fields of PageHeader
_DICTIONARY = 7
_PAGE_KINDS = (5, _DICTIONARY, 8)  # fields of PageHeader: data page, dictionary page, data page of version 2


def check_footer(path: Path) -> None:
    """Raise ValueError for a footer that would take too much memory."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        footer_bytes = int.from_bytes(file.read(4), "little")
    if footer_bytes > MAX_FOOTER_BYTES:
        raise ValueError(
            f"its footer has {footer_bytes >> 20} MiB, at most {MAX_FOOTER_BYTES >> 20} are read"
        )


def check_pages(path: Path, metadata: Any) -> int:
    """Return the bytes of the largest page, unpacked; `metadata` is pyarrow's.

    Raises ValueError if a page states sizes that would take too much memory.
    """
    if metadata.num_columns > MAX_COLUMNS:
        raise ValueError(f"it has {metadata.num_columns} columns, at most {MAX_COLUMNS} are read")
    pages_left = MAX_PAGES
    largest = [0] * metadata.num_columns
    with open(path, "rb") as file:
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                num_values = longest = 0
                for page in _iter_pages(file, chunk):
                    pages_left -= 1
                    largest[column] = max(largest[column], page.unpacked)
                    if page.unpacked > MAX_PAGE_BYTES or sum(largest) > MAX_PAGE_BYTES_OF_ALL:
                        raise ValueError(f"{chunk.path_in_schema[:80]} has a page of {page.unpacked} bytes")
                    if pages_left < 0:
                        raise ValueError(f"it has more than {MAX_PAGES} pages")
                    if page.is_dictionary:
                        longest = _longest_value(page, chunk)
                    else:
                        num_values += page.num_values
                _check_values(num_values, longest, metadata.schema.column(column))
    return max(largest, default=0)


def _check_values(num_values: int, longest: int, column: Any) -> None:
    """Check the values of a column in a row group: of lists, all may be in one row."""
    if num_values > MAX_VALUES:
        raise ValueError(f"{column.path[:80]} has {num_values} values in one row group")
    if column.max_repetition_level and num_values * longest > MAX_LIST_BYTES:
        message = f"the lists of {column.path[:80]} may have {num_values * longest >> 20} MiB"
        raise ValueError(f"{message}; write the table with row groups of at most 1000 rows")


class _Page(NamedTuple):
    """Sizes of a page in bytes, the number of its values, and its content as stored."""

    unpacked: int
    num_values: int
    is_dictionary: bool
    content: bytes  # of a dictionary; else empty


def _iter_pages(file: IO[bytes], chunk: Any) -> Iterator[_Page]:
    """Yield the pages of a column chunk."""
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else None
    place = min(chunk.data_page_offset, start or chunk.data_page_offset)
    end = place + chunk.total_compressed_size
    while place < end:
        file.seek(place)
        header = _Compact(file.read(min(_HEADER_BYTES, end - place)))
        fields = header.read_struct()
        unpacked, packed = fields.get(_UNPACKED_SIZE, -1), fields.get(_PACKED_SIZE, -1)
        if not isinstance(unpacked, int) or not isinstance(packed, int) or min(unpacked, packed) < 0:
            raise ValueError("a page without a size")
        details = [fields[kind] for kind in _PAGE_KINDS if isinstance(fields.get(kind), dict)]
        counts = [kind[1] for kind in details if isinstance(kind.get(1), int)]
        is_dictionary = _DICTIONARY in fields
        file.seek(place + header.place)
        content = file.read(packed) if is_dictionary and unpacked <= MAX_PAGE_BYTES else b""
        yield _Page(unpacked, max(counts, default=0), is_dictionary, content)
        place += header.place + packed


def _longest_value(page: _Page, chunk: Any) -> int:
    """Return the length of the longest text in the dictionary of a column of lists; 0 for other columns."""
    if chunk.physical_type != "BYTE_ARRAY" or ".list." not in chunk.path_in_schema:
        return 8
    data = page.content
    if chunk.compression != "UNCOMPRESSED":
        import pyarrow

        data = pyarrow.decompress(data, page.unpacked, chunk.compression.lower(), asbytes=True)
    place = longest = 0
    for _ in range(min(page.num_values, len(data) // 4)):
        length = int.from_bytes(data[place : place + 4], "little")
        longest, place = max(longest, length), place + 4 + length
    return longest


class _Compact:
    """Reads structs of Thrift's compact protocol; texts, lists and maps are skipped."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def read_struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the numbers and structs of a struct by field."""
        if depth > 8:
            raise ValueError("a header that is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while (byte := self._byte()) != 0:
            delta, kind = byte >> 4, byte & 15
            number = number + delta if delta else self._integer()
            fields[number] = self._value(kind, depth)
        return fields

    def _byte(self) -> int:
        if self.place >= len(self.data):
            raise ValueError("a header that is cut off")
        self.place += 1
        return self.data[self.place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number that is too long")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind == _STRUCT:
            return self.read_struct(depth + 1)
        if kind in (_BINARY, _DOUBLE, _BYTE):
            length = self._varint() if kind == _BINARY else 8 if kind == _DOUBLE else 1
            self.place += length
            return None
        if kind in _LISTS:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            for _ in range(count):
                self._value(_BYTE if head & 15 in (_TRUE, _FALSE) else head & 15, depth + 1)
            return None
        if kind == _MAP or not 3 < kind < 7:
            raise ValueError("a header of an unknown form")
        return self._integer()
