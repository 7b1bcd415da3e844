"""One bad file through `prepare`, beside a good image.

Excluded means: in the manifest with its reason, counted, unchanged, and the good image is kept.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from data_tools import scan
from data_tools.prepare import Dataset, PrepareOptions, prepare_dataset
from lorakit import manifest
from lorakit.imaging import decode
from lorakit.manifest import Record
from tests.data_tools.folders import hashes, photo

GOOD = "good.png"


def run(folder: Path, **changes: object) -> Dataset:
    """Prepare a folder with a good image; check that the user's files do not change."""
    folder.mkdir(exist_ok=True)
    photo(99).save(folder / GOOD)
    before = hashes(folder)
    given = {"resolution": 64, "class_noun": "dog", "report": False, "quiet": True, **changes}
    result = prepare_dataset(folder, PrepareOptions(**given))  # type: ignore[arg-type]
    assert hashes(folder) == before
    assert GOOD in [record.file for record in result.kept]
    return result


def exclusion_reason(folder: Path, name: str, data: bytes | None = None, **changes: object) -> str:
    """Return the reason why a file is excluded; it is in the manifest, the counts and the summary."""
    folder.mkdir(exist_ok=True)
    if data is not None:
        (folder / name).write_bytes(data)
    result = run(folder, **changes)
    (record,) = [record for record in manifest.load_manifest(folder) if record.file == name]
    assert not record.keep
    assert result.counts()["excluded"] == {scan.note_code(record.reason): 1}
    assert f"{name}: {record.reason}" in result.summary()
    assert scan.note_code(record.reason) in scan.SCAN_REASONS
    return record.reason or ""


def kept(folder: Path, name: str, data: bytes | None = None, **changes: object) -> Record:
    """Return the record of a file that is used."""
    folder.mkdir(exist_ok=True)
    if data is not None:
        (folder / name).write_bytes(data)
    (record,) = [record for record in run(folder, **changes).kept if record.file == name]
    assert decode.read_record_image(folder, record).size == record.size
    return record


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def codes(record: Record) -> set[str]:
    return {scan.note_code(note) for note in record.notes}
