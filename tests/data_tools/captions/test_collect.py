"""Captions from every source, in order; nothing is lost or replaced silently."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from data_tools.captions.text import clean_caption, decode_text
from data_tools.prepare import PrepareOptions, bucket_dataset, caption_dataset, prepare_dataset, scan_dataset
from lorakit import manifest
from lorakit.core.errors import ConfigError, DataError
from lorakit.manifest import Record
from tests.data_tools import word_forms
from tests.data_tools.folders import fill, hashes, photo


def run(folder: Path, **changes: object) -> dict[str, Record]:
    options = PrepareOptions(**{"resolution": 128, "quiet": True, **changes})  # type: ignore[arg-type]
    return {record.file: record for record in prepare_dataset(folder, options).records}


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
    assert texts(found["a.png"]) == [("from txt", "file")]
    assert texts(found["b.png"]) == [("from caption", "file")]
    assert texts(found["c.png"]) == [("first", "file"), ("second", "file")]
    assert found["c.png"].tags == ("x", "y")
    assert texts(found["d.png"]) == [("1girl, solo", "file")]
    assert texts(found["e.jpg"]) == [("from the long name", "file")]
    assert texts(found["f.png"]) == [("short", "file"), ("a longer description", "file")]


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
def test_metadata_of_the_user_is_read_and_not_changed(tmp_path: Path, name: str, content: str) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None})
    (tmp_path / name).write_bytes(content.encode())
    for _ in range(2):  # the second time the manifest is there too
        found = run(tmp_path)
        assert texts(found["a.png"]) == [("one", "metadata")]
        assert texts(found["b.png"]) == [("two", "metadata")]
        assert (tmp_path / name).read_bytes() == content.encode()
    assert len(list(tmp_path.glob("metadata.*"))) == 1


def test_metadata_in_parquet_and_in_subfolders_is_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    fill(tmp_path, {"x/a.png": None, "b.png": "beside"})
    table = pyarrow.table({"file_name": ["a.png"], "text": ["in the folder"]})
    pyarrow.parquet.write_table(table, tmp_path / "x" / "metadata.parquet")
    found = run(tmp_path)
    assert texts(found["x/a.png"]) == [("in the folder", "metadata")]
    assert not (tmp_path / manifest.METADATA_FILE).exists()


def test_an_edited_metadata_jsonl_of_lorakit_is_neither_lost_nor_used_silently(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None})
    run(tmp_path, class_noun="dog")
    twin = tmp_path / manifest.METADATA_FILE
    twin.write_text(twin.read_text().replace("a photo of dog", "my own words"))
    with pytest.raises(DataError, match="'my own words' and 'a photo of dog'"):
        run(tmp_path, class_noun="dog")
    (tmp_path / manifest.MANIFEST_FILE).unlink()  # the remedy that the error names
    assert texts(run(tmp_path, class_noun="dog")["a.png"]) == [("my own words", "metadata")]
    assert "my own words" in twin.read_text()


def test_a_caption_file_goes_before_metadata_with_a_note(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "beside"})
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "elsewhere"}\n')
    theirs = (tmp_path / "metadata.jsonl").read_bytes()
    run(tmp_path)
    record = run(tmp_path)["a.png"]
    assert texts(record) == [("beside", "file")]
    assert texts(run(tmp_path, class_noun="dog", overwrite_captions=True)["a.png"])[0][1] == "template"
    assert texts(run(tmp_path)["a.png"]) == [("beside", "file")]
    assert (tmp_path / "metadata.jsonl").read_bytes() == theirs
    assert any(note.startswith("caption_conflict") for note in record.notes)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{broken", "JSON"),
        ('{"file_name": "absent.png", "text": "x"}', "no image 'absent.png'"),
        ('{"file_name": "../a.png", "text": "x"}', "not the path of a file in the dataset folder"),
        ('{"file_name": "../../etc/passwd", "text": "x"}', "not the path of a file in the dataset folder"),
        ('{"file_name": "/etc/passwd", "text": "x"}', "not the path of a file in the dataset folder"),
        ('{"file_name": "C:\\\\x.png", "text": "x"}', "not the path of a file in the dataset folder"),
        (
            '{"file_name": "\\\\\\\\host\\\\share\\\\x.png", "text": "x"}',
            "not the path of a file in the dataset folder",
        ),
        (
            '{"file_name": "http://169.254.169.254/x.png", "text": "x"}',
            "not the path of a file in the dataset folder",
        ),
        ('{"picture": "a.png", "text": "x"}', "file_name"),
        ("null", "one JSON object"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_the_others_are_used(
    tmp_path: Path, row: str, words: str
) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None})
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one"}\n' + row + "\n")
    with pytest.raises(DataError, match=r"1 of 2 images have no caption: b\.png") as caught:
        run(tmp_path)
    assert words in str(caught.value)
    assert "metadata.jsonl: line 2 not used" in str(caught.value)
    assert not (tmp_path / manifest.MANIFEST_FILE).exists()
    options = PrepareOptions(resolution=64, quiet=True, class_noun="dog")
    result = prepare_dataset(tmp_path, options)
    assert [record.caption for record in result.records] == ["one", "a photo of dog"]
    (found,) = [f for f in result.findings if f.code == "table_rows_unused"]
    assert (found.level, found.files) == ("warning", ("metadata.jsonl",))
    assert words in found.message
    assert ("b.png",) in [f.files for f in result.findings if f.code == "caption_row_missing"]


@pytest.mark.parametrize("value", ["null", '""', '" "', "[]", "[null]", "NaN", '"nan"'])
def test_a_row_with_an_empty_caption_is_named_and_does_not_stop_the_others(
    tmp_path: Path, value: str
) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None})
    row = f'{{"file_name": "b.png", "text": {value}}}\n'
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one"}\n' + row)
    record = run(tmp_path, allow_missing_captions=True)["b.png"]
    assert record.captions == ()
    assert "caption_empty: metadata.jsonl, line 2" in record.notes


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", '[{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": "two"}]'),
        ("metadata.jsonl", '[\n{"file_name": "a.png", "text": "one"},\n'
         '{"file_name": "b.png", "text": "two"},\n]'),
        ("metadata.jsonl", '{"a.png": "one", "b.png": {"caption": ["two"]}}'),
        ("metadata.jsonl", '\ufeff{"image": "a.png", "text": "one"},\r\n{"image": "b", "text": "two"},\r\n'),
        ("metadata.csv", "Image; Caption\r\na.png;one\r\nb.png;two\r\n"),
        ("metadata.csv", "path\tdescription\na.png\tone\nb.png\ttwo\n"),
        ("metadata.csv", "file_name,caption_0\na.png,one\nb.png,\"['two']\"\n"),
        ("captions.json", '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],'
         ' "annotations": [{"image_id": 1, "caption": "one"}, {"image_id": 2, "caption": "two"}]}'),
        ("captions.json", '{"a.png": "one", "b.png": ["two"]}'),
        ("captions.jsonl", '{"key": "a", "txt": "one", "caption": "one"}\n{"key": "b", "caption": "two"}'),
        ("prompts.tsv", "filename\tprompt\na.png\tone\nb.png\ttwo\n"),
        ("Metadata.CSV", "file_name,text\na.png,one\nb.png,two\n"),
    ],
)  # fmt: skip
def test_tables_of_other_spellings_are_read(tmp_path: Path, name: str, content: str) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None})
    (tmp_path / name).write_bytes(content.encode())
    for _ in range(2):
        found = run(tmp_path, class_noun="dog")
        assert [texts(record) for record in found.values()] == [[("one", "metadata")], [("two", "metadata")]]
    assert (tmp_path / name).read_bytes() == content.encode()


def test_a_table_in_a_folder_around_the_images_is_read(tmp_path: Path) -> None:
    fill(tmp_path, {"train/images/a.png": None, "train/images/b.png": None})
    (tmp_path / "train/metadata.csv").write_text("file_name,text\nimages/a.png,one\nimages/b.png,two\n")
    for _ in range(2):
        assert [record.caption for record in run(tmp_path, class_noun="dog").values()] == ["one", "two"]
    assert not (tmp_path / manifest.METADATA_FILE).exists()


def test_kohya_folders_give_repeats_and_a_caption(tmp_path: Path) -> None:
    fill(tmp_path, {"10_sks dog/a.png": None, "10_sks dog/b.png": "hand-written", "2024_trip/c.png": "x"})
    found = run(tmp_path)
    assert texts(found["10_sks dog/a.png"]) == [("sks dog", "folder")]
    assert texts(found["10_sks dog/b.png"]) == [("hand-written", "file")]
    assert [record.repeats for record in found.values()] == [10, 10, 1]


def test_folder_names_are_captions_on_request(tmp_path: Path) -> None:
    fill(tmp_path, {"red_fox/a.png": None})
    assert texts(run(tmp_path, caption_from_folder=True)["red_fox/a.png"]) == [("red fox", "folder")]


def test_the_template_is_only_for_images_without_a_caption(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "by hand", "b.png": None})
    before = hashes(tmp_path)
    found = run(tmp_path, class_noun="dog", trigger="sks")
    assert texts(found["a.png"]) == [("by hand", "file")]
    assert texts(found["b.png"]) == [("a photo of sks dog", "template")]
    assert texts(run(tmp_path)["b.png"]) == [("a photo of sks dog", "template")]  # remembered
    found = run(tmp_path, class_noun="cat", overwrite_captions=True)
    assert {texts(record)[0] for record in found.values()} == {("a photo of cat", "template")}
    assert hashes(tmp_path) == before
    assert texts(run(tmp_path)["a.png"]) == [("by hand", "file")]  # the file is still there, and counts


def test_captions_of_a_model_are_kept(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None, "b.png": "by hand"})
    run(tmp_path, class_noun="dog")
    path = tmp_path / manifest.MANIFEST_FILE
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["captions"] = [
            {"text": "a corgi on grass", "source": "model", "model": "captioner", "prompt": "?"}
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / manifest.METADATA_FILE).unlink()
    found = run(tmp_path, class_noun="dog")
    assert texts(found["a.png"]) == [("a corgi on grass", "model")]
    assert texts(found["b.png"]) == [("by hand", "file"), ("a corgi on grass", "model")]


def test_missing_and_empty_captions_are_an_error_with_the_remedy(tmp_path: Path) -> None:
    fill(tmp_path, {**{f"{index}.png": None for index in range(7)}, "ok.png": "fine", "void.png": " \n"})
    with pytest.raises(
        DataError, match=r"8 of 9 images have no caption \(1 caption files are empty\)"
    ) as caught:
        run(tmp_path)
    assert "0.png, 1.png" in str(caught.value)
    assert "--class-noun" in str(caught.value)
    assert not (tmp_path / manifest.MANIFEST_FILE).exists()
    assert run(tmp_path, allow_missing_captions=True)["0.png"].captions == ()


@pytest.mark.parametrize(
    ("data", "offset", "hint"),
    [
        (b"it\x92s a dog", "byte 2 (0x92)", "cp1252"),
        (b"\xef\xbb\xbfit\x92s", "byte 5 (0x92)", "cp1252"),
        (b"un caf\xe9 cr\xe8me", "byte 6 (0xe9)", "cp1252"),
    ],
)
def test_text_in_another_encoding_is_named_with_the_byte_offset(
    tmp_path: Path, data: bytes, offset: str, hint: str
) -> None:
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


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "shift_jis"])
@pytest.mark.parametrize(
    ("text", "saved_as"),
    [
        ("señor on the grass", "utf-16"),
        ("a dog on the grass", "utf-16-le"),
        ("a dog, blue eyes", "utf-16-be"),
        ("a dog", "utf-32"),
        ("a café", "utf-8-sig"),
        ("犬と猫", "utf-8"),
    ],
)
def test_every_file_decides_its_own_encoding(tmp_path: Path, text: str, saved_as: str, encoding: str) -> None:
    """Whatever is the encoding of the other files."""
    fill(tmp_path, {"a.png": None})
    (tmp_path / "a.txt").write_bytes(text.encode(saved_as))
    record = run(tmp_path, caption_encoding=encoding)["a.png"]
    assert (record.caption, codes(record)) == (text, [])


@pytest.mark.parametrize("text", ["un cafÃ© crÃ¨me", "itâ€™s a dog", "ç\x8a¬ on grass"])
def test_text_that_was_saved_in_the_wrong_encoding_is_named(tmp_path: Path, text: str) -> None:
    assert "caption_wrong_encoding" in codes(captioned(tmp_path, text.encode()))


@pytest.mark.parametrize(
    "text", ["un café crème", "naïve Ångström", "Ã la carte", "it’s 20 €", "犬", "a dog"]
)
def test_text_with_accents_is_not_suspected(tmp_path: Path, text: str) -> None:
    assert codes(captioned(tmp_path, text.encode())) == []


@pytest.mark.parametrize(
    ("image", "sidecar"),
    [
        ("IMG_0.JPG", "IMG_0.TXT"),
        ("img_0.jpg", "IMG_0.txt"),
        ("IMG_0.jpg", "img_0.jpg.txt"),
        ("Ä.png", "a\u0308.Caption"),
        ("sub/a.PNG", "sub/A.Json"),
    ],
)
def test_a_caption_file_may_differ_in_case(tmp_path: Path, image: str, sidecar: str) -> None:
    fill(tmp_path, {image: None})
    content = '{"caption": "a dog"}' if sidecar.lower().endswith("json") else "a dog"
    (tmp_path / sidecar).write_text(content)
    result = prepare_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True, class_noun="cat"))
    assert texts(result.records[0]) == [("a dog", "file")]
    assert "orphan_caption" not in {finding.code for finding in result.findings}


def test_two_images_that_differ_in_case_keep_their_own_captions(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "small", "A.png": None})
    if len(list(tmp_path.glob("*.png"))) < 2:
        pytest.skip("this file system does not tell a from A")
    found = run(tmp_path, class_noun="dog")
    assert (found["a.png"].caption, found["A.png"].caption) == ("small", "a photo of dog")


def captioned(folder: Path, data: bytes) -> Record:
    """Return the record of an image with these bytes as its caption file, which does not change."""
    fill(folder, {"a.png": None})
    (folder / "a.txt").write_bytes(data)
    record = run(folder)["a.png"]
    assert (folder / "a.txt").read_bytes() == data
    return record


def codes(record: Record) -> list[str]:
    return [note.split(":")[0] for note in record.notes if note.startswith("caption")]


def test_a_byte_order_mark_is_removed(tmp_path: Path) -> None:
    record = captioned(tmp_path, b"\xef\xbb\xbfa caf\xc3\xa9")
    assert (record.caption, codes(record)) == ("a café", [])
    assert decode_text(b"\xef\xbb\xbfx", "a.txt") == "x"


def test_control_characters_are_removed_with_a_note(tmp_path: Path) -> None:
    record = captioned(tmp_path, b"a\x00 dog\x07 on\tgrass\x1b[31m")
    assert record.caption == "a dog on grass[31m"
    assert codes(record) == ["caption_control_characters"]
    assert "3 control characters" in "".join(record.notes)
    assert clean_caption("one", "a.txt") == ("one", [])


def test_lines_are_joined_and_none_is_lost(tmp_path: Path) -> None:
    record = captioned(tmp_path, b" the first line \n\nthe second line.\n third")
    assert record.caption == "the first line the second line. third"
    assert codes(record) == ["caption_lines_joined"]


@pytest.mark.parametrize("base", [None, "tiny-dit"])
def test_a_caption_of_300_tokens_is_kept_whole(tmp_path: Path, base: str | None) -> None:
    """Truncation by the encoders of a base is tested in test_tokens.py."""
    text = " ".join(["word"] * 300)
    fill(tmp_path, {"a.png": text})
    result = prepare_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True, base=base))
    assert result.records[0].caption == text
    assert ("long_caption" if base is None else "caption_truncated") in {
        finding.code for finding in result.findings
    }


def test_a_caption_file_above_a_megabyte_is_not_read(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None})
    (tmp_path / "a.txt").write_text("x" * (1 << 20) + "y")
    with pytest.raises(DataError, match="the limit is 1048576") as caught:
        run(tmp_path)
    assert "a.txt" in str(caught.value)
    (tmp_path / "a.txt").write_text("x" * (1 << 20))
    assert len(run(tmp_path)["a.png"].caption) == 1 << 20


def test_a_caption_without_the_trigger_is_a_warning(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "a photo of sks", "b.png": "a photo of sksy", "c.png": "SKS, seen from above"})
    result = prepare_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True, trigger="sks"))
    (found,) = [finding for finding in result.findings if finding.code == "trigger_missing"]
    assert (found.level, found.files) == ("warning", ("b.png",))


def test_windows_line_ends_are_line_ends(tmp_path: Path) -> None:
    record = captioned(tmp_path, b"one\r\ntwo\rthree\r\n")
    assert (record.caption, codes(record)) == ("one, two, three", ["caption_lines_are_tags"])
    assert codes(captioned(tmp_path, b"one\r\n")) == []


def test_caption_files_of_another_extension_are_refused_with_a_hint(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None})
    (tmp_path / "a.caption").write_text("a dog")
    (tmp_path / "b.caption").write_text("a cat")
    with pytest.raises(DataError, match=r"no \.txt files, but 2 with \.caption: a\.caption") as caught:
        run(tmp_path, caption_extension=".txt")
    assert "--caption-extension .caption" in str(caught.value.remedy)
    assert not (tmp_path / manifest.MANIFEST_FILE).exists()
    assert [record.caption for record in run(tmp_path, caption_extension=".caption").values()] == [
        "a dog",
        "a cat",
    ]
    (tmp_path / "a.txt").write_text("a wolf")
    found = run(tmp_path, caption_extension=".txt", allow_missing_captions=True)
    assert texts(found["a.png"]) == [("a wolf", "file")]
    assert texts(found["b.png"]) == []
    with pytest.raises(ConfigError, match="is not an extension of caption files"):
        run(tmp_path, caption_extension="text")


def test_one_bad_caption_file_does_not_hide_the_other(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "a dog"})
    (tmp_path / "a.json").write_text("{x")
    record = run(tmp_path)["a.png"]
    assert texts(record) == [("a dog", "file")]
    assert any(note.startswith("caption_unreadable: a.json: not valid JSON") for note in record.notes)


def test_a_caption_file_is_found_across_accent_spellings(tmp_path: Path) -> None:
    fill(tmp_path, {"caf\u00e9.png": None})
    (tmp_path / "cafe\u0301.txt").write_text("a café")
    assert run(tmp_path)["caf\u00e9.png"].caption == "a café"


def test_edits_are_applied_again_after_the_file_changed(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "1girl, solo, cat", "b.png": "dog, solo"})
    first = run(tmp_path, caption_edits=("drop=solo", "trigger=sks"))
    assert [record.caption for record in first.values()] == ["sks, 1girl, cat", "sks, dog"]
    assert first["a.png"].captions[0].original_text == "1girl, solo, cat"
    assert run(tmp_path) == first
    (tmp_path / "a.txt").write_text("solo, bird")
    again = run(tmp_path)
    assert (again["a.png"].caption, again["a.png"].captions[0].original_text) == ("sks, bird", "solo, bird")
    assert again["b.png"] == first["b.png"]
    assert [record.caption for record in run(tmp_path, caption_edits=()).values()] == [
        "solo, bird",
        "dog, solo",
    ]
    assert (tmp_path / "b.txt").read_text() == "dog, solo"


def test_an_edit_that_leaves_no_text_is_noted(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "solo", "b.png": "dog"})
    found = run(tmp_path, caption_edits=("drop=solo",), allow_missing_captions=True)
    assert found["a.png"].captions == ()
    assert any("leave nothing of 'solo'" in note for note in found["a.png"].notes)
    with pytest.raises(ConfigError, match="unknown edit"):
        run(tmp_path, caption_edits=("polish",))


def test_single_commands_keep_the_results_of_the_others(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "one", "b.png": "two"})
    run(tmp_path)
    before = (tmp_path / manifest.MANIFEST_FILE).read_bytes()
    scan_dataset(tmp_path, PrepareOptions(quiet=True))
    assert (tmp_path / manifest.MANIFEST_FILE).read_bytes() == before
    (tmp_path / "a.txt").write_text("new words")
    caption_dataset(tmp_path, PrepareOptions(quiet=True))
    first, second = manifest.load_manifest(tmp_path)
    assert (first.caption, second.caption) == ("new words", "two")
    assert first.bucket is not None
    bucket_dataset(tmp_path, PrepareOptions(resolution=256, bucket_mode="square").bucket_options())
    assert {record.bucket for record in manifest.load_manifest(tmp_path)} == {(256, 256)}


def test_overwrite_needs_a_new_caption(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "one"})
    with pytest.raises(ConfigError, match="overwrite"):
        run(tmp_path, overwrite_captions=True)


EMBEDDED = {
    "png parameters": "a dog on grass\nNegative prompt: blurry\nSteps: 20, Sampler: Euler, Seed: 1",
    "exif description": "a dog on grass",
    "xmp": "a dog on grass",
    "iptc": "a dog on grass",
    "exif keywords": "dog; grass",
}


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_description_inside_an_image_is_its_caption_on_request(name: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", {"IMG_0.png": None, "b.png": "by hand"}, size=(64, 64))
    words = word_forms.Words(folder)
    words.new = lambda *place, number=3: EMBEDDED[name]  # type: ignore[method-assign]
    word_forms.EMBEDDED[name](words)
    options = PrepareOptions(resolution=64, quiet=True, class_noun="dog")
    warned = prepare_dataset(folder, options)
    assert "embedded_text_unread" in {f.code for f in warned.findings}
    result = prepare_dataset(folder, dataclasses.replace(options, caption_from_image=True))
    assert [r.caption for r in result.records] == [EMBEDDED[name].split("\n")[0], "by hand"]
    assert "embedded_text_unread" not in {f.code for f in result.findings}


@pytest.mark.parametrize(
    "text", ["OLYMPUS DIGITAL CAMERA", "SONY DSC", "Screenshot", "Created with GIMP", "12", "DCIM\\100", ""]
)
def test_what_cameras_write_by_themselves_is_no_description(text: str, tmp_path: Path) -> None:
    image = photo(1, (64, 64))
    exif = Image.Exif()
    exif[0x010E] = text
    image.save(tmp_path / "a.jpg", exif=exif)
    (record,) = run(tmp_path, class_noun="dog").values()
    assert not any(note.startswith("embedded_text") for note in record.notes)


@pytest.mark.parametrize(
    "end", [".tags", "_caption.txt", ".prompt", "-tags.txt", ".jpg.text", "_description"]
)
def test_the_remedy_for_caption_files_of_other_names_works(end: str, tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None}, size=(64, 64))
    for stem in ("a", "b"):
        (tmp_path / f"{stem}{end}").write_text(f"a dog {stem}")
    options = PrepareOptions(resolution=64, quiet=True, class_noun="cat")
    (found,) = [f for f in prepare_dataset(tmp_path, options).findings if f.code == "caption_text_unread"]
    assert set(found.files) == {f"a{end}", f"b{end}"}
    assert found.message.endswith(f"--caption-extension {end}")
    result = prepare_dataset(tmp_path, dataclasses.replace(options, caption_extension=end))
    assert [texts(record) for record in result.records] == [[("a dog a", "file")], [("a dog b", "file")]]
    assert "caption_text_unread" not in {f.code for f in result.findings}
