"""Datasets as folders or zips: images with caption files, metadata and the manifest beside them.

All tools can read an exported folder: ImageFolder uses metadata.jsonl, kohya's scripts and similar trainers
the .txt files, and lorakit the manifest, which is the only complete one.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data_tools.captions.metadata import parse_kohya_folder
from data_tools.captions.table_files import escape_csv_cell
from data_tools.conditioning.masks import MASK_FOLDER as GENERATED_MASKS
from data_tools.conditioning.masks import SIDECAR_SUFFIX
from data_tools.formats import DatasetFile, for_export, read_verified_bytes, separate_mask_path
from lorakit.core import dataset_paths
from lorakit.imaging import decode
from lorakit.manifest import Record


class RenamedRecord(NamedTuple):
    """A record, and the record that it becomes in the export."""

    old: Record
    new: Record


def export_files(folder: Path, renamed: Sequence[RenamedRecord]) -> Iterator[DatasetFile]:
    """Yield images, masks and conditioning images unchanged, and a caption file for each image."""
    for old, new in renamed:
        yield DatasetFile(new.file, read_verified_bytes(folder, old), new, keep_name=True)
        source, target = separate_mask_path(old), separate_mask_path(new)
        if source and target:
            yield DatasetFile(
                target, decode.read_file(dataset_paths.file_path(folder, source)), keep_name=True
            )
        for (
            image
        ) in new.conditioning_images:  # they keep their names, so only layouts without renaming have them
            yield DatasetFile(
                image.file, decode.read_file(dataset_paths.file_path(folder, image.file)), keep_name=True
            )
    yield from caption_files([pair.new for pair in renamed])


def caption_files(records: Sequence[Record]) -> Iterator[DatasetFile]:
    """Yield a caption file for each image with captions; `a.jpg.txt` if there is also an `a.png`."""
    stems = Counter(_stem(record.file) for record in records)
    for record in records:
        if record.captions:
            yield _caption_file(record, record.file if stems[_stem(record.file)] > 1 else _stem(record.file))


def _caption_file(record: Record, stem: str) -> DatasetFile:
    """Return `a.txt` with one caption, or `a.json` with several captions or tags."""
    if len(record.captions) == 1 and not record.tags:
        return DatasetFile(f"{stem}.txt", record.caption.encode("utf-8"))
    value: dict[str, Any] = {"captions": [caption.text for caption in record.captions]}
    if record.tags:
        value["tags"] = list(record.tags)
    text = json.dumps(value, ensure_ascii=False, indent=1)
    return DatasetFile(f"{stem}.json", (text + "\n").encode("utf-8"))


def keep_layout(records: Sequence[Record]) -> list[RenamedRecord]:
    """Return the records for an export without renaming."""
    return [RenamedRecord(record, for_export(record)) for record in records]


def kohya_layout(records: Sequence[Record], name: str) -> list[RenamedRecord]:
    """Return the records in kohya's layout, `<repeats>_<name>/a.jpg`; such a folder keeps its name."""
    renamed: list[RenamedRecord] = []
    used_stems: set[str] = set()
    for record in records:
        path = PurePosixPath(record.file)
        is_kohya_folder = parse_kohya_folder(path.parent.name) is not None
        flat_name = path.name if is_kohya_folder or len(path.parts) == 1 else "_".join(path.parts)
        folder = path.parent.name if is_kohya_folder else f"{record.repeats}_{name}"
        target, number = f"{folder}/{flat_name}", 1
        while _stem(target) in used_stems:
            number += 1
            target = f"{folder}/{PurePosixPath(flat_name).stem}_{number}{path.suffix}"
        used_stems.add(_stem(target))
        mask = record.mask
        if record.mask == record.file:
            mask = target
        elif mask and not mask.startswith(GENERATED_MASKS):
            mask = f"{_stem(target)}{SIDECAR_SUFFIX}{PurePosixPath(mask).suffix}"
        renamed.append(RenamedRecord(record, replace(for_export(record), file=target, mask=mask)))
    return renamed


def metadata_file(records: Sequence[Record], format: str) -> DatasetFile:
    """Return `metadata.csv` or `.parquet` for ImageFolder, or kohya's `meta_cap.json`.

    A spreadsheet cannot run anything in the CSV.
    """
    if format == "kohya":
        pairs = {_stem(r.file): {"caption": r.caption, "tags": ", ".join(r.tags)} for r in records}
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
