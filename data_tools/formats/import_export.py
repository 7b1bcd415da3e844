"""Import a dataset from archives and tables, and export one for other tools. Files keep their bytes.

Nothing is overwritten: an existing file with the same content is skipped, so a stopped transfer continues
when the command is repeated; one with other content is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data_tools.formats import (
    DatasetFile,
    folders,
    for_export,
    import_parts,
    separate_mask_path,
    tables,
    webdataset,
)
from data_tools.formats.archive_checks import ArchiveLimits
from data_tools.formats.column_roles import ColumnChoice
from data_tools.formats.import_files import ImportedRecords, part_entries
from data_tools.formats.resize_on_import import resize_entries
from data_tools.formats.trainer_config import config_file, usage_notes
from data_tools.formats.trainer_files import TrainerExport
from data_tools.formats.trainers import TRAINERS, trainer_layout
from data_tools.formats.transfer_result import TransferResult
from lorakit import manifest
from lorakit.core import dataset_paths, storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.progress import track_progress
from lorakit.manifest import Record

EXPORT_FORMATS = ("imagefolder", *TRAINERS, "webdataset", "parquet", "zip")
BATCH_FILES, BATCH_BYTES = 256, 64 << 20  # files written with one sync


# ---- import ------------------------------------------------------------------------------------------------


def import_dataset(
    folder: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    *,
    limits: ArchiveLimits | None = None,
    short_side: int | None = None,
    choice: ColumnChoice | None = None,
    splits: Sequence[str] = (),
    follow_links: bool = False,
    quiet: bool = True,
) -> TransferResult:
    """Fill a dataset folder from zips, tars, parquet files, saved Hugging Face datasets or other folders.

    Images keep their bytes, captions become caption files; where a source carries lorakit's own records, they
    join the manifest. Several sources get a subfolder each, and so do splits; `splits` chooses some. `choice`
    names the columns of tables to read. With `short_side`, larger images are resized (`resize_on_import`).
    Everything that is not imported is in the result. Raises `DataError` for a hostile or damaged archive
    before any of its files is written.
    """
    root = Path(folder)
    for source in map(Path, sources):
        if source.is_dir() and (_within(source, root) or _within(root, source)):
            remedy = "choose a folder outside the source"
            raise ConfigError("the dataset and its source overlap", where=str(root), remedy=remedy)
    result, records = TransferResult(root), ImportedRecords()
    parts = import_parts.plan_parts(
        [Path(source) for source in sources], result.left_out, splits=splits, follow_links=follow_links
    )
    for part in parts:
        entries = part_entries(
            part, limits or ArchiveLimits(), choice or ColumnChoice(), result, records, quiet=quiet
        )
        resized = entries if short_side is None else _resize_and_count(entries, short_side, result)
        _write_files(root, resized, part.path)
    if not result.num_images:
        raise _no_image_error(sources, result)
    _save_records(root, records, result)
    return result


def _no_image_error(sources: Sequence[str | os.PathLike[str]], result: TransferResult) -> DataError:
    reasons = [line.strip().removeprefix("left out").strip() for line in result.left_out.lines()]
    message = "the source has no image" + "".join(f"; not used: {reason}" for reason in reasons[:3])
    remedy = "give the archive or table that holds the images"
    return DataError(message, where=", ".join(map(str, sources)), remedy=remedy)


def _save_records(root: Path, records: ImportedRecords, result: TransferResult) -> None:
    """Write the manifest, in which earlier records stay, and captions that only the records have."""
    if not (records.described or records.copied):
        return
    texts = list(folders.caption_files(list(records.described.values())))
    _write_files(root, texts, root)
    result.num_text_files += len(texts)
    earlier = manifest.load_manifest(root) if (root / manifest.MANIFEST_FILE).is_file() else []
    merged = records.described | records.copied | {record.file: record for record in earlier}
    manifest.save_manifest(root, merged.values())


def _resize_and_count(
    entries: Iterable[DatasetFile], short_side: int, result: TransferResult
) -> Iterator[DatasetFile]:
    """Yield the entries resized; those that cannot be read are reported, and yielded unchanged."""
    for entry, resized in resize_entries(entries, short_side):
        result.num_resized += resized.data is not None
        if resized.reason:
            result.resize_errors[entry.name] = resized.reason
        yield entry


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

    `folder_name` is used in the names of the folders for trainers; `metadata_format` is jsonl, csv, parquet
    or kohya. Everything that the format cannot carry is in the result. Raises `ConfigError` if `out` cannot
    be used, `DataError` for an image that changed since it was prepared.
    """
    source, target = Path(folder), Path(out)
    _check_export(source, format, target)
    records = manifest.load_manifest(source)
    kept = [record for record in records if record.keep]
    result = TransferResult(target, num_images=len(kept))
    result.left_out.extend("image", ((r.file, r.reason or "excluded") for r in records if not r.keep))
    if not kept:
        raise DataError("all images are excluded", where=str(source), remedy="see report.html in the folder")
    if format in TRAINERS:
        pairs = trainer_layout(
            source, kept, TRAINERS[format], folder_name or source.resolve().name, result.left_out
        )
        export = TrainerExport(source, pairs, TRAINERS[format], result.left_out)
        _export_for_trainer(export, target, result, metadata_format, quiet=quiet)
    elif format in ("webdataset", "parquet"):
        _require_empty(target)
        writer = webdataset.write_webdataset if format == "webdataset" else tables.write_parquet
        result.num_shards = writer(source, kept, target, shard_bytes)
    else:
        exported = [for_export(record) for record in kept]
        result.notes += folders.layout_notes(exported)
        if format == "zip":
            _write_zip(target, folders.export_files(source, exported), exported)
            result.num_shards = 1
        else:
            files = folders.export_files(source, exported)
            _write_dataset(target, files, exported, metadata_format, source, quiet=quiet)
            result.num_text_files = sum(bool(record.captions) for record in exported)
    return result


def _check_export(source: Path, format: str, target: Path) -> None:
    """Raise `ConfigError` for an unknown format, or a target inside the dataset."""
    if format not in EXPORT_FORMATS:
        raise ConfigError(
            f"unknown format {format!r}", where="to", remedy=f"use one of {', '.join(EXPORT_FORMATS)}"
        )
    if _within(target, source) or _within(target, dataset_paths.image_folder(source)):
        remedy = "choose a path outside the dataset"
        raise ConfigError("the export would be inside the dataset", where=str(target), remedy=remedy)


def _export_for_trainer(
    export: TrainerExport, target: Path, result: TransferResult, metadata_format: str, *, quiet: bool
) -> None:
    """Write the folders that another trainer reads, and its configuration."""
    planned = [pair.new for pair in export.pairs]
    if not planned:
        message = f"{export.trainer.name} can read none of the images"
        raise DataError(message, where=str(export.folder), remedy="see what it reads in examples/data.md")
    files = track_progress(export.files(), "files", _num_files(planned), quiet=quiet)
    _write_files(target, files, export.folder)
    _write_manifest(target, export.records, metadata_format, export.folder)
    config = config_file(target, export.records, export.trainer)
    if config is not None:
        _write_files(target, [config], export.folder)
    result.num_images, result.num_masks = len(planned), sum(bool(record.mask) for record in planned)
    result.num_conditioning_images = sum(len(record.conditioning_images) for record in planned)
    result.num_text_files = sum(bool(record.captions) for record in planned)
    result.notes += [*export.notes(), *usage_notes(target, export.records, export.trainer)]


def _write_dataset(
    target: Path,
    files: Iterator[DatasetFile],
    records: Sequence[Record],
    metadata_format: str,
    source: Path,
    *,
    quiet: bool,
) -> None:
    _write_files(target, track_progress(files, "files", _num_files(records), quiet=quiet), source)
    _write_manifest(target, records, metadata_format, source)


def _write_manifest(target: Path, records: Sequence[Record], metadata_format: str, source: Path) -> None:
    """Write the manifest, and the metadata file in its format."""
    if metadata_format != "jsonl":  # first: a manifest beside it does without metadata.jsonl
        _write_files(target, [folders.metadata_file(records, metadata_format)], source)
    manifest.save_manifest(target, records)


def _num_files(records: Sequence[Record]) -> int:
    return sum(
        1 + bool(r.captions) + bool(separate_mask_path(r)) + len(r.conditioning_images) for r in records
    )


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
        if batch.get(path, entry.data) != entry.data or (
            _exists_as_file(path) and path.read_bytes() != entry.data
        ):
            message = "another file has this name, or the source has two files of this name"
            raise DataError(message, where=str(path), remedy="choose an empty folder, or move the file away")
        if path not in batch and not _exists_as_file(path):
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
