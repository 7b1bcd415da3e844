"""No word of a table or JSON file is lost: what is not clear is refused, what is not read is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.captions import columns
from data_tools.dataset import Dataset
from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit.core.errors import DataError
from tests.data_tools.folders import fill

IMAGES = ("a.png", "b.png")


def prepare(folder: Path, **options: Any) -> Dataset:
    return prepare_dataset(folder, PrepareOptions(**{"resolution": 64, "quiet": True, **options}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos", dict.fromkeys(IMAGES), size=(64, 64))


ROWS = [
    ("metadata.csv", "file_name,text\na.png,a dog, sitting on a sofa\nb.png,x\n", "line 2", "3 cells"),
    ("metadata.csv", "file_name,text\nb.png,x\na.png\n", "line 3", "1 cells"),
    ("metadata.csv", "file_name,text,text\na.png,a,b\n", "metadata.csv", "two columns are named 'text'"),
    ("metadata.csv", 'file_name,text\na.png,"a dog\nb.png,x\n', "line 2", "not a valid table"),
    ("metadata.csv", "file_name,text\nabsent.png,a dog\nb.png,x\n", "line 2", "no image 'absent.png'"),
    ("metadata.csv", b"file_name,text\na.png,un caf\xe9\nb.png,x\n", "line 2", "0xe9"),
    (
        "metadata.jsonl",
        '{"file_name": "a.png", "text": "one", "text": "two"}\n',
        "line 1",
        "'text' occurs twice",
    ),
    (
        "metadata.jsonl",
        '{"file_name": "a.png", "text": "a", "x": {"k": 1, "k": 2}}\n',
        "",
        "'k' occurs twice",
    ),
    (
        "metadata.jsonl",
        '{"file_name": "a.png", "text": {"en": "one"}}\n',
        "line 1",
        "--caption-column text.en",
    ),
    ("metadata.jsonl", '{"file_name": "b.png", "text": "x"}\n{"file_name": "a.png", "te\n', "line 2", "JSON"),
    ("metadata.jsonl", '{"file_name": "b.png", "text": "x"}\n["a.png"]\n', "line 2", "one JSON object"),
    (
        "metadata.jsonl",
        '{"file_name": "a.png", "text": 5}\n{"file_name": "b.png", "text": "x"}\n',
        "line 1",
        "not '5'",
    ),
    (
        "metadata.jsonl",
        '{"text": "a dog"}\n{"file_name": "b.png", "text": "x"}\n',
        "line 1",
        "without file_name",
    ),
    ("metadata.parquet", b"PAR1 is no table", "metadata.parquet", "table"),
    ("meta_cap.json", '{"a": {"caption": "one"}, "a": {"caption": "two"}}', "meta_cap.json", "occurs twice"),
    ("meta_cap.json", '{"a": {"caption": "one", "tags": 5}}', "'a'", "tags must be text"),
    ("meta_cap.json", '{"other/c": {"caption": "one"}}', "'other/c'", "no image"),
    ("a.json", '{"caption": "one", "caption": "two"}', "a.json", "'caption' occurs twice"),
    ("a.json", '{"caption": 5}', "a.json", "caption must be text"),
    ("a.json", "[1, 2]", "a.json", "an object"),
    ("a.json", '{"caption": "one"', "a.json", "JSON"),
    ("a.txt", b"un caf\xe9", "a.txt", "byte 6 (0xe9)"),
]


@pytest.mark.parametrize(("name", "content", "place", "words"), ROWS)
def test_an_entry_that_cannot_be_read_is_named_with_its_place_and_the_set_goes_on(
    folder: Path, name: str, content: str | bytes, place: str, words: str
) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    result = prepare(folder, class_noun="dog")
    assert result.records[0].caption == "a photo of dog"
    assert result.records[1].caption == ("x" if "b.png" in str(content) else "a photo of dog")
    named = [f for f in result.findings if f.level == "warning" and words in f.message]
    assert [f for f in named if place in f.message and name in f.message]
    assert name in result.summary()
    with pytest.raises(DataError, match="no caption") as caught:
        _without(folder)
    assert words in str(caught.value)


def _without(folder: Path) -> Dataset:
    """Prepare without a template: images without a caption are an error."""
    for name in ("manifest.jsonl", "report.json", "report.html"):
        (folder / name).unlink()
    own = folder / "metadata.jsonl"
    if own.is_file() and b'"a photo of dog"' in own.read_bytes():
        own.unlink()
    return prepare(folder)


@pytest.mark.parametrize(
    ("name", "content", "captions", "unread"),
    [
        ("metadata.csv", "file_name,text,caption\na.png,one,two\n", ["one"], "caption"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "one", "prompt": "two"}\n', ["one"], "prompt"),
        ("a.json", '{"caption": "one", "text": "two"}', ["two"], "caption"),
        ("a.json", '{"captions": ["one", "two"], "caption": "three"}', ["three"], "captions"),
    ],
)
def test_of_two_columns_with_different_captions_the_first_is_read_and_the_other_named(
    folder: Path, name: str, content: str, captions: list[str], unread: str
) -> None:
    (folder / name).write_text(content)
    result = prepare(folder, class_noun="dog")
    assert [caption.text for caption in result.records[0].captions] == captions
    (found,) = [f for f in result.findings if f.code == columns.COLUMNS_UNREAD]
    assert f"not read: {unread};" in found.message
    chosen = prepare(folder, class_noun="dog", caption_columns=(unread,))
    assert [caption.text for caption in chosen.records[0].captions] != captions
    assert chosen.records[0].captions[0].source in ("file", "metadata")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name,text\na.png,one\na.png,two\n"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "one"}\n{"file_name": "A.PNG", "text": "two"}\n'),
        ("meta_cap.json", '{"a": {"caption": "one"}, "x/a.png": {"caption": "two"}}'),
        ("captions.csv", "image,caption\na.png,one\na.png,two\n"),
    ],
)
def test_several_rows_are_captions_of_one_image(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    result = prepare(folder, class_noun="dog")
    assert [caption.text for caption in result.records[0].captions] == ["one", "two"]
    assert "caption_rows_joined" in {f.code for f in result.findings}


def test_the_remedy_for_a_comma_in_a_caption_works(folder: Path) -> None:
    (folder / "metadata.csv").write_text('file_name,text\na.png,"a dog, sitting on a sofa"\nb.png,"a\nb"\n')
    assert [r.caption for r in prepare(folder).records] == ["a dog, sitting on a sofa", "a b"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a dog", "caption": " a dog"}\n'),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "", "caption": "a dog"}\n'),
        ("metadata.csv", "file_name,text,caption\na.png,,a dog\n"),
        ("a.json", '{"caption": "a dog", "captions": ["a dog"]}'),
        ("meta_cap.json", '{"/other/machine/a": {"tags": ["a dog"]}}'),
    ],
)
def test_equal_and_empty_columns_lose_nothing(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    assert prepare(folder, allow_missing_captions=True).records[0].caption == "a dog"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "captions": ["one", "two"]}\n'),
        ("metadata.jsonl", '{"file_name": "a.png", "text": ["one", "two"]}\n'),
        ("a.json", '{"captions": ["one", "two"], "caption": "two"}'),
    ],
)
def test_a_list_of_captions_is_read_whole(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    record = prepare(folder, allow_missing_captions=True).records[0]
    assert [caption.text for caption in record.captions] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "unread"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x", "description": "a dog"}\n', "description"),
        ("metadata.csv", "file_name,text,id,notes\na.png,x,7,a dog on grass\n", "notes"),
        ("a.json", '{"caption": "x", "info": {"alt_text": "a dog"}}', "info.alt_text"),
        ("a.json", '{"who": "a dog", "where": "on grass", "size": [64, 64]}', "who, where"),
        (
            "a.json",
            '{"short_caption": "a dog", "long_caption": "a dog on grass"}',
            "short_caption, long_caption",
        ),
        ("captions.csv", "image,text,description\na.png,x,a dog\n", "description"),
        ("meta_cap.json", '{"a": {"caption": "x", "blip_caption": "a dog"}}', "blip_caption"),
    ],
)
def test_a_column_that_looks_like_captions_and_is_not_read_is_named(
    folder: Path, name: str, content: str, unread: str
) -> None:
    (folder / name).write_text(content)
    result = prepare(folder, class_noun="dog")
    (found,) = [f for f in result.findings if f.code == columns.COLUMNS_UNREAD]
    assert (found.level, found.files) == ("warning", ("a.png",))
    assert unread in found.message
    assert unread in result.summary()


@pytest.mark.parametrize(
    "row", [{"text": "x", "text_id": "abc"}, {"text": "x", "url": "a"}, {"text": "x", "label": 3}]
)
def test_other_columns_are_no_captions(row: dict[str, Any]) -> None:
    assert columns.unread_columns(row) == []


def test_a_caption_in_two_files_that_disagree_is_a_warning(folder: Path) -> None:
    (folder / "a.txt").write_text("beside")
    (folder / "meta_cap.json").write_text('{"a": {"caption": "elsewhere"}, "b": {"caption": "in kohya"}}')
    (folder / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "in metadata"}\n')
    result = prepare(folder)
    assert [r.caption for r in result.records] == ["beside", "in metadata"]
    (found,) = [f for f in result.findings if f.code == "caption_conflict"]
    assert found.files == ("a.png", "b.png")


def test_tags_beside_a_caption_that_are_not_trained_are_named(folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps({"caption": "a dog", "tags": ["solo", "grass"]}))
    (folder / "b.json").write_text(json.dumps({"tags": ["solo", "cat"]}))
    result = prepare(folder)
    assert [r.caption for r in result.records] == ["a dog", "solo, cat"]
    assert [f.files for f in result.findings if f.code == "caption_tags_unused"] == [("a.png",)]


@pytest.mark.parametrize("columns_", [("a", "a"), ("text", "text"), ("file_name", "text", "file_name")])
def test_two_columns_of_one_name_are_refused(columns_: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="two columns are named"):
        columns.check_column_names(columns_, "t.parquet")
