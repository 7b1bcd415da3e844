"""Tables with the images inside: parquet files, and the arrow folders of Hugging Face datasets.

Read and written batch by batch with pyarrow alone. An image column is what `datasets` writes: a struct of
`bytes` and `path`, or plain bytes. Rows that lorakit wrote contain the manifest's line, so nothing is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from data_tools.captions import columns
from data_tools.formats import DatasetFile, for_export, read_verified_bytes, separate_mask_path
from data_tools.formats.table_rows import iter_rows
from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.core.folders import walk_files
from lorakit.imaging import decode, signatures
from lorakit.manifest import Record

if TYPE_CHECKING:
    import pyarrow

RECORD_KEY = "lorakit"
SHARD_BYTES = 256 << 20
ROW_GROUP_BYTES = 32 << 20  # images of one row group, and in memory at a time
_IMAGE_KEYS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")
_SPLIT = re.compile(r"([A-Za-z][A-Za-z_]*)-\d+(-of-\d+)?\.parquet")


def is_table(path: Path) -> bool:
    """Return True for a parquet file, a folder of them, or a saved dataset."""
    return bool(list_table_files(path))


def list_table_files(path: Path) -> list[tuple[str, Path]]:
    """Return (split, file) of all parquet or arrow files in order; the split is "" if there is only one."""
    if path.is_file():
        return [("", path)] if path.suffix == ".parquet" else []
    table_files = []
    for file in sorted(file for file in walk_files(path) if file.suffix in (".parquet", ".arrow")):
        if file.name.startswith(("metadata", "cache-")):
            continue
        if file.suffix == ".arrow" and not (file.parent / "state.json").is_file():
            continue
        match = _SPLIT.fullmatch(file.name)
        table_files.append((match[1] if match else file.parent.name if file.parent != path else "", file))
    several = len({split for split, _ in table_files}) > 1
    return [(split if several else "", file) for split, file in table_files]


def read_tables(path: Path, unread: set[str] | None = None) -> Iterator[DatasetFile]:
    """Yield each row's image, and its caption file or record.

    Columns that look like captions and are not read are added to `unread`.
    """
    unread = set() if unread is None else unread
    used_names: set[str] = set()
    for split, file in list_table_files(path):
        for number, row in enumerate(iter_rows(file, columns.check_column_names), 1):
            where = f"{file}, row {number}"
            for entry in _entries(row, where, split, len(used_names), unread):
                if entry.name in used_names:
                    raise DataError(
                        f"two rows have the file name {entry.name!r}",
                        where=where,
                        remedy="rename one of the two",
                    )
                used_names.add(entry.name)
                yield entry


def write_parquet(folder: Path, records: Sequence[Record], out: Path, shard_bytes: int = SHARD_BYTES) -> int:
    """Write `data/train-00000-of-00003.parquet`, ..., for `load_dataset(out)`; return their number."""
    shards = _plan_shards(folder, records, shard_bytes)
    for number, shard in enumerate(shards):
        name = f"train-{number:05d}-of-{len(shards):05d}.parquet"
        _write_shard(folder, shard, out / "data" / name)
    return len(shards)


# ---- reading -----------------------------------------------------------------------------------------------


def _entries(
    row: Mapping[str, Any], where: str, split: str, number: int, unread: set[str]
) -> list[DatasetFile]:
    data, path = _row_image(row, where)
    if row.get(RECORD_KEY):
        record = manifest.parse_record(str(row[RECORD_KEY]).encode("utf-8"), where)
        files = [DatasetFile(record.file, data, record, keep_name=True)]
        mask, mask_cell = separate_mask_path(record), row.get("mask")
        if mask and isinstance(mask_cell, Mapping) and isinstance(mask_cell.get("bytes"), bytes):
            files.append(DatasetFile(mask, mask_cell["bytes"], keep_name=True))
        return files
    stem = PurePosixPath(path).stem if path else ""
    suffix = PurePosixPath(path).suffix or signatures.image_suffix(data)
    name = str(PurePosixPath(split) / f"{number:08d}{'-' if stem else ''}{stem}{suffix}")
    manifest.check_dataset_path(name, where)
    unread.update(columns.unread_columns(row))
    return [DatasetFile(name, data), *_caption_files(PurePosixPath(name), columns.caption_texts(row, where))]


def _caption_files(image: PurePosixPath, texts: Sequence[str] | None) -> list[DatasetFile]:
    """Return `a.txt` with one caption, `a.json` with several, nothing without one."""
    if not texts:
        return []
    if len(texts) == 1:
        return [DatasetFile(str(image.with_suffix(".txt")), texts[0].encode("utf-8"))]
    content = json.dumps({"captions": list(texts)}, ensure_ascii=False, indent=1) + "\n"
    return [DatasetFile(str(image.with_suffix(".json")), content.encode("utf-8"))]


def _row_image(row: Mapping[str, Any], where: str) -> tuple[bytes, str]:
    """Return the bytes and the file name ("" if unknown) of a row's image."""
    candidates = [key for key in _IMAGE_KEYS if key in row] or list(row)
    for key in candidates:
        value = row[key]
        cell = value if isinstance(value, Mapping) else {"bytes": value}
        if isinstance(cell.get("bytes"), bytes):
            name = str(cell.get("path") or "").replace("\\", "/")
            return cell["bytes"], PurePosixPath(name).name
    remedy = f"the table must contain the image files; its columns are {', '.join(map(str, row))}"
    raise DataError("a row without an image", where=where, remedy=remedy)


# ---- writing -----------------------------------------------------------------------------------------------


def _plan_shards(folder: Path, records: Sequence[Record], shard_bytes: int) -> list[list[Record]]:
    shards: list[list[Record]] = []
    size = shard_bytes
    for record in records:
        if size >= shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(record)
        size += (folder / record.file).stat().st_size
    return shards


def _write_shard(folder: Path, records: Sequence[Record], path: Path) -> None:
    import pyarrow.parquet

    schema = _schema()
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
    row = {
        "image": {"bytes": read_verified_bytes(folder, record), "path": PurePosixPath(record.file).name},
        "text": record.caption,
        "file_name": record.file,
        "captions": [caption.text for caption in record.captions],
        "tags": list(record.tags),
        RECORD_KEY: json.dumps(manifest.record_to_json(for_export(record)), ensure_ascii=False),
        "mask": None,
    }
    if mask := separate_mask_path(record):
        row["mask"] = {"bytes": decode.read_file(folder / mask), "path": PurePosixPath(mask).name}
    return row


def _schema() -> pyarrow.Schema:
    """Return the columns, with the metadata from which `datasets` knows their types (key "huggingface")."""
    import pyarrow

    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    texts = pyarrow.list_(pyarrow.string())
    text = pyarrow.string()
    columns = {
        "image": image,
        "text": text,
        "file_name": text,
        "captions": texts,
        "tags": texts,
        RECORD_KEY: text,
    }
    value = {"dtype": "string", "_type": "Value"}
    feature_types = {image: {"_type": "Image"}, text: value, texts: {"feature": value, "_type": "List"}}
    columns["mask"] = image
    features = {name: feature_types[column_type] for name, column_type in columns.items()}
    info = json.dumps({"info": {"features": features}}).encode()
    return pyarrow.schema(list(columns.items()), metadata={b"huggingface": info})
