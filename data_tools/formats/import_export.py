"""Import a dataset from archives and tables, and export one for other tools. Files keep their bytes.

Nothing is overwritten: an existing file with the same content is skipped, so a stopped transfer continues
when the command is repeated; one with other content is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.findings import pluralize
from data_tools.formats import (
    DatasetFile,
    folders,
    separate_mask_path,
    tables,
    tar_archives,
    webdataset,
    zip_archives,
)
from data_tools.formats.archive_checks import ArchiveLimits
from data_tools.formats.resize_on_import import resize_entries
from data_tools.listing import CAPTION_SUFFIXES
from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.folders import walk_files
from lorakit.core.progress import track_progress
from lorakit.core.visible_text import escape_name
from lorakit.manifest import Record

EXPORT_FORMATS = ("imagefolder", "kohya", "webdataset", "parquet", "zip")
BATCH_FILES, BATCH_BYTES = 256, 64 << 20  # files written with one sync
_TEXT_SUFFIXES = (*CAPTION_SUFFIXES, ".jsonl", ".csv", ".parquet")


@dataclass
class TransferResult:
    """The files that were written.

    `num_shards` counts files of a shared container (tars, tables, zip); `resize_errors` gives the reason for
    each image that was copied unchanged instead; `excluded` are files that were left out; `unread_columns`
    are columns of a table that look like captions and are not read.
    """

    path: Path
    num_images: int = 0
    num_resized: int = 0
    num_text_files: int = 0
    num_shards: int = 0
    resize_errors: dict[str, str] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)
    unread_columns: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON, for scripts."""
        return {
            "path": str(self.path),
            "num_images": self.num_images,
            "num_resized": self.num_resized,
            "num_text_files": self.num_text_files,
            "num_shards": self.num_shards,
            "resize_errors": self.resize_errors,
            "excluded": self.excluded,
            "unread_columns": self.unread_columns,
        }

    def summary(self) -> str:
        """Return the result as text, for people."""
        parts = [pluralize(self.num_images, "image")]
        parts += [f"{self.num_resized} of them resized"] if self.num_resized else []
        parts += [pluralize(self.num_text_files, "caption or metadata file")] if self.num_text_files else []
        parts += [f"in {pluralize(self.num_shards, 'file')}"] if self.num_shards else []
        lines = [f"{self.path}: {', '.join(parts)}"]
        lines += [
            f"  unreadable {escape_name(name)}, copied unchanged: {reason}"
            for name, reason in self.resize_errors.items()
        ]
        if self.unread_columns:
            names = ", ".join(map(escape_name, self.unread_columns))
            lines.append(f"  not read   {names}: looks like captions, which are read from text or caption")
        if self.excluded:
            more = f" and {len(self.excluded) - 5} more" if len(self.excluded) > 5 else ""
            lines.append(f"  excluded   {', '.join(map(escape_name, self.excluded[:5]))}{more}")
        return "\n".join(lines)


# ---- import ------------------------------------------------------------------------------------------------


def import_dataset(
    folder: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    *,
    limits: ArchiveLimits | None = None,
    short_side: int | None = None,
    quiet: bool = True,
) -> TransferResult:
    """Fill a dataset folder from zips, tars, parquet files, saved Hugging Face datasets or other folders.

    Images keep their bytes, captions become caption files; where a source carries lorakit's own records, the
    manifest is written from them. Several other sources get a subfolder each. With `short_side`, larger
    images are resized (`resize_on_import`). Raises `DataError` for a hostile or damaged archive before any of
    its files is written.
    """
    root, bounds = Path(folder), limits or ArchiveLimits()
    for source in map(Path, sources):
        if source.is_dir() and (_within(source, root) or _within(root, source)):
            remedy = "choose a folder outside the source"
            raise ConfigError("the dataset and its source overlap", where=str(root), remedy=remedy)
    parts = [part for source in sources for part in _source_files(Path(source))]
    result = TransferResult(root)
    records: dict[str, Record] = {}
    unread: set[str] = set()
    for part in track_progress(parts, "sources", len(parts), quiet=quiet):
        subfolder = (
            PurePosixPath(_archive_stem(part))
            if len(parts) > 1 and not tables.is_table(part)
            else PurePosixPath()
        )
        entries = _filter_entries(
            _with_progress(part, _entries(part, bounds, unread), quiet), subfolder, result, records
        )
        _write_files(
            root, entries if short_side is None else _resize_and_count(entries, short_side, result), part
        )
    result.unread_columns = sorted(unread)
    if not result.num_images:
        where = ", ".join(str(source) for source in sources)
        raise DataError(
            "the source has no image", where=where, remedy="give the archive or table that holds the images"
        )
    if records:
        texts = list(folders.caption_files(list(records.values())))
        _write_files(root, texts, root)
        result.num_text_files += len(texts)
        earlier = manifest.load_manifest(root) if (root / manifest.MANIFEST_FILE).is_file() else []
        manifest.save_manifest(root, [*(r for r in earlier if r.file not in records), *records.values()])
    return result


def _source_files(source: Path) -> list[Path]:
    """Return the tars of a folder, or else the source itself."""
    if not source.exists():
        raise ConfigError("the file or folder does not exist", where=str(source), remedy="correct the path")
    if not (source.is_dir() or source.is_file()):
        remedy = "give a file or a folder"
        raise ConfigError(
            "a named pipe, socket or device cannot be imported", where=str(source), remedy=remedy
        )
    tars = sorted(path for path in source.glob("*.tar*") if path.is_file()) if source.is_dir() else []
    return tars or [source]


def _entries(source: Path, limits: ArchiveLimits, unread: set[str]) -> Iterator[DatasetFile]:
    """Yield the files of one source: table, folder, zip or tar; add a table's unread columns to `unread`."""
    if tables.is_table(source):
        return tables.read_tables(source, unread)
    if source.is_dir():
        return folders.read_folder(source)
    if zip_archives.is_zip(source):
        return (DatasetFile(*member) for member in zip_archives.read_zip(source, limits))
    if tar_archives.is_tar(source):
        return webdataset.read_webdataset(source, limits)
    remedy = "give a folder, a .zip, a .tar (also .gz, .bz2, .xz), a .parquet file or a saved dataset"
    raise ConfigError("lorakit cannot read this archive or table", where=str(source), remedy=remedy)


def _with_progress(source: Path, entries: Iterator[DatasetFile], quiet: bool) -> Iterator[DatasetFile]:
    """Yield the entries, with progress if their number is known."""
    if not source.is_dir() or tables.is_table(source):
        return entries
    total = sum(1 for _ in walk_files(source))
    return track_progress(entries, "files", total, quiet=quiet)


def _filter_entries(
    entries: Iterable[DatasetFile],
    subfolder: PurePosixPath,
    result: TransferResult,
    records: dict[str, Record],
) -> Iterator[DatasetFile]:
    """Yield the entries that belong to a dataset, with their new names; list the others as excluded."""
    for entry in entries:
        if not folders.belongs_in_dataset(entry.name, entry.data):
            result.excluded.append(entry.name)
            continue
        if entry.record is not None:
            records[entry.name] = entry.record
        if PurePosixPath(entry.name).suffix.lower() in _TEXT_SUFFIXES:
            result.num_text_files += 1
        elif entry.record is not None or not entry.keep_name:
            result.num_images += 1
        yield entry if entry.keep_name else entry._replace(name=str(subfolder / entry.name))


def _resize_and_count(
    entries: Iterable[DatasetFile], short_side: int, result: TransferResult
) -> Iterator[DatasetFile]:
    """Yield the entries resized; those that cannot be read are reported, and yielded unchanged."""
    for entry, resized in resize_entries(entries, short_side):
        result.num_resized += resized.data is not None
        if resized.reason:
            result.resize_errors[entry.name] = resized.reason
        yield entry


def _archive_stem(path: Path) -> str:
    """Return the name of an archive without its extensions."""
    return path.name.partition(".")[0] or path.name


# ---- export ------------------------------------------------------------------------------------------------


def export_dataset(
    folder: str | os.PathLike[str],
    format: str,
    out: str | os.PathLike[str],
    *,
    folder_name: str | None = None,
    metadata_format: str = "jsonl",
    shard_bytes: int = webdataset.SHARD_BYTES,
    quiet: bool = True,
) -> TransferResult:
    """Write the kept images of a prepared folder for other tools; `out` is a folder, or a file for "zip".

    `folder_name` is used in the names of kohya's folders; `metadata_format` is jsonl, csv, parquet or kohya.
    Raises `ConfigError` if `out` cannot be used, `DataError` for an image that changed since it was prepared.
    """
    source, target = Path(folder), Path(out)
    if format not in EXPORT_FORMATS:
        raise ConfigError(
            f"unknown format {format!r}", where="to", remedy=f"use one of {', '.join(EXPORT_FORMATS)}"
        )
    if _within(target, source):
        remedy = "choose a path outside the dataset"
        raise ConfigError("the export would be inside the dataset", where=str(target), remedy=remedy)
    records = manifest.load_manifest(source)
    kept = [record for record in records if record.keep]
    result = TransferResult(target, num_images=len(kept))
    result.excluded = [record.file for record in records if not record.keep]
    if not kept:
        raise DataError("all images are excluded", where=str(source), remedy="see report.html in the folder")
    if format not in ("imagefolder", "zip") and any(record.conditioning_images for record in kept):
        message = f"{format} cannot store conditioning images, which this dataset has"
        raise ConfigError(message, where="to", remedy="use imagefolder or zip")
    if format in ("webdataset", "parquet"):
        _require_empty(target)
        writer = webdataset.write_webdataset if format == "webdataset" else tables.write_parquet
        result.num_shards = writer(source, kept, target, shard_bytes)
        return result
    renamed = (
        folders.kohya_layout(kept, folder_name or source.resolve().name)
        if format == "kohya"
        else folders.keep_layout(kept)
    )
    entries = folders.export_files(source, renamed)
    if format == "zip":
        _write_zip(target, entries, [pair.new for pair in renamed])
        result.num_shards = 1
        return result
    total = sum(1 + bool(record.captions) + bool(separate_mask_path(record)) for record in kept)
    _write_files(target, track_progress(entries, "files", total, quiet=quiet), source)
    if metadata_format != "jsonl":
        _write_files(target, [folders.metadata_file([pair.new for pair in renamed], metadata_format)], source)
    manifest.save_manifest(target, [pair.new for pair in renamed])
    result.num_text_files = sum(bool(record.captions) for record in kept)
    return result


def _write_zip(target: Path, entries: Iterator[DatasetFile], records: Sequence[Record]) -> None:
    if target.exists():
        raise ConfigError("the file exists", where=str(target), remedy="choose another name")
    dataset_files = [
        DatasetFile(manifest.MANIFEST_FILE, manifest.manifest_bytes(records)),
        DatasetFile(manifest.METADATA_FILE, manifest.imagefolder_metadata(records)),
    ]
    with storage.open_atomic(target) as file:
        folders.write_zip(file, (entry for group in (entries, dataset_files) for entry in group))


def _require_empty(target: Path) -> None:
    """Raise `ConfigError` if the folder has files, because old shards would be read with the new ones."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        remedy = "choose a new folder, or empty this one"
        raise ConfigError("the folder for the export is not empty", where=str(target), remedy=remedy)


# ---- both --------------------------------------------------------------------------------------------------


def _write_files(root: Path, entries: Iterable[DatasetFile], source: Path) -> None:
    """Write files into `root` in batches; an equal file stays, a different one is a `DataError`."""
    batch: dict[Path, bytes] = {}
    size = 0
    for entry in entries:
        manifest.check_dataset_path(entry.name, str(source))
        path = root / entry.name
        if path in batch or (_exists_as_file(path) and path.read_bytes() != entry.data):
            message = "another file has this name, or the source has two files of this name"
            raise DataError(message, where=str(path), remedy="choose an empty folder, or move the file away")
        if not _exists_as_file(path):
            batch[path] = entry.data
            size += len(entry.data)
        if len(batch) >= BATCH_FILES or size >= BATCH_BYTES:
            storage.write_files(batch)
            batch, size = {}, 0
    storage.write_files(batch)


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _exists_as_file(path: Path) -> bool:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise DataError("a link or folder has this name", where=str(path), remedy="move it away")
    return path.exists()
