"""Tables with the images inside: parquet files, and the arrow folders of Hugging Face datasets.

Read and written batch by batch with pyarrow alone. An image column is what `datasets` writes: a struct of
`bytes` and `path`, or plain bytes. Rows that lorakit wrote contain the manifest's line, so nothing is lost.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from data_tools.captions import columns
from data_tools.formats import DatasetFile, for_export, read_verified_bytes, separate_mask_path
from data_tools.formats.column_roles import ColumnChoice, ColumnRoles, assign_roles
from data_tools.formats.import_log import ImportLog
from data_tools.formats.row_files import row_files
from data_tools.formats.source_folder import SourceFolder
from data_tools.formats.table_rows import iter_rows
from lorakit import manifest
from lorakit.core import dataset_paths, storage
from lorakit.core.errors import DataError
from lorakit.imaging import decode
from lorakit.manifest import Record

if TYPE_CHECKING:
    import pyarrow

RECORD_KEY = "lorakit"
SHARD_BYTES = 256 << 20
ROW_GROUP_BYTES = 32 << 20  # images of one row group, and in memory at a time
CONDITIONING_COLUMNS = {"source": "source_images", "control": "control_images"}
_MAX_FIRST_ROWS = 16


def read_tables(
    tables: Sequence[tuple[str, Path]],
    folder: SourceFolder,
    choice: ColumnChoice | None = None,
    log: ImportLog | None = None,
) -> Iterator[DatasetFile]:
    """Yield the files of each row: image, captions, mask and conditioning images, or the file of a record.

    `tables` are pairs of split and file, `folder` is the one that paths in the tables are relative to.
    Columns and rows that are not used are added to `log`.
    """
    choice, log = choice or ColumnChoice(), log or ImportLog()
    roles_by_names: dict[tuple[str, ...], ColumnRoles] = {}
    record_names: set[str] = set()
    number = 0
    for split, file in tables:
        rows = iter_rows(file, columns.check_column_names)
        first = list(_first_rows(rows))
        if not first:
            log.left_out.add("file", "a table without rows", file.name)
            continue
        read_file = functools.partial(folder.read, beside=file.parent)
        roles = None
        if RECORD_KEY not in first[0]:
            find = functools.partial(folder.find, beside=file.parent)
            roles = roles_by_names.get(tuple(first[0])) or assign_roles(first, str(file), choice, find)
            roles_by_names[tuple(first[0])] = roles
            log.add_columns(roles)
        for place, row in enumerate(itertools.chain(first, rows), 1):
            where = f"{file}, row {place}"
            if roles is None:
                yield from _record_files(row, where, record_names)
            else:
                stem = str(PurePosixPath(split) / f"{number:08d}")
                manifest.check_dataset_path(stem, where)
                yield from row_files(stem, row, roles, f"{file.name} row {place}", read_file, log.left_out)
            number += 1


def _first_rows(rows: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the first rows, until each column had a value; they show what the columns hold."""
    empty: set[str] | None = None
    for number, row in enumerate(rows, 1):
        yield row
        missing = {name for name, value in row.items() if value in (None, "", [])}
        empty = missing if empty is None else empty & missing
        if number >= _MAX_FIRST_ROWS or not empty:
            return


def _record_files(row: Mapping[str, Any], where: str, names: set[str]) -> Iterator[DatasetFile]:
    """Yield the files of a row that lorakit wrote, with the names in its record."""
    record = manifest.parse_record(str(row.get(RECORD_KEY)).encode("utf-8"), where)
    cells = [(record.file, row.get("image"))]
    if mask := separate_mask_path(record):
        cells.append((mask, row.get("mask")))
    for image_type, column in CONDITIONING_COLUMNS.items():
        files = [image.file for image in record.conditioning_images if image.type == image_type]
        cells += itertools.zip_longest(files, (row.get(column) or [])[: len(files)])
    if record.file in names:
        message = f"two rows have the file name {record.file!r}"
        raise DataError(message, where=where, remedy="rename one of the two")
    for name, cell in cells:
        data = cell.get("bytes") if isinstance(cell, Mapping) else None
        if not isinstance(data, bytes):
            raise DataError(f"the row has no image {name!r}", where=where, remedy="export the dataset again")
        if name not in names:  # images may share a mask or a conditioning image
            names.add(name)
            yield DatasetFile(name, data, record if name == record.file else None, keep_name=True)


def write_parquet(folder: Path, records: Sequence[Record], out: Path, shard_bytes: int = SHARD_BYTES) -> int:
    """Write `data/train-00000-of-00003.parquet`, ..., for `load_dataset(out)`; return their number."""
    shards, schema = _plan_shards(folder, records, shard_bytes), _schema(records)
    for number, shard in enumerate(shards):
        name = f"train-{number:05d}-of-{len(shards):05d}.parquet"
        _write_shard(folder, shard, out / "data" / name, schema)
    return len(shards)


# ---- writing -----------------------------------------------------------------------------------------------


def _plan_shards(folder: Path, records: Sequence[Record], shard_bytes: int) -> list[list[Record]]:
    shards: list[list[Record]] = []
    size = shard_bytes
    for record in records:
        if size >= shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(record)
        size += dataset_paths.file_path(folder, record.file).stat().st_size
    return shards


def _write_shard(folder: Path, records: Sequence[Record], path: Path, schema: pyarrow.Schema) -> None:
    import pyarrow.parquet

    with storage.open_atomic(path) as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        rows: list[dict[str, Any]] = []
        size = 0
        for record in records:
            rows.append(_to_row(folder, record))
            size += len(rows[-1]["image"]["bytes"])
            if size >= ROW_GROUP_BYTES:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows, size = [], 0
        if rows:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _to_row(folder: Path, record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {
        "image": {"bytes": read_verified_bytes(folder, record), "path": PurePosixPath(record.file).name},
        "text": record.caption,
        "file_name": record.file,
        "captions": [caption.text for caption in record.captions],
        "tags": list(record.tags),
        RECORD_KEY: json.dumps(manifest.record_to_json(for_export(record)), ensure_ascii=False),
        "mask": _cell(folder, separate_mask_path(record)),
    }
    for image_type, column in CONDITIONING_COLUMNS.items():
        files = [image.file for image in record.conditioning_images if image.type == image_type]
        row[column] = [_cell(folder, file) for file in files]
    return row


def _cell(folder: Path, file: str | None) -> dict[str, Any] | None:
    """Return an image as `datasets` stores it."""
    if file is None:
        return None
    path = dataset_paths.file_path(folder, file)
    return {"bytes": decode.read_file(path), "path": PurePosixPath(file).name}


def _schema(records: Sequence[Record]) -> pyarrow.Schema:
    """Return the columns, with the metadata from which `datasets` knows their types (key "huggingface").

    Columns of conditioning images are there if any of the records has some.
    """
    import pyarrow

    text, image = pyarrow.string(), pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    texts, images = pyarrow.list_(text), pyarrow.list_(image)
    types: dict[Any, Any] = {image: {"_type": "Image"}, text: {"dtype": "string", "_type": "Value"}}
    types |= {texts: {"feature": types[text], "_type": "List"}}
    types |= {images: {"feature": types[image], "_type": "List"}}
    columns = {"image": image, "text": text, "file_name": text, "captions": texts, "tags": texts}
    columns |= {RECORD_KEY: text, "mask": image}
    used = {conditioning.type for record in records for conditioning in record.conditioning_images}
    columns |= {column: images for image_type, column in CONDITIONING_COLUMNS.items() if image_type in used}
    features = {name: types[column_type] for name, column_type in columns.items()}
    info = json.dumps({"info": {"features": features}}).encode()
    return pyarrow.schema(list(columns.items()), metadata={b"huggingface": info})
