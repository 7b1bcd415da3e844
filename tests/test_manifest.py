"""The manifest: strict reading, canonical writing, and metadata.jsonl for ImageFolder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest

from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.data import fingerprints
from lorakit.manifest import Caption, Record

HASH = "ab" * 32


def record(file: str = "a.png", **changes: object) -> Record:
    plain = Record(file, HASH, HASH, 64, 48, captions=(Caption(f"a photo of {file}", "file"),))
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def sample_records() -> list[Record]:
    return [
        record(
            "ü/ß \U0001f600\n%s.png",
            captions=(Caption("été", "model", "captioner", "describe"), Caption("b", "file")),
            tags=("x", "y"),
            notes=("transparency: over #ffffff",),
            crop=(0, 0, 48, 48),
            bucket=(64, 64),
            mask="masks/a.png",
            phash="0" * 16,
            repeats=3,
            background="#ffffff",
        ),
        Record("broken.jpg", "", "", 0, 0, keep=False, reason="truncated: cut off"),
        record("a.png"),
    ]


def write(folder: Path, *rows: dict[str, object] | str) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / manifest.MANIFEST_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def row(**changes: object) -> dict[str, object]:
    return {"file": "a.png", "sha256": HASH, "content_hash": HASH, "width": 64, "height": 48, **changes}


def test_saved_records_are_loaded_again(tmp_path: Path) -> None:
    manifest.save_manifest(tmp_path, sample_records())
    assert manifest.load_manifest(tmp_path) == sorted(sample_records(), key=lambda r: r.file)
    assert (tmp_path / manifest.MANIFEST_FILE).read_text().count("\n") == 3
    assert manifest.load_manifest(tmp_path)[0].caption == "a photo of a.png"
    assert record(captions=()).caption == ""


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    manifest.save_manifest(tmp_path / "one", sample_records())
    manifest.save_manifest(tmp_path / "two", sample_records()[::-1])
    manifest.save_manifest(tmp_path / "three", manifest.load_manifest(tmp_path / "one"))
    for name in (manifest.MANIFEST_FILE, manifest.METADATA_FILE):
        one = (tmp_path / "one" / name).read_bytes()
        assert one == (tmp_path / "two" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()


def test_metadata_jsonl_lists_the_kept_images(tmp_path: Path) -> None:
    manifest.save_manifest(tmp_path, sample_records())
    rows = [json.loads(line) for line in (tmp_path / manifest.METADATA_FILE).read_text().splitlines()]
    assert rows == [
        {"file_name": "a.png", "text": "a photo of a.png"},
        {"file_name": "ü/ß \U0001f600\n%s.png", "text": "été"},
    ]


def test_metadata_files_of_the_user_are_never_overwritten(tmp_path: Path) -> None:
    theirs = b'{"file_name": "a.png", "text": "mine"}\n'
    (tmp_path / manifest.METADATA_FILE).write_bytes(theirs)
    for name in ("a.png", "b.png"):
        manifest.save_manifest(tmp_path, [record(name, notes=(manifest.USER_METADATA_NOTE,))])
        assert (tmp_path / manifest.METADATA_FILE).read_bytes() == theirs
    assert manifest.user_metadata_files(tmp_path) == [tmp_path / manifest.METADATA_FILE]


def test_metadata_that_contradicts_the_manifest_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    manifest.save_manifest(tmp_path, [record()])
    assert manifest.user_metadata_files(tmp_path) == []
    before = (tmp_path / manifest.MANIFEST_FILE).read_bytes()
    edited = (tmp_path / manifest.METADATA_FILE).read_text().replace("photo", "drawing")
    (tmp_path / manifest.METADATA_FILE).write_text(edited)
    with pytest.raises(DataError, match=r"contradict each other about 'a\.png'") as caught:
        manifest.save_manifest(tmp_path, [record(), record("b.png")])
    assert "delete metadata.jsonl" in str(caught.value)
    assert (tmp_path / manifest.METADATA_FILE).read_text() == edited
    assert (tmp_path / manifest.MANIFEST_FILE).read_bytes() == before


def test_a_metadata_file_with_rows_of_the_user_is_not_overwritten(tmp_path: Path) -> None:
    manifest.save_manifest(tmp_path, [record()])
    more = (tmp_path / manifest.METADATA_FILE).read_text() + '{"file_name": "new.png", "text": "mine"}\n'
    (tmp_path / manifest.METADATA_FILE).write_text(more)
    manifest.save_manifest(tmp_path, [record(), record("new.png")])
    assert (tmp_path / manifest.METADATA_FILE).read_text() == more


def test_metadata_jsonl_is_updated_with_the_manifest(tmp_path: Path) -> None:
    manifest.save_manifest(tmp_path, [record(), record("b.png")])
    changed = record(captions=(Caption("new words", "file"),))
    manifest.save_manifest(tmp_path, [changed, record("b.png", keep=False, reason="user: no")])
    assert (tmp_path / manifest.METADATA_FILE).read_text() == '{"file_name": "a.png", "text": "new words"}\n'


@pytest.mark.parametrize("stop", range(1, 14))
def test_a_crash_between_the_two_files_leaves_no_contradiction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    manifest.save_manifest(tmp_path, [record()])
    changed = [record(captions=(Caption("new words", "file"),))]
    operations: list[str] = []

    def crash(name: str, path: Path) -> None:
        operations.append(name)
        if len(operations) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(storage, "io_hook", crash)
    with contextlib.suppress(KeyboardInterrupt):
        manifest.save_manifest(tmp_path, changed)
    monkeypatch.undo()
    manifest.save_manifest(tmp_path, changed)
    assert manifest.load_manifest(tmp_path) == changed
    assert (tmp_path / manifest.METADATA_FILE).read_text() == '{"file_name": "a.png", "text": "new words"}\n'


def test_metadata_that_the_captions_come_from_belongs_to_the_user_even_if_equal(tmp_path: Path) -> None:
    (tmp_path / manifest.METADATA_FILE).write_text('{"file_name": "a.png", "text": "mine"}\n')
    manifest.save_manifest(
        tmp_path, [record(captions=(Caption("mine", "file"),), notes=(manifest.USER_METADATA_NOTE,))]
    )
    assert manifest.user_metadata_files(tmp_path) == [tmp_path / manifest.METADATA_FILE]


def test_no_metadata_jsonl_is_written_beside_a_csv_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\n")
    manifest.save_manifest(tmp_path, [record()])
    assert not (tmp_path / manifest.METADATA_FILE).exists()  # ImageFolder refuses two kinds of metadata


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{nonsense", "JSON"),
        ("[1]", "object"),
        (row(colour="red"), "colour"),
        ({"file": "a.png"}, "sha256"),
        (row(width="64"), "width"),
        (row(width=64.5), "width"),
        (row(keep="no"), "keep"),
        (row(keep=False), "without a reason"),
        (row(captions=[{"text": "x"}]), "source"),
        (row(captions=[{"text": "x", "source": "s", "lang": "en"}]), "lang"),
        (row(captions="a dog"), "captions"),
        (row(width=0), "0x48"),
        (row(content_hash=""), "hexadecimal"),
        (row(crop=[0, 0, 65, 48]), "crop"),
        (row(crop=[5, 0, 5, 48]), "crop"),
        (row(bucket=[0, 64]), "bucket"),
        (row(bucket=[64]), "bucket"),
        (row(repeats=0), "repeats"),
        (row(file="../a.png"), "in the dataset folder"),
        (row(file="x/../../a.png"), "in the dataset folder"),
        (row(file="..\\a.png"), "in the dataset folder"),
        (row(file="/etc/passwd"), "in the dataset folder"),
        (row(file="C:\\x.png"), "in the dataset folder"),
        (row(file="\\\\host\\share\\x.png"), "in the dataset folder"),
        (row(file="https://host/x.png"), "in the dataset folder"),
        (row(file=""), "in the dataset folder"),
        (row(file="a\0.png"), "in the dataset folder"),
        (row(mask="../m.png"), "in the dataset folder"),
    ],
)
def test_the_error_of_a_bad_line_names_its_number(
    tmp_path: Path, bad: dict[str, object] | str, message: str
) -> None:
    write(tmp_path, row(file="good.png"), bad)
    with pytest.raises(DataError, match=message) as caught:
        manifest.load_manifest(tmp_path)
    assert f"{manifest.MANIFEST_FILE}, line 2" in str(caught.value)


def test_a_file_listed_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path, row(), row(file="b.png"), row())
    with pytest.raises(DataError, match=r"'a\.png' is listed twice, first in line 1") as caught:
        manifest.load_manifest(tmp_path)
    assert "line 3" in str(caught.value)


def test_unusual_but_legal_file_names_are_accepted(tmp_path: Path) -> None:
    names = [
        "-rf.png",
        "a b.png",
        "%s.png",
        "e\u0301.png",
        "\u00e9.png",
        "a:b.png",
        "dots..png",
        "x" * 251 + ".png",
    ]
    manifest.save_manifest(tmp_path, [record(name) for name in names])
    assert {r.file for r in manifest.load_manifest(tmp_path)} == set(names)


def test_the_error_of_a_missing_manifest_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lorakit data prepare"):
        manifest.load_manifest(tmp_path)


def test_a_bad_record_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="crop"):
        manifest.save_manifest(tmp_path, [record(), record("b.png", crop=(0, 0, 100, 100))])
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_depends_on_everything_that_training_uses() -> None:
    base = [record(), record("b.png")]
    same = fingerprints.dataset_fingerprint(base)
    assert fingerprints.dataset_fingerprint(base[::-1]) == same
    dropped = Record("c.png", "", "", 0, 0, keep=False, reason="empty: x")
    assert fingerprints.dataset_fingerprint([*base, dropped]) == same
    assert fingerprints.dataset_fingerprint([record(notes=("blur: x",), phash="1" * 16), base[1]]) == same
    other = [
        record(content_hash="cd" * 32),
        record(captions=(Caption("other", "file"),)),
        record(crop=(0, 0, 48, 48)),
        record(bucket=(64, 64)),
        record(repeats=2),
        record(mask="m.png"),
        record(keep=False, reason="user: no"),
    ]
    prints = {fingerprints.dataset_fingerprint([changed, base[1]]) for changed in other}
    assert len(prints) == len(other)
    assert same not in prints
