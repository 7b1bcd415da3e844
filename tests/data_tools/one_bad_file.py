"""One bad file through `prepare`, beside a good picture.

Set aside means: named in the manifest with its reason, counted, untouched, and the good picture is kept.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from data_tools import scan
from data_tools.prepare import PrepareOptions, PrepareResult, prepare_dataset
from lorakit import manifest
from lorakit.imaging import decode
from lorakit.manifest import Record
from tests.data_tools.folders import hashes, photo

GOOD = "good.png"


def run(folder: Path, **changes: object) -> PrepareResult:
    """Prepare, with a good picture among the rest; the user's files are as before."""
    folder.mkdir(exist_ok=True)
    photo(99).save(folder / GOOD)
    before = hashes(folder)
    given = {"resolution": 64, "class_noun": "dog", "report": False, "quiet": True, **changes}
    result = prepare_dataset(folder, PrepareOptions(**given))  # type: ignore[arg-type]
    assert hashes(folder) == before
    assert GOOD in [record.file for record in result.kept]
    return result


def set_aside(folder: Path, name: str, data: bytes | None = None, **changes: object) -> str:
    """The reason for which a file is set aside; it is in the manifest, counted, and told in the summary."""
    folder.mkdir(exist_ok=True)
    if data is not None:
        (folder / name).write_bytes(data)
    result = run(folder, **changes)
    (record,) = [record for record in manifest.load_manifest(folder) if record.file == name]
    assert not record.keep
    assert result.counts()["quarantined"] == {scan.note_code(record.reason): 1}
    assert f"{name}: {record.reason}" in result.summary()
    assert scan.note_code(record.reason) in scan.SCAN_REASONS
    return record.reason or ""


def kept(folder: Path, name: str, data: bytes | None = None, **changes: object) -> Record:
    """The record of a file that is used."""
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
