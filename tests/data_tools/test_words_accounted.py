"""Every word of a dataset is in a caption, or named: images, captions, tables and archives in all forms."""

from __future__ import annotations

import html
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from data_tools.formats.import_export import EXPORT_FORMATS, export_dataset, import_dataset
from data_tools.formats.transfer_result import TransferResult
from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit import manifest
from lorakit.cli import main
from tests.data_tools import word_forms
from tests.data_tools.word_forms import IMAGES, Words

FORMS = {
    f"{group}: {name}": form
    for group, forms in (
        ("file", word_forms.FILES),
        ("json", word_forms.JSON_FILES),
        ("table", word_forms.TABLES),
        ("embedded", word_forms.EMBEDDED),
    )
    for name, form in forms.items()
}
FALLBACKS: dict[str, dict[str, Any]] = {
    "template": {"class_noun": "dog", "trigger": "sks"},
    "folder": {"caption_from_folder": True, "class_noun": "dog"},
    "none": {"allow_missing_captions": True},
}

# Findings that name text. Those that only list files which are not images do not count.
NAMED_IN_NOTES = {"caption_settings_unused", "caption_tags_unused"}
NAMING = NAMED_IN_NOTES | {
    "caption_columns_unread",
    "caption_conflict",
    "caption_text_unread",
    "caption_unreadable",
    "embedded_text_unread",
    "orphan_caption",
    "table_rows_unused",
    "text_file_unread",
}


def folder_with(form: word_forms.Form, folder: Path) -> Words:
    """Return the words of a form that is written into a folder with two images."""
    folder.mkdir(parents=True)
    for seed, name in enumerate(IMAGES):
        Image.effect_noise((32, 32), 50 + 40 * seed).save(folder / name)
    words = Words(folder)
    form(words)
    return words


def prepare(folder: Path, fallback: str = "template") -> list[str]:
    """Prepare a folder; return the findings that name text which is not used: code, message and files."""
    changes = {"resolution": 64, "quiet": True, "report": False, **FALLBACKS[fallback]}
    findings = prepare_dataset(folder, PrepareOptions(**changes)).findings
    return [
        f"{finding.code}: {finding.message} {' '.join(finding.files)}"
        for finding in findings
        if finding.code in NAMING and (finding.level != "note" or finding.code in NAMED_IN_NOTES)
    ]


def used_words(folder: Path) -> set[str]:
    """Return the words in the captions and tags of the manifest."""
    records = [record for record in manifest.load_manifest(folder) if record.keep]
    texts = [caption.text for record in records for caption in record.captions]
    return set(re.findall(r"\w+", " ".join([*texts, *(tag for record in records for tag in record.tags)])))


def lost_words(words: Words, used: set[str], named: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the words that are in no caption or tag, and neither themselves nor their place in a finding."""

    def is_named(word: str, place: tuple[str, ...]) -> bool:
        return any(word in text or (place and all(part in text for part in place)) for text in named)

    return {
        word: place for word, place in words.places.items() if word not in used and not is_named(word, place)
    }


@pytest.mark.parametrize(
    ("name", "fallback"), [(name, list(FALLBACKS)[number % 3]) for number, name in enumerate(FORMS)]
)
def test_every_word_of_a_folder_is_used_or_named(name: str, fallback: str, tmp_path: Path) -> None:
    words = folder_with(FORMS[name], tmp_path / "red fox")
    named = prepare(tmp_path, fallback)
    assert words.places
    assert lost_words(words, used_words(tmp_path), named) == {}
    if name.startswith("table"):
        again = prepare(tmp_path, fallback)  # with the manifest of the first time
        assert lost_words(words, used_words(tmp_path), again) == {}


def test_a_word_that_is_hidden_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The count itself can fail: without the search for unread text, words are lost."""
    for module in ("check", "captions.collect"):
        monkeypatch.setattr(f"data_tools.{module}.find_unread_text", lambda listing, records: [])
    for number, name in enumerate(("file: tags file", "embedded: xmp", "table: jsonl broken line")):
        words = folder_with(FORMS[name], tmp_path / f"{number}")
        named = prepare(tmp_path / f"{number}")
        assert len(lost_words(words, used_words(tmp_path / f"{number}"), named)) == 3


# ---- archives and tables with the images inside ------------------------------------------------------------


def many_forms(folder: Path, start: int = 0, step: int = 5) -> Words:
    """Return the words of every `step`-th form of captions, each in a folder of its own."""
    every = Words(folder)
    for number, name in enumerate(list(FORMS)[start::step]):
        own = f"form {number}"
        for word, place in folder_with(FORMS[name], folder / own).places.items():
            every.places[word] = (own, *place) if place else ()
    return every


def _zip(source: Path, target: Path) -> Path:
    with zipfile.ZipFile(target.with_suffix(".zip"), "w") as archive:
        for path in sorted(source.rglob("*")):
            archive.write(path, path.relative_to(source))
    return target.with_suffix(".zip")


def _tar(source: Path, target: Path) -> Path:
    with tarfile.open(target.with_suffix(".tar"), "w") as archive:
        archive.add(source, ".")
    return target.with_suffix(".tar")


def _folder(source: Path, target: Path) -> Path:
    return source


@pytest.mark.parametrize(("pack", "start"), [(_zip, 0), (_zip, 1), (_tar, 2), (_tar, 3), (_folder, 4)])
def test_every_word_of_an_import_is_used_or_named(pack: Any, start: int, tmp_path: Path) -> None:
    words = many_forms(tmp_path / "photos", start)
    result = import_dataset(tmp_path / "data", [pack(tmp_path / "photos", tmp_path / "packed")])
    named = prepare(tmp_path / "data")
    assert lost_words(words, used_words(tmp_path / "data"), [*named, *left_out(result)]) == {}


def left_out(result: TransferResult) -> list[str]:
    """Return what an import or export names as not used, one text for each reason."""
    reasons = [f"{row['reason']} {' '.join(row['names'])}" for row in result.left_out.to_json()]
    return [*reasons, *result.notes, *result.log.remarks]


IMAGE_TABLES: dict[str, Any] = {
    "text": lambda new: {"text": new()},
    "caption": lambda new: {"caption": new()},
    "captions": lambda new: {"captions": [new(), new()]},
    "description": lambda new: {"description": new()},
    "numbered": lambda new: {"caption_0": new(), "caption_1": new()},
    "two texts": lambda new: {"short_caption": new("short_caption"), "long_caption": new("long_caption")},
    "tags": lambda new: {"text": new(), "tags": new("tags").split()},
    "languages": lambda new: {"text": {"en": new("text"), "de": new("text")}},
    "unknown": lambda new: {"scene": new("scene"), "mood": new("mood")},
    "null": lambda new: {"text": new() if new("extra") else None, "extra": None},
}


@pytest.mark.parametrize("name", IMAGE_TABLES)
@pytest.mark.parametrize("packed", ["parquet", "webdataset"])
def test_every_word_of_a_table_of_images_is_used_or_named(name: str, packed: str, tmp_path: Path) -> None:
    if packed == "webdataset" and name == "null":
        pytest.skip("the same as text")
    words = folder_with(lambda words: None, tmp_path / "photos")
    rows = []
    for image in IMAGES:
        data = (tmp_path / "photos" / image).read_bytes()
        cells = {key: value for key, value in IMAGE_TABLES[name](words.new).items() if value is not None}
        rows.append((data, cells))
    words.places = {word: place for word, place in words.places.items() if place != ("extra",)}
    write = _write_parquet if packed == "parquet" else _write_samples
    result = import_dataset(tmp_path / "data", [write(tmp_path, rows)])
    named = prepare(tmp_path / "data")
    assert lost_words(words, used_words(tmp_path / "data"), [*named, *left_out(result)]) == {}


def _write_parquet(folder: Path, rows: list[tuple[bytes, dict[str, Any]]]) -> Path:
    cells = {key: [row[key] for _, row in rows] for key in rows[0][1]}
    images = [{"bytes": data, "path": None} for data, _ in rows]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, **cells}), folder / "rows.parquet")
    return folder / "rows.parquet"


def _write_samples(folder: Path, rows: list[tuple[bytes, dict[str, Any]]]) -> Path:
    with tarfile.open(folder / "samples.tar", "w") as archive:
        for number, (data, cells) in enumerate(rows):
            for end, content in (("png", data), ("json", json.dumps(cells).encode())):
                info = tarfile.TarInfo(f"{number:06d}.{end}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return folder / "samples.tar"


@pytest.mark.parametrize("kind", EXPORT_FORMATS)
def test_every_word_of_an_export_is_in_it_or_named(kind: str, tmp_path: Path) -> None:
    many_forms(tmp_path / "photos", EXPORT_FORMATS.index(kind))
    prepare(tmp_path / "photos", "none")
    words = Words(tmp_path)
    for record in manifest.load_manifest(tmp_path / "photos"):
        texts = [*(caption.text for caption in record.captions), *record.tags]
        words.places |= dict.fromkeys(re.findall(r"\w+", " ".join(texts)), (record.file,))
    out = tmp_path / ("out.zip" if kind == "zip" else "out")
    result = export_dataset(tmp_path / "photos", kind, out)
    for own in (manifest.MANIFEST_FILE, manifest.METADATA_FILE):
        (out / own).unlink(missing_ok=True) if out.is_dir() else None
    import_dataset(tmp_path / "data", [out])
    prepare(tmp_path / "data", "none")
    assert len(words.places) > 40
    assert lost_words(words, used_words(tmp_path / "data"), left_out(result)) == {}


def test_the_report_and_its_json_show_the_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many_forms(tmp_path / "photos", step=12)
    command = ["data", "prepare", str(tmp_path / "photos"), "--class-noun", "dog", "--resolution", "64"]
    assert main.main([*command, "--json"]) == 0
    warnings = {row["message"] for row in json.loads(capsys.readouterr().out)["warnings"]}
    report = json.loads((tmp_path / "photos/report.json").read_text(encoding="utf-8"))
    assert warnings == {row["message"] for row in report["findings"] if row["level"] != "note"}
    page = html.unescape((tmp_path / "photos/report.html").read_text(encoding="utf-8"))
    assert all(message.partition("; ")[0][:70] in page for message in warnings)
    assert main.main(["data", "check", str(tmp_path / "photos"), "--class-noun", "dog", "--json"]) == 0
    found = {row["message"] for row in json.loads(capsys.readouterr().out)["findings"]}
    assert {message for message in warnings if "caption" in message} <= found
