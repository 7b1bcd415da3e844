"""Datasets as files in folders, or zipped: images with caption files, metadata and the manifest beside them.

A written folder serves everyone: ImageFolder reads metadata.jsonl, kohya and its kin the .txt files, lorakit
the manifest, which alone holds everything.
"""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data_tools.captions.metadata import escape_csv_cell, parse_kohya_folder
from data_tools.conditioning.masks import MASK_FOLDER as MADE_MASKS
from data_tools.conditioning.masks import SIDECAR_SUFFIX
from data_tools.formats import DatasetFile, for_export, read_verified_bytes, separate_mask_path
from data_tools.listing import CAPTION_SUFFIXES, IMAGE_SUFFIXES
from lorakit import manifest
from lorakit.imaging import decode, signatures
from lorakit.manifest import Record


class RenamedRecord(NamedTuple):
    """A record and what it becomes where it goes."""

    old: Record
    new: Record


def belongs_in_dataset(name: str, data: bytes) -> bool:
    """Whether a file belongs into a dataset folder: images, captions, metadata, the manifest."""
    path = PurePosixPath(name)
    hidden = [part for part in path.parts if part.startswith(".") and part != MADE_MASKS]
    if hidden or "__MACOSX" in path.parts:
        return False
    suffix = path.suffix.lower()
    known = suffix in IMAGE_SUFFIXES or suffix in CAPTION_SUFFIXES
    return (
        known
        or path.name in (manifest.MANIFEST_FILE, *manifest.METADATA_FILES)
        or signatures.is_image_header(data[:16])
    )


def read_folder(folder: Path) -> Iterator[DatasetFile]:
    """The files below a folder, without following links."""
    for base, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(base) / name
            if path.is_symlink() or not path.is_file():
                continue
            relative = path.relative_to(folder).as_posix()
            manifest.check_dataset_path(relative, str(path))
            yield DatasetFile(relative, decode.read_file(path))


def export_files(folder: Path, moves: Sequence[RenamedRecord]) -> Iterator[DatasetFile]:
    """Images, masks and given pictures as they are, and a caption file for each image, by the new records."""
    for old, new in moves:
        yield DatasetFile(new.file, read_verified_bytes(folder, old), new, settled=True)
        source, target = separate_mask_path(old), separate_mask_path(new)
        if source and target:
            yield DatasetFile(target, decode.read_file(folder / source), settled=True)
        for one in new.given:  # under their own names, which only a copy as it is keeps
            yield DatasetFile(one.file, decode.read_file(folder / one.file), settled=True)
    yield from caption_files([move.new for move in moves])


def caption_files(records: Sequence[Record]) -> Iterator[DatasetFile]:
    """A caption file for each image that has captions; `a.jpg.txt` where an `a.png` is too."""
    stems = Counter(_stem(record.file) for record in records)
    for record in records:
        if record.captions:
            yield _caption_file(record, record.file if stems[_stem(record.file)] > 1 else _stem(record.file))


def _caption_file(record: Record, stem: str) -> DatasetFile:
    """`a.txt` with the caption, `a.json` for several or tags."""
    if len(record.captions) == 1 and not record.tags:
        return DatasetFile(f"{stem}.txt", record.caption.encode("utf-8"))
    value: dict[str, Any] = {"captions": [caption.text for caption in record.captions]}
    if record.tags:
        value["tags"] = list(record.tags)
    text = json.dumps(value, ensure_ascii=False, indent=1)
    return DatasetFile(f"{stem}.json", (text + "\n").encode("utf-8"))


def keep_layout(records: Sequence[Record]) -> list[RenamedRecord]:
    """Every file under its own name."""
    return [RenamedRecord(record, for_export(record)) for record in records]


def kohya_layout(records: Sequence[Record], name: str) -> list[RenamedRecord]:
    """kohya's layout: `<repeats>_<name>/a.jpg`; a folder that is already called so keeps its name."""
    moves: list[RenamedRecord] = []
    taken: set[str] = set()
    for record in records:
        path = PurePosixPath(record.file)
        own = parse_kohya_folder(path.parent.name) is not None
        flat = path.name if own or len(path.parts) == 1 else "_".join(path.parts)
        folder = path.parent.name if own else f"{record.repeats}_{name}"
        target, number = f"{folder}/{flat}", 1
        while _stem(target) in taken:
            number += 1
            target = f"{folder}/{PurePosixPath(flat).stem}_{number}{path.suffix}"
        taken.add(_stem(target))
        mask = record.mask
        if record.mask == record.file:
            mask = target
        elif mask and not mask.startswith(MADE_MASKS):
            mask = f"{_stem(target)}{SIDECAR_SUFFIX}{PurePosixPath(mask).suffix}"
        moves.append(RenamedRecord(record, replace(for_export(record), file=target, mask=mask)))
    return moves


def metadata_file(records: Sequence[Record], kind: str) -> DatasetFile:
    """`metadata.csv` or `.parquet` for ImageFolder, or kohya's `meta_cap.json`.

    Nothing in the CSV can run in a spreadsheet.
    """
    if kind == "kohya":
        pairs = {_stem(r.file): {"caption": r.caption, "tags": ", ".join(r.tags)} for r in records}
        return DatasetFile("meta_cap.json", json.dumps(pairs, ensure_ascii=False, indent=1).encode("utf-8"))
    rows = [(record.file, record.caption) for record in records]
    buffer = io.BytesIO()
    if kind == "parquet":
        import pyarrow.parquet

        table = pyarrow.table({"file_name": [r[0] for r in rows], "text": [r[1] for r in rows]})
        pyarrow.parquet.write_table(table, buffer)
    else:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(("file_name", "text"))
        writer.writerows((escape_csv_cell(file), escape_csv_cell(caption)) for file, caption in rows)
        buffer.write(text.getvalue().encode("utf-8"))
    return DatasetFile(f"metadata.{kind}", buffer.getvalue())


def write_zip(file: Any, entries: Iterator[DatasetFile]) -> int:
    """A zip of the entries, stored (pictures do not compress), the same bytes for the same data."""
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
