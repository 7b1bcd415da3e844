"""Writing of webdatasets: tars in which the files of one sample are adjacent and share a key.

`000000007.jpg`, `000000007.txt`, `000000007.json`: the key is the part before the first dot of the name
(https://github.com/webdataset/webdataset). The JSON has the manifest's line, so that nothing is lost in an
import (`webdataset_samples`).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.formats import for_export, read_verified_bytes, separate_mask_path
from lorakit import manifest
from lorakit.core import dataset_paths, storage
from lorakit.imaging import decode, signatures
from lorakit.manifest import Record

RECORD_KEY = "lorakit"  # the key of the manifest's line in a sample's JSON
SHARD_BYTES = 256 << 20
MASK_EXTENSION = ".mask"


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


def conditioning_extensions(record: Record) -> list[tuple[str, str]]:
    """Return (first part of the extension in a sample, file) of each conditioning image of a record."""
    types = [image.type for image in record.conditioning_images]
    counts: Counter[str] = Counter()
    extensions = []
    for image in record.conditioning_images:
        counts[image.type] += 1
        number = str(counts[image.type]) if types.count(image.type) > 1 else ""
        extensions.append((f".{image.type}{number}", image.file))
    return extensions


def _add_sample(archive: tarfile.TarFile, key: str, folder: Path, record: Record) -> None:
    """Add one sample: the unchanged images, the first caption, and all captions and the record as JSON."""
    data = read_verified_bytes(folder, record)
    texts = [caption.text for caption in record.captions]
    value: dict[str, Any] = {"caption": record.caption} | ({"captions": texts} if len(texts) > 1 else {})
    value |= {RECORD_KEY: manifest.record_to_json(for_export(record))}
    parts = {
        PurePosixPath(record.file).suffix.lower() or signatures.image_suffix(data): data,
        ".json": json.dumps(value, ensure_ascii=False).encode("utf-8"),
        ".txt": record.caption.encode("utf-8"),
    }
    mask = separate_mask_path(record)
    others = [*([(MASK_EXTENSION, mask)] if mask else []), *conditioning_extensions(record)]
    for start, file in others:
        content = decode.read_file(dataset_paths.file_path(folder, file))
        parts[f"{start}{PurePosixPath(file).suffix}"] = content
    for extension, content in sorted(parts.items()):
        info = tarfile.TarInfo(key + extension)
        info.size, info.mode = len(content), 0o644  # no time, no user: equal data, equal bytes
        archive.addfile(info, io.BytesIO(content))
