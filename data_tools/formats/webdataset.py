"""webdataset: tars in which the files of one sample are adjacent and share a key.

`000000007.jpg`, `000000007.txt`, `000000007.json`: the key is the part before the first dot of the name
(https://github.com/webdataset/webdataset). lorakit's own tars have the manifest's line in the JSON, so that
nothing is lost in an import; other tars become images with caption files.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from data_tools.formats import DatasetFile, for_export, read_verified_bytes, separate_mask_path
from data_tools.formats.archive_checks import ArchiveLimits, ArchiveMember
from data_tools.formats.tar_archives import read_tar
from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.core.strict_json import parse_json
from lorakit.imaging import decode, signatures
from lorakit.manifest import Record

RECORD_KEY = "lorakit"  # the key of the manifest's line in a sample's JSON
SHARD_BYTES = 256 << 20
_SAMPLE_FILES = 64
_MASK_EXTENSION = ".mask"


def read_webdataset(path: Path, limits: ArchiveLimits) -> Iterator[DatasetFile]:
    """Yield the files of a tar; a sample that lorakit wrote gets its original name and record."""
    for sample in _samples(read_tar(path, limits)):
        yield from _restore_own_sample(path, sample) or (
            DatasetFile(member.name, member.data) for member in sample
        )


def write_webdataset(
    folder: Path, records: Sequence[Record], out: Path, shard_bytes: int = SHARD_BYTES
) -> int:
    """Write `00000.tar`, `00001.tar`, ... of about `shard_bytes`; return their number.

    Equal data give equal bytes.
    """
    number = shard = 0
    while number < len(records):
        target = out / f"{shard:05d}.tar"
        with storage.open_atomic(target) as file, tarfile.open(fileobj=file, mode="w|") as archive:
            while number < len(records) and archive.offset < shard_bytes:
                _add_sample(archive, f"{number:09d}", folder, records[number])
                number += 1
        shard += 1
    return shard


def _add_sample(archive: tarfile.TarFile, key: str, folder: Path, record: Record) -> None:
    """Add one sample: the unchanged image, its first caption, and its record as JSON."""
    data = read_verified_bytes(folder, record)
    value = {"caption": record.caption, RECORD_KEY: manifest.record_to_json(for_export(record))}
    parts = {
        PurePosixPath(record.file).suffix.lower() or signatures.image_suffix(data): data,
        ".json": json.dumps(value, ensure_ascii=False).encode("utf-8"),
        ".txt": record.caption.encode("utf-8"),
    }
    if mask := separate_mask_path(record):
        parts[_MASK_EXTENSION + PurePosixPath(mask).suffix] = decode.read_file(folder / mask)
    for extension, content in sorted(parts.items()):
        info = tarfile.TarInfo(key + extension)
        info.size, info.mode = len(content), 0o644  # no time, no user: equal data, equal bytes
        archive.addfile(info, io.BytesIO(content))


def _samples(members: Iterator[ArchiveMember]) -> Iterator[list[ArchiveMember]]:
    """Group adjacent members with the same key."""
    sample: list[ArchiveMember] = []
    for member in members:
        if sample and (
            _split_key(member.name)[0] != _split_key(sample[0].name)[0] or len(sample) >= _SAMPLE_FILES
        ):
            yield sample
            sample = []
        sample.append(member)
    if sample:
        yield sample


def _split_key(name: str) -> tuple[str, str]:
    """Return key and extension; the extension starts at the first dot of the file name."""
    path = PurePosixPath(name)
    stem, dot, extension = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, dot + extension


def _restore_own_sample(path: Path, sample: list[ArchiveMember]) -> list[DatasetFile]:
    """Return the files of a sample that lorakit wrote, with the names of its record; [] for others."""
    parts = {_split_key(member.name)[1].lower(): member for member in sample}
    if ".json" not in parts:
        return []
    where = f"{path}, {parts['.json'].name}"
    try:
        sample_json = parse_json(parts[".json"].data, where)
    except DataError:  # of another program
        return []
    if not isinstance(sample_json, dict) or RECORD_KEY not in sample_json:
        return []
    record = manifest.parse_record(json.dumps(sample_json[RECORD_KEY]).encode("utf-8"), where)
    masks = [data for extension, (_, data) in parts.items() if extension.startswith(_MASK_EXTENSION)]
    image_bytes = [
        data
        for ending, (_, data) in parts.items()
        if not ending.startswith((_MASK_EXTENSION, ".json", ".txt"))
    ]
    if len(image_bytes) != 1:
        raise DataError(
            "a sample must have exactly one image", where=where, remedy="export the dataset again"
        )
    files = [DatasetFile(record.file, image_bytes[0], record, keep_name=True)]
    mask = separate_mask_path(record)
    return [*files, DatasetFile(mask, masks[0], keep_name=True)] if mask and masks else files
