"""Datasets as folders or zips: images with caption files, metadata and the manifest beside them.

All tools can read an exported folder: ImageFolder uses metadata.jsonl, trainers the .txt files, and lorakit
the manifest, which is the only complete one. For folders that a trainer reads completely, see `trainers`.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.captions.table_files import escape_csv_cell
from data_tools.findings import pluralize
from data_tools.formats import (
    DatasetFile,
    read_verified_bytes,
    separate_mask_path,
)
from lorakit.core import dataset_paths
from lorakit.imaging import decode
from lorakit.manifest import Record


def export_files(folder: Path, records: Sequence[Record]) -> Iterator[DatasetFile]:
    """Yield images, masks and conditioning images unchanged, and caption files for each image."""
    written: set[str] = set()
    for record in records:
        yield DatasetFile(record.file, read_verified_bytes(folder, record), record, keep_name=True)
        for file in (separate_mask_path(record), *(image.file for image in record.conditioning_images)):
            if file and file not in written:  # images may share a conditioning image
                written.add(file)
                yield DatasetFile(
                    file, decode.read_file(dataset_paths.file_path(folder, file)), keep_name=True
                )
    yield from caption_files(records)


def layout_notes(records: Sequence[Record]) -> list[str]:
    """Return what only lorakit reads of images with captions and other files beside them."""
    variants = sum(len(record.captions) > 1 for record in records)
    tagged = sum(bool(unwritten_tags(record)) for record in records)
    others = sum(bool(separate_mask_path(record) or record.conditioning_images) for record in records)
    notes = []
    if variants:
        where = "NAME.txt and metadata.jsonl have the first, NAME.json all"
        notes.append(f"{pluralize(variants, 'image')} with several captions: {where}")
    if tagged:
        notes.append(f"{pluralize(tagged, 'image')} with tags outside the caption: NAME.json has them")
    if others:
        images = pluralize(others, "image")
        notes.append(f"{images} with a mask or conditioning images, which `datasets` does not return")
    return notes


def unwritten_tags(record: Record) -> list[str]:
    """Return the tags that are not in the first caption."""
    return [tag for tag in record.tags if tag not in record.caption]


def caption_files(records: Sequence[Record]) -> Iterator[DatasetFile]:
    """Yield `a.txt` with the first caption, and `a.json` if there are several or tags.

    If there is also an `a.png`, the files of `a.jpg` are `a.jpg.txt` and `a.jpg.json`.
    """
    stems = Counter(_stem(record.file) for record in records)
    for record in records:
        stem = record.file if stems[_stem(record.file)] > 1 else _stem(record.file)
        if record.captions:
            yield DatasetFile(f"{stem}.txt", record.caption.encode("utf-8"))
        if len(record.captions) > 1 or record.tags:
            value: dict[str, Any] = {"captions": [caption.text for caption in record.captions]}
            value |= {"tags": list(record.tags)} if record.tags else {}
            text = json.dumps(value, ensure_ascii=False, indent=1)
            yield DatasetFile(f"{stem}.json", (text + "\n").encode("utf-8"))


def metadata_file(records: Sequence[Record], format: str) -> DatasetFile:
    """Return `metadata.csv` or `.parquet` for ImageFolder, or kohya's `meta_cap.json`.

    A spreadsheet cannot run anything in the CSV.
    """
    if format == "kohya":
        pairs = {_stem(r.file): {"caption": r.caption, "tags": ", ".join(unwritten_tags(r))} for r in records}
        return DatasetFile("meta_cap.json", json.dumps(pairs, ensure_ascii=False, indent=1).encode("utf-8"))
    rows = [(record.file, record.caption) for record in records]
    buffer = io.BytesIO()
    if format == "parquet":
        import pyarrow.parquet

        table = pyarrow.table({"file_name": [r[0] for r in rows], "text": [r[1] for r in rows]})
        pyarrow.parquet.write_table(table, buffer)
    else:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(("file_name", "text"))
        writer.writerows((escape_csv_cell(file), escape_csv_cell(caption)) for file, caption in rows)
        buffer.write(text.getvalue().encode("utf-8"))
    return DatasetFile(f"metadata.{format}", buffer.getvalue())


def write_zip(file: Any, entries: Iterator[DatasetFile]) -> int:
    """Write a zip, uncompressed because images do not compress; equal data give equal bytes."""
    number = 0
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for entry in entries:
            info = zipfile.ZipInfo(entry.name)
            info.external_attr = 0o100644 << 16
            archive.writestr(info, entry.data)
            number += 1
    return number


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
