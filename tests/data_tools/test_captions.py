"""Captions from every source, in order, with nothing lost or replaced in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folders import fill, hashes

from data_tools.prepare import PrepareOptions, bucket_only, caption_only, prepare, scan_only
from data_tools.text import clean, decode_text
from lorakit import manifest
from lorakit.errors import ConfigError, DataError
from lorakit.manifest import Record


def run(folder: Path, **changes: object) -> dict[str, Record]:
    options = PrepareOptions(**{"resolution": 128, "quiet": True, **changes})  # type: ignore[arg-type]
    return {record.file: record for record in prepare(folder, options).records}


def texts(record: Record) -> list[tuple[str, str]]:
    return [(caption.text, caption.source) for caption in record.captions]


def test_each_kind_of_caption_file(tmp_path: Path) -> None:
    fill(tmp_path, dict.fromkeys(["a.png", "b.png", "c.png", "d.png", "e.jpg", "f.png"]))
    (tmp_path / "a.txt").write_text("from txt")
    (tmp_path / "b.caption").write_text("from caption")
    (tmp_path / "c.json").write_text(json.dumps({"captions": ["first", "second"], "tags": "x, y"}))
    (tmp_path / "d.json").write_text(json.dumps({"tags": ["1girl", "solo"]}))
    (tmp_path / "e.jpg.txt").write_text("from the long name")
    (tmp_path / "f.txt").write_text("short")
    (tmp_path / "f.caption").write_text("a longer description")
    found = run(tmp_path)
    assert texts(found["a.png"]) == [("from txt", "sidecar")]
    assert texts(found["b.png"]) == [("from caption", "sidecar")]
    assert texts(found["c.png"]) == [("first", "sidecar"), ("second", "sidecar")]
    assert found["c.png"].tags == ("x", "y")
    assert texts(found["d.png"]) == [("1girl, solo", "sidecar")]
    assert texts(found["e.jpg"]) == [("from the long name", "sidecar")]
    assert texts(found["f.png"]) == [("short", "sidecar"), ("a longer description", "sidecar")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "one"}\r\n\n{"file_name": "b.png", "text": "two"}\r\n',
        ),
        ("metadata.csv", '\ufefffile_name,caption,extra\r\na.png,"one",1\r\nb.png,"two",2\r\n'),
    ],
)
def test_metadata_of_the_user_is_read_and_left_alone(tmp_path: Path, name: str, content: str) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None})
    (tmp_path / name).write_bytes(content.encode())
    for _ in range(2):  # the second time the manifest is there too
        found = run(tmp_path)
        assert texts(found["a.png"]) == [("one", "metadata")]
        assert texts(found["b.png"]) == [("two", "metadata")]
        assert (tmp_path / name).read_bytes() == content.encode()
    assert len(list(tmp_path.glob("metadata.*"))) == 1


def test_metadata_parquet_and_folders_of_their_own(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    fill(tmp_path, {"x/a.png": None, "b.png": "beside"})
    table = pyarrow.table({"file_name": ["a.png"], "text": ["in the folder"]})
    pyarrow.parquet.write_table(table, tmp_path / "x" / "metadata.parquet")
    found = run(tmp_path)
    assert texts(found["x/a.png"]) == [("in the folder", "metadata")]
    assert not (tmp_path / manifest.TWIN).exists()


def test_an_edit_of_the_twin_is_neither_lost_nor_taken_in_silence(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None})
    run(tmp_path, class_noun="dog")
    twin = tmp_path / manifest.TWIN
    twin.write_text(twin.read_text().replace("a photo of dog", "my own words"))
    with pytest.raises(DataError, match="'my own words' and 'a photo of dog'"):
        run(tmp_path, class_noun="dog")
    (tmp_path / manifest.MANIFEST).unlink()  # the remedy that the error names
    assert texts(run(tmp_path, class_noun="dog")["a.png"]) == [("my own words", "metadata")]
    assert "my own words" in twin.read_text()


def test_the_caption_file_beats_the_metadata_and_says_so(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "beside"})
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "elsewhere"}\n')
    theirs = (tmp_path / "metadata.jsonl").read_bytes()
    run(tmp_path)
    record = run(tmp_path)["a.png"]
    assert texts(record) == [("beside", "sidecar")]
    assert texts(run(tmp_path, class_noun="dog", overwrite_captions=True)["a.png"])[0][1] == "template"
    assert texts(run(tmp_path)["a.png"]) == [("beside", "sidecar")]
    assert (tmp_path / "metadata.jsonl").read_bytes() == theirs
    assert any(note.startswith("caption_unused") for note in record.notes)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{broken", "line 2"),
        ('{"file_name": "absent.png", "text": "x"}', "no image 'absent.png'"),
        ('{"file_name": "a.png", "text": "again"}', "two rows"),
        ('{"file_name": "../a.png", "text": "x"}', "inside the dataset"),
        ('{"file_name": "../../etc/passwd", "text": "x"}', "inside the dataset"),
        ('{"file_name": "/etc/passwd", "text": "x"}', "inside the dataset"),
        ('{"file_name": "C:\\\\x.png", "text": "x"}', "inside the dataset"),
        ('{"file_name": "\\\\\\\\host\\\\share\\\\x.png", "text": "x"}', "inside the dataset"),
        ('{"file_name": "http://169.254.169.254/x.png", "text": "x"}', "inside the dataset"),
        ('{"image": "a.png", "text": "x"}', "file_name"),
        ('{"file_name": "b.png"}', "without a caption"),
    ],
)
def test_bad_metadata_rows_are_refused_with_their_place(tmp_path: Path, row: str, words: str) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None})
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one"}\n' + row + "\n")
    with pytest.raises(DataError, match=words) as caught:
        run(tmp_path)
    assert "metadata.jsonl" in str(caught.value)
    assert "2" in str(caught.value.where)
    assert not (tmp_path / manifest.MANIFEST).exists()


def test_kohya_folders_give_repeats_and_a_caption(tmp_path: Path) -> None:
    fill(tmp_path, {"10_sks dog/a.png": None, "10_sks dog/b.png": "hand-written", "2024_trip/c.png": "x"})
    found = run(tmp_path)
    assert texts(found["10_sks dog/a.png"]) == [("sks dog", "folder")]
    assert texts(found["10_sks dog/b.png"]) == [("hand-written", "sidecar")]
    assert [record.repeats for record in found.values()] == [10, 10, 1]


def test_folder_names_when_asked_for(tmp_path: Path) -> None:
    fill(tmp_path, {"red_fox/a.png": None})
    assert texts(run(tmp_path, folder_names=True)["red_fox/a.png"]) == [("red fox", "folder")]


def test_the_template_fills_gaps_only(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "by hand", "b.png": None})
    before = hashes(tmp_path)
    found = run(tmp_path, class_noun="dog", trigger="sks")
    assert texts(found["a.png"]) == [("by hand", "sidecar")]
    assert texts(found["b.png"]) == [("a photo of sks dog", "template")]
    assert texts(run(tmp_path)["b.png"]) == [("a photo of sks dog", "template")]  # remembered
    found = run(tmp_path, class_noun="cat", overwrite_captions=True)
    assert {texts(record)[0] for record in found.values()} == {("a photo of cat", "template")}
    assert hashes(tmp_path) == before
    assert texts(run(tmp_path)["a.png"]) == [("by hand", "sidecar")]  # the file is still there, and counts


def test_captions_of_a_model_are_kept(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None, "b.png": "by hand"})
    run(tmp_path, class_noun="dog")
    path = tmp_path / manifest.MANIFEST
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["captions"] = [
            {"text": "a corgi on grass", "source": "model", "model": "captioner", "prompt": "?"}
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / manifest.TWIN).unlink()
    found = run(tmp_path, class_noun="dog")
    assert texts(found["a.png"]) == [("a corgi on grass", "model")]
    assert texts(found["b.png"]) == [("by hand", "sidecar"), ("a corgi on grass", "model")]


def test_missing_captions_are_an_error_with_the_remedy(tmp_path: Path) -> None:
    fill(tmp_path, {**{f"{index}.png": None for index in range(7)}, "ok.png": "fine", "void.png": " \n"})
    with pytest.raises(
        DataError, match=r"8 of 9 images have no caption \(1 caption files are empty\)"
    ) as caught:
        run(tmp_path)
    assert "0.png, 1.png" in str(caught.value)
    assert "--class-noun" in str(caught.value)
    assert not (tmp_path / manifest.MANIFEST).exists()
    assert run(tmp_path, allow_missing_captions=True)["0.png"].captions == ()


@pytest.mark.parametrize(
    ("data", "offset", "hint"),
    [
        (b"it\x92s a dog", "byte 2 (0x92)", "cp1252"),
        (b"\xef\xbb\xbfit\x92s", "byte 5 (0x92)", "cp1252"),
        ("a dog".encode("utf-16"), "byte 0", "--caption-encoding utf-16"),
    ],
)
def test_other_encodings_are_named_by_offset(tmp_path: Path, data: bytes, offset: str, hint: str) -> None:
    fill(tmp_path, {"a.png": None})
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError) as caught:
        run(tmp_path)
    assert offset in str(caught.value)
    assert hint in str(caught.value)
    assert "a.txt" in str(caught.value)


def test_the_encoding_can_be_given(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None})
    (tmp_path / "a.txt").write_bytes("it’s".encode("cp1252"))
    assert run(tmp_path, caption_encoding="cp1252")["a.png"].caption == "it’s"
    (tmp_path / "a.txt").write_bytes("señor".encode("utf-16"))
    assert run(tmp_path, caption_encoding="utf-16")["a.png"].caption == "señor"
    with pytest.raises(ConfigError, match="unknown encoding"):
        run(tmp_path, caption_encoding="klingon")


def test_text_is_cleaned_and_every_change_noted(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None})
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf first line \r\n\r\nsecond\x00\x07\tline\r\n")
    record = run(tmp_path)["a.png"]
    assert record.caption == "first line second line"
    assert [note.split(":")[0] for note in record.notes if note.startswith("caption")] == [
        "caption_joined",
        "caption_stripped",
    ]
    assert clean("one", "a.txt") == ("one", [])
    assert decode_text(b"\xef\xbb\xbfx", "a.txt") == "x"


def test_a_huge_caption_and_bad_json_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None})
    (tmp_path / "a.txt").write_text("x" * (1 << 20) + "y")
    with pytest.raises(DataError, match="too many for a caption"):
        run(tmp_path)
    (tmp_path / "a.txt").unlink()
    for content, words in (("{x", "JSON"), ("[1]", "object"), ('{"caption": 5}', "must be text")):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(DataError, match=words):
            run(tmp_path)


def test_a_caption_file_is_found_across_accent_spellings(tmp_path: Path) -> None:
    fill(tmp_path, {"caf\u00e9.png": None})
    (tmp_path / "cafe\u0301.txt").write_text("a café")
    assert run(tmp_path)["caf\u00e9.png"].caption == "a café"


def test_steps_alone_keep_what_the_others_did(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "one", "b.png": "two"})
    run(tmp_path)
    before = (tmp_path / manifest.MANIFEST).read_bytes()
    scan_only(tmp_path, PrepareOptions(quiet=True))
    assert (tmp_path / manifest.MANIFEST).read_bytes() == before
    (tmp_path / "a.txt").write_text("new words")
    caption_only(tmp_path, PrepareOptions(quiet=True))
    first, second = manifest.load(tmp_path)
    assert (first.caption, second.caption) == ("new words", "two")
    assert first.bucket is not None
    bucket_only(tmp_path, PrepareOptions(resolution=256, mode="square").bucket())
    assert {record.bucket for record in manifest.load(tmp_path)} == {(256, 256)}


def test_overwrite_needs_something_to_write(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "one"})
    with pytest.raises(ConfigError, match="overwrite"):
        run(tmp_path, overwrite_captions=True)
