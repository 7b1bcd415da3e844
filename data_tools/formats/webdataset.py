"""webdataset: tars in which the files of one sample follow each other and share a key.

`000000007.jpg`, `000000007.txt`, `000000007.json`: what stands before the first dot of the name is the key
(https://github.com/webdataset/webdataset). lorakit's own tars carry the manifest's line in the JSON, so that
nothing is lost on the way back; those of others become images with caption files.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from data_tools.formats import Entry, mask_file, original, portable
from data_tools.formats.archives import Limits, Member, read_tar
from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.imaging import decode, signatures
from lorakit.manifest import Record

ROW = "lorakit"  # the key of the manifest's line in a sample's JSON
SHARD_BYTES = 256 << 20
_SAMPLE_FILES = 64
_MASK = ".mask"


def read(path: Path, limits: Limits) -> Iterator[Entry]:
    """The files of a tar, sample by sample; a sample of ours gets its own name and its record back."""
    for sample in _samples(read_tar(path, limits)):
        yield from _ours(path, sample) or (Entry(member.name, member.data) for member in sample)


def write(folder: Path, records: Sequence[Record], out: Path, shard_bytes: int = SHARD_BYTES) -> int:
    """Write `00000.tar`, `00001.tar`, ... of about `shard_bytes`; returns how many.

    Equal data give equal bytes.
    """
    number = shard = 0
    while number < len(records):
        target = out / f"{shard:05d}.tar"
        with storage.writing(target) as file, tarfile.open(fileobj=file, mode="w|") as archive:
            while number < len(records) and archive.offset < shard_bytes:
                _add(archive, f"{number:09d}", folder, records[number])
                number += 1
        shard += 1
    return shard


def _add(archive: tarfile.TarFile, key: str, folder: Path, record: Record) -> None:
    """One sample: the image as it is, its first caption, and everything else as JSON."""
    data = original(folder, record)
    value = {"caption": record.caption, ROW: manifest.row(portable(record))}
    parts = {
        PurePosixPath(record.file).suffix.lower() or signatures.suffix_of(data): data,
        ".json": json.dumps(value, ensure_ascii=False).encode("utf-8"),
        ".txt": record.caption.encode("utf-8"),
    }
    if mask := mask_file(record):
        parts[_MASK + PurePosixPath(mask).suffix] = decode.read_file(folder / mask)
    for extension, content in sorted(parts.items()):
        info = tarfile.TarInfo(key + extension)
        info.size, info.mode = len(content), 0o644  # no time, no user: equal data, equal bytes
        archive.addfile(info, io.BytesIO(content))


def _samples(members: Iterator[Member]) -> Iterator[list[Member]]:
    """Members with one key that follow each other."""
    sample: list[Member] = []
    for member in members:
        if sample and (_split(member.name)[0] != _split(sample[0].name)[0] or len(sample) >= _SAMPLE_FILES):
            yield sample
            sample = []
        sample.append(member)
    if sample:
        yield sample


def _split(name: str) -> tuple[str, str]:
    """(key, extension): the extension begins at the first dot of the last part."""
    path = PurePosixPath(name)
    stem, dot, extension = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, dot + extension


def _ours(path: Path, sample: list[Member]) -> list[Entry]:
    """The files of a sample that lorakit wrote, under the names its record gives; [] for others."""
    parts = {_split(member.name)[1].lower(): member for member in sample}
    try:
        value = json.loads(parts[".json"].data)[ROW]
    except (KeyError, ValueError, TypeError):
        return []
    where = f"{path}, {parts['.json'].name}"
    record = manifest.parse(json.dumps(value).encode("utf-8"), where)
    masks = [data for extension, (_, data) in parts.items() if extension.startswith(_MASK)]
    rest = [data for ending, (_, data) in parts.items() if not ending.startswith((_MASK, ".json", ".txt"))]
    if len(rest) != 1:
        raise DataError("a sample must hold one image", where=where, remedy="export the dataset again")
    made = [Entry(record.file, rest[0], record, settled=True)]
    mask = mask_file(record)
    return [*made, Entry(mask, masks[0], settled=True)] if mask and masks else made
