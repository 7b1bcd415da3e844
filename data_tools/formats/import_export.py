"""Bring a dataset in from archives and tables, and take one out for other tools. Files keep their bytes.

Nothing is overwritten: a file that is there already with the same content is passed over, so a stopped
transfer goes on when the command is given again; one with other content is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.findings import escape_for_terminal, pluralize
from data_tools.formats import DatasetFile, archives, folders, separate_mask_path, tables, webdataset
from data_tools.formats.archives import ArchiveLimits
from data_tools.formats.shrink import resize_entries
from data_tools.listing import CAPTION_SUFFIXES
from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.progress import track_progress
from lorakit.manifest import Record

EXPORT_FORMATS = ("imagefolder", "kohya", "webdataset", "parquet", "zip")
BATCH_FILES, BATCH_BYTES = 256, 64 << 20  # written with one sync
_TEXTS = (*CAPTION_SUFFIXES, ".jsonl", ".csv", ".parquet")


@dataclass
class TransferResult:
    """What was moved: images, how many of them made smaller, which files were not and why, other
    files, files of a shared container (tars, tables), what was left out."""

    target: Path
    images: int = 0
    smaller: int = 0
    texts: int = 0
    containers: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "target": str(self.target),
            "images": self.images,
            "smaller": self.smaller,
            "texts": self.texts,
            "containers": self.containers,
            "refused": self.refused,
            "skipped": self.skipped,
        }

    def summary(self) -> str:
        """For people."""
        parts = [pluralize(self.images, "image")]
        parts += [f"{self.smaller} of them made smaller"] if self.smaller else []
        parts += [pluralize(self.texts, "caption or metadata file")] if self.texts else []
        parts += [f"in {pluralize(self.containers, 'file')}"] if self.containers else []
        lines = [f"{self.target}: {', '.join(parts)}"]
        lines += [
            f"  refused    {escape_for_terminal(name)}, copied as it is: {reason}"
            for name, reason in self.refused.items()
        ]
        if self.skipped:
            more = f" and {len(self.skipped) - 5} more" if len(self.skipped) > 5 else ""
            lines.append(f"  left out   {', '.join(map(escape_for_terminal, self.skipped[:5]))}{more}")
        return "\n".join(lines)


# ---- in ----------------------------------------------------------------------------------------------------


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
    manifest is written from them. Files of several foreign sources go to a subfolder for each. With
    `short_side`, larger pictures are made smaller (`shrink`). Raises `DataError` for a hostile or damaged
    archive before anything of it is written.
    """
    root, bounds = Path(folder), limits or ArchiveLimits()
    for source in map(Path, sources):
        if source.is_dir() and (_within(source, root) or _within(root, source)):
            remedy = "choose a folder beside it"
            raise ConfigError("the dataset and its source lie in each other", where=str(root), remedy=remedy)
    found = [part for source in sources for part in _source_files(Path(source))]
    done = TransferResult(root)
    records: dict[str, Record] = {}
    for part in track_progress(found, "sources", len(found), quiet=quiet):
        below = (
            PurePosixPath(_archive_stem(part))
            if len(found) > 1 and not tables.is_table(part)
            else PurePosixPath()
        )
        entries = _filter_entries(_with_progress(part, _entries(part, bounds), quiet), below, done, records)
        _write_files(
            root, entries if short_side is None else _resize_and_count(entries, short_side, done), part
        )
    if not done.images:
        where = ", ".join(str(source) for source in sources)
        raise DataError(
            "no image in it", where=where, remedy="give the archive or table that holds the images"
        )
    if records:
        texts = list(folders.caption_files(list(records.values())))
        _write_files(root, texts, root)
        done.texts += len(texts)
        earlier = manifest.load_manifest(root) if (root / manifest.MANIFEST_FILE).is_file() else []
        manifest.save_manifest(root, [*(r for r in earlier if r.file not in records), *records.values()])
    return done


def _source_files(source: Path) -> list[Path]:
    """The archives of a folder of tars, else the source itself."""
    if not source.exists():
        raise ConfigError("there is no such file or folder", where=str(source), remedy="correct the path")
    tars = sorted(path for path in source.glob("*.tar*") if path.is_file()) if source.is_dir() else []
    return tars or [source]


def _entries(source: Path, limits: ArchiveLimits) -> Iterator[DatasetFile]:
    """The files of one source, by what it is."""
    if tables.is_table(source):
        return tables.read_tables(source)
    if source.is_dir():
        return folders.read_folder(source)
    if archives.is_zip(source):
        return (DatasetFile(*member) for member in archives.read_zip(source, limits))
    if archives.is_tar(source):
        return webdataset.read_webdataset(source, limits)
    remedy = "give a folder, a .zip, a .tar (also .gz, .bz2, .xz), a .parquet file or a saved dataset"
    raise ConfigError("not an archive or table that lorakit reads", where=str(source), remedy=remedy)


def _with_progress(source: Path, entries: Iterator[DatasetFile], quiet: bool) -> Iterator[DatasetFile]:
    """The entries with progress, where it is known how many they are."""
    if not source.is_dir() or tables.is_table(source):
        return entries
    total = sum(len(names) for *_, names in os.walk(source))
    return track_progress(entries, "files", total, quiet=quiet)


def _filter_entries(
    entries: Iterable[DatasetFile], below: PurePosixPath, done: TransferResult, records: dict[str, Record]
) -> Iterator[DatasetFile]:
    """The entries that belong into a dataset, under the names that they get; the others are counted."""
    for entry in entries:
        if not folders.belongs_in_dataset(entry.name, entry.data):
            done.skipped.append(entry.name)
            continue
        if entry.record is not None:
            records[entry.name] = entry.record
        if PurePosixPath(entry.name).suffix.lower() in _TEXTS:
            done.texts += 1
        elif entry.record is not None or not entry.settled:
            done.images += 1
        yield entry if entry.settled else entry._replace(name=str(below / entry.name))


def _resize_and_count(
    entries: Iterable[DatasetFile], short_side: int, done: TransferResult
) -> Iterator[DatasetFile]:
    """The entries made smaller, and counted; those that cannot be read are named, and come as they are."""
    for entry, made in resize_entries(entries, short_side):
        done.smaller += made.data is not None
        if made.reason:
            done.refused[entry.name] = made.reason
        yield entry


def _archive_stem(path: Path) -> str:
    """The name of an archive without its endings."""
    return path.name.partition(".")[0] or path.name


# ---- out ---------------------------------------------------------------------------------------------------


def export_dataset(
    folder: str | os.PathLike[str],
    kind: str,
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    metadata: str = "jsonl",
    shard_bytes: int = webdataset.SHARD_BYTES,
    quiet: bool = True,
) -> TransferResult:
    """Write the kept images of a prepared folder for other tools; `out` is a folder, or a file for "zip".

    `name` is what kohya's folders are called after their number; `metadata` the kind of the metadata file
    beside the images (jsonl, csv, parquet, kohya). Raises `ConfigError` for a place that cannot be used,
    `DataError` for an image that changed since it was prepared.
    """
    source, target = Path(folder), Path(out)
    if kind not in EXPORT_FORMATS:
        raise ConfigError(
            f"unknown format {kind!r}", where="to", remedy=f"use one of {', '.join(EXPORT_FORMATS)}"
        )
    if _within(target, source):
        remedy = "choose a place beside it"
        raise ConfigError("the export would lie inside the dataset", where=str(target), remedy=remedy)
    records = manifest.load_manifest(source)
    kept = [record for record in records if record.keep]
    done = TransferResult(target, images=len(kept))
    done.skipped = [record.file for record in records if not record.keep]
    if not kept:
        raise DataError("no image is kept", where=str(source), remedy="see report.html in the folder")
    if kind not in ("imagefolder", "zip") and any(record.given for record in kept):
        message = f"{kind} has no place for sources and controls, which these images come with"
        raise ConfigError(message, where="to", remedy="use imagefolder or zip")
    if kind in ("webdataset", "parquet"):
        _require_empty(target)
        writer = webdataset.write_webdataset if kind == "webdataset" else tables.write_parquet
        done.containers = writer(source, kept, target, shard_bytes)
        return done
    moves = (
        folders.kohya_layout(kept, name or source.resolve().name)
        if kind == "kohya"
        else folders.keep_layout(kept)
    )
    entries = folders.export_files(source, moves)
    if kind == "zip":
        _write_zip(target, entries, [move.new for move in moves])
        done.containers = 1
        return done
    total = sum(1 + bool(record.captions) + bool(separate_mask_path(record)) for record in kept)
    _write_files(target, track_progress(entries, "files", total, quiet=quiet), source)
    if metadata != "jsonl":
        _write_files(target, [folders.metadata_file([move.new for move in moves], metadata)], source)
    manifest.save_manifest(target, [move.new for move in moves])
    done.texts = sum(bool(record.captions) for record in kept)
    return done


def _write_zip(target: Path, entries: Iterator[DatasetFile], records: Sequence[Record]) -> None:
    if target.exists():
        raise ConfigError("the file exists", where=str(target), remedy="choose another name")
    own = [
        DatasetFile(manifest.MANIFEST_FILE, manifest.manifest_bytes(records)),
        DatasetFile(manifest.METADATA_FILE, manifest.imagefolder_metadata(records)),
    ]
    with storage.open_atomic(target) as file:
        folders.write_zip(file, (entry for group in (entries, own) for entry in group))


def _require_empty(target: Path) -> None:
    """Shards of another export among these would be read with them."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        remedy = "choose a new folder, or empty this one"
        raise ConfigError("the folder for the export is not empty", where=str(target), remedy=remedy)


# ---- both --------------------------------------------------------------------------------------------------


def _write_files(root: Path, entries: Iterable[DatasetFile], source: Path) -> None:
    """Write files below `root`, many at a time; equal ones stay, different ones are an error."""
    batch: dict[Path, bytes] = {}
    size = 0
    for entry in entries:
        manifest.check_dataset_path(entry.name, str(source))
        path = root / entry.name
        if path in batch or (_exists_as_file(path) and path.read_bytes() != entry.data):
            message = "another file of this name is there, or the source names it twice"
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
        raise DataError("a link or folder of this name is there", where=str(path), remedy="move it away")
    return path.exists()
