"""Files of one part of an import: those of a dataset with their new names; all others are named.

A manifest in the source is not copied: its records join those of the dataset folder, with the new names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from data_tools.conditioning.attach import CONTROL_FOLDER
from data_tools.conditioning.masks import MASK_FOLDER, SIDECAR_SUFFIX
from data_tools.formats import DatasetFile, tables, webdataset_samples, zip_archives
from data_tools.formats.archive_checks import ArchiveLimits
from data_tools.formats.column_roles import ColumnChoice
from data_tools.formats.import_parts import Part, split_names
from data_tools.formats.members import hidden_folder, is_text_file, reason_to_leave_out, with_prefix
from data_tools.formats.transfer_result import TransferResult
from lorakit import manifest
from lorakit.core.progress import Progress
from lorakit.imaging import decode
from lorakit.imaging.decode import ImageError
from lorakit.manifest import Record

_MEGABYTE = 1 << 20


@dataclass
class ImportedRecords:
    """Records of the sources by their new names: `described` ones have their captions in no other file."""

    described: dict[str, Record] = field(default_factory=dict)
    copied: dict[str, Record] = field(default_factory=dict)


def part_entries(
    part: Part,
    limits: ArchiveLimits,
    choice: ColumnChoice,
    result: TransferResult,
    records: ImportedRecords,
    *,
    quiet: bool,
) -> Iterator[DatasetFile]:
    """Yield the files to write of one part; print the progress in megabytes."""
    result.log.add_splits(split_names(part))
    source = _read_part(part, limits, choice, result)
    yield from _filter_entries(_with_progress(source, part.num_bytes(), quiet=quiet), part, result, records)


def _read_part(
    part: Part, limits: ArchiveLimits, choice: ColumnChoice, result: TransferResult
) -> Iterator[DatasetFile]:
    if part.kind == "tables":
        return tables.read_tables(part.files, part.folder, choice, result.log)
    if part.kind == "tar":
        return webdataset_samples.read_webdataset(part.path, limits, choice, result.log)
    if part.kind == "zip":
        return (DatasetFile(*member) for member in zip_archives.read_zip(part.path, limits))
    return _read_files(part, result)


def _read_files(part: Part, result: TransferResult) -> Iterator[DatasetFile]:
    """Yield the plain files of a folder; one that cannot be read is named."""
    for name, path in part.files:
        if path.resolve() in part.folder.read_by_tables:
            continue  # it is in the dataset, with the caption of its row
        try:
            with open(path, "rb") as file:
                reason = reason_to_leave_out(name, file.read(16))
            if reason is None:
                yield DatasetFile(name, decode.read_file(path))
                continue
        except (OSError, ImageError) as error:
            reason = getattr(error, "reason", None) or f"it cannot be read: {error}"
        result.left_out.add("file", reason, name)


def _with_progress(entries: Iterator[DatasetFile], num_bytes: int, *, quiet: bool) -> Iterator[DatasetFile]:
    total = max(1, num_bytes // _MEGABYTE)
    size = 0
    with Progress("MB imported", total, quiet=quiet) as progress:
        for entry in entries:
            size += len(entry.data)
            yield entry
            progress.update(min(total, size // _MEGABYTE))
        progress.update(total)


def _filter_entries(
    entries: Iterable[DatasetFile], part: Part, result: TransferResult, records: ImportedRecords
) -> Iterator[DatasetFile]:
    """Yield the entries that belong to a dataset, with their new names; name the others."""
    own: dict[str, bytes] = {}
    for entry in entries:
        if entry.record is not None:
            records.described[entry.name] = entry.record
        if entry.keep_name:
            _count(entry, result)
            yield entry
        elif entry.name in (manifest.MANIFEST_FILE, manifest.METADATA_FILE) and part.kind != "tables":
            own[entry.name] = entry.data
        elif folder := hidden_folder(entry.name):
            result.left_out.add("folder", "a hidden folder, or one of the system", folder)
        elif reason := reason_to_leave_out(entry.name, entry.data):
            result.left_out.add("file", reason, entry.name)
        else:
            renamed = entry._replace(name=with_prefix(entry.name, part.prefix))
            _count(renamed, result)
            yield renamed
    copied = _parse_manifest(own.get(manifest.MANIFEST_FILE, b""), str(part.path))
    records.copied |= {new.file: new for new in (_renamed(record, part.prefix) for record in copied)}
    metadata = own.get(manifest.METADATA_FILE)
    if metadata is not None and metadata != manifest.imagefolder_metadata(copied):
        result.num_text_files += 1
        yield DatasetFile(with_prefix(manifest.METADATA_FILE, part.prefix), metadata)


def _count(entry: DatasetFile, result: TransferResult) -> None:
    path = PurePosixPath(entry.name)
    if entry.record is None and is_text_file(entry.name):
        result.num_text_files += 1
    elif entry.record is None and (path.parts[0] == MASK_FOLDER or path.stem.endswith(SIDECAR_SUFFIX)):
        result.num_masks += 1
    elif entry.record is None and (entry.keep_name or _is_conditioning(path)):
        result.num_conditioning_images += 1
    else:
        result.num_images += 1


def _is_conditioning(path: PurePosixPath) -> bool:
    label = PurePosixPath(path.stem).suffix.lstrip(".").rstrip("0123456789")
    return path.parts[0] == CONTROL_FOLDER or label in manifest.CONDITIONING_IMAGE_TYPES


def _parse_manifest(data: bytes, where: str) -> list[Record]:
    lines = enumerate(data.split(b"\n"), 1)
    place = f"{where}: {manifest.MANIFEST_FILE}"
    return [manifest.parse_record(line, f"{place}, line {number}") for number, line in lines if line.strip()]


def _renamed(record: Record, prefix: PurePosixPath) -> Record:
    """Return the record with the names that its files have below `prefix`."""
    conditioning = tuple(
        replace(image, file=with_prefix(image.file, prefix)) for image in record.conditioning_images
    )
    mask = None if record.mask is None else with_prefix(record.mask, prefix)
    return replace(record, file=with_prefix(record.file, prefix), mask=mask, conditioning_images=conditioning)
