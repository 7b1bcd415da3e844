"""Rows of parquet files and of arrow streams (saved Hugging Face datasets), which may be hostile.

A value that a dictionary stores once can be repeated in each row, so the size of the file says nothing about
the size of its rows: they are converted to Python a few at a time, after their size was computed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.formats import parquet_pages
from lorakit.core.errors import DataError, first_line
from lorakit.core.input_files import open_regular

if TYPE_CHECKING:
    import pyarrow

MAX_ROWS = 150_000  # of one file
MAX_RATIO, RATIO_FREE_BYTES = 200, 64 << 20  # a file may become 200 times as large; up to 64 MiB any ratio
MAX_ROW_BYTES = 192 << 20  # of one row as Python values
_STEP_BYTES, _STEP_ROWS = 32 << 20, 1000  # of the rows that are converted at once
_VALUE_BYTES = 64  # of a small Python value
_ROW_BYTES = 512  # added to the size of each row: a file of 8 KB could have 400,000 tiny images
_ARROW_FILE = b"ARROW1"
_DAMAGE_REMEDY = "download it again"


def iter_rows(file: Path, check_names: Callable[[list[str], str], None]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a parquet file (`.parquet`) or of an arrow file or stream.

    Raises DataError for a damaged or hostile one. `check_names` is called with the names of the columns and
    the file.
    """
    import pyarrow

    is_parquet = file.suffix.lower() == ".parquet"
    num_rows = num_bytes = 0
    try:
        with open_regular(file) as opened:
            allowed = max(RATIO_FREE_BYTES, MAX_RATIO * opened.seek(0, 2))
        for batch in _parquet_batches(file, check_names) if is_parquet else _arrow_batches(file, check_names):
            num_rows += batch.num_rows
            if num_rows > MAX_ROWS:
                raise ValueError(f"it has more than {MAX_ROWS} rows; split it into several files")
            for rows, size in _steps(batch):
                num_bytes += size + _ROW_BYTES * rows.num_rows
                if num_bytes > allowed:
                    raise ValueError(f"its rows have more than {MAX_RATIO} times the size of the file")
                yield from rows.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError, struct.error) as error:
        message = f"cannot read the table: {first_line(error)[:300]}"
        raise DataError(message, where=str(file), remedy=_DAMAGE_REMEDY) from error


def _parquet_batches(
    file: Path, check_names: Callable[[list[str], str], None]
) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow.parquet

    parquet_pages.check_footer(file)
    limits: dict[str, Any] = {"thrift_string_size_limit": 4 << 20, "thrift_container_size_limit": 100_000}
    with pyarrow.parquet.ParquetFile(file, pre_buffer=False, **limits) as table:
        largest = parquet_pages.check_pages(file, table.metadata)
        check_names(list(table.schema_arrow.names), str(file))
        # A value is not larger than a page.
        yield from table.iter_batches(batch_size=max(1, min(_STEP_ROWS, _STEP_BYTES // max(1, largest))))


def _arrow_batches(
    file: Path, check_names: Callable[[list[str], str], None]
) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    for checks in (True, False):
        with pyarrow.memory_map(str(file)) as source:
            # A file of arrow is a stream between two marks; a mark is followed by two zeros.
            source.seek(len(_ARROW_FILE) + 2 if source.read(len(_ARROW_FILE)) == _ARROW_FILE else 0)
            if checks:
                for message in pyarrow.ipc.MessageReader.open_stream(source):
                    if _is_compressed(bytes(message.metadata)):
                        raise ValueError("compressed arrow files are not read; save it as parquet")
                continue
            with pyarrow.ipc.open_stream(source) as stream:
                check_names(list(stream.schema.names), str(file))
                for batch in stream:
                    batch.validate(full=True)
                    yield batch


def _is_compressed(message: bytes) -> bool:
    """Return True if a batch states a compression (https://arrow.apache.org/docs/format/Columnar.html#ipc).

    The metadata are a flatbuffer: a table has a list of the places of its fields, 0 for an absent one.
    """

    def field(table: int, number: int) -> int:
        fields = table - struct.unpack_from("<i", message, table)[0]
        if 4 + 2 * number >= struct.unpack_from("<H", message, fields)[0]:
            return 0
        place = struct.unpack_from("<H", message, fields + 4 + 2 * number)[0]
        return table + place if place else 0

    def follow(place: int) -> int:
        return place + int(struct.unpack_from("<I", message, place)[0])

    root = follow(0)
    header_type, header = field(root, 1), field(root, 2)
    kind = message[header_type] if header_type else 0
    if kind not in (2, 3) or not header:  # DictionaryBatch, RecordBatch
        return False
    table = follow(header)
    if kind == 2:
        table = follow(field(table, 1))
    return field(table, 3) != 0


def _steps(batch: pyarrow.RecordBatch) -> Iterator[tuple[pyarrow.RecordBatch, int]]:
    """Yield (rows, their size as Python values) of slices that fit in memory."""
    start = 0
    while start < batch.num_rows:
        count = min(_STEP_ROWS, batch.num_rows - start)
        while (size := _python_bytes(rows := batch.slice(start, count))) > _STEP_BYTES and count > 1:
            count //= 2
        if size > MAX_ROW_BYTES:
            raise ValueError(f"a row has {size >> 20} MiB, at most {MAX_ROW_BYTES >> 20} are read")
        yield rows, size
        start += count


def _python_bytes(batch: pyarrow.RecordBatch) -> int:
    return sum(_array_bytes(column) for column in batch.columns)


def _array_bytes(array: Any) -> int:
    """Return about how many bytes the values of an array take as Python values."""
    import pyarrow.compute as compute
    from pyarrow import types

    kind, own = array.type, _VALUE_BYTES * len(array)
    if types.is_dictionary(kind):
        values = array.dictionary.type
        if types.is_binary(values) or types.is_string(values) or types.is_large_string(values):
            lengths = compute.binary_length(array.dictionary).take(array.indices)
            return own + int(compute.sum(lengths).as_py() or 0)
        if types.is_nested(values) or types.is_large_binary(values):
            raise ValueError(f"columns of the type {kind} are not read")
        return own
    if types.is_struct(kind):
        return own + sum(_array_bytes(child) for child in array.flatten())
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        if types.is_fixed_size_list(kind) and kind.list_size * len(array) * _VALUE_BYTES > MAX_ROW_BYTES:
            raise ValueError(f"columns of the type {kind} are not read")
        return own + _array_bytes(array.flatten())
    if types.is_nested(kind):
        raise ValueError(f"columns of the type {kind} are not read")
    if types.is_primitive(kind) or types.is_null(kind) or types.is_decimal(kind):
        return own
    return own + int(array.nbytes)
