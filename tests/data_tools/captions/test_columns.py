"""No word of a table or JSON file is lost: what is not clear is refused, what is not read is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.captions import columns
from data_tools.dataset import Dataset
from data_tools.formats.import_export import import_dataset
from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit.core.errors import DataError
from tests.data_tools.folders import fill

IMAGES = ("a.png", "b.png")


def prepare(folder: Path, **options: Any) -> Dataset:
    return prepare_dataset(folder, PrepareOptions(**{"resolution": 64, "quiet": True, **options}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos", dict.fromkeys(IMAGES), size=(64, 64))


@pytest.mark.parametrize(
    ("name", "content", "place", "words"),
    [
        ("metadata.csv", "file_name,text\na.png,a dog, sitting on a sofa\nb.png,x\n", "line 2", "3 cells"),
        ("metadata.csv", "file_name,text\na.png,a dog\nb.png\n", "line 3", "1 cells"),
        (
            "metadata.csv",
            "file_name,text,text\na.png,a,b\nb.png,c,d\n",
            "line 1",
            "two columns are named 'text'",
        ),
        ("metadata.csv", 'file_name,text\na.png,"a dog\nb.png,a cat\n', "line 3", "not a valid table"),
        (
            "metadata.csv",
            "file_name,text,caption\na.png,one,two\nb.png,x,x\n",
            "line 2",
            "different captions",
        ),
        ("metadata.csv", "file_name,text\na.png,one\na.png,two\n", "line 3", "two rows"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "one", "text": "two"}\n',
            "1",
            "'text' occurs twice",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "a", "x": {"k": 1, "k": 2}}\n',
            "1",
            "'k' occurs twice",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "a"}\n{"file_name": "a.png", "text": ""}\n',
            "row 2",
            "two rows",
        ),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "one", "prompt": "two"}\n', "row 1", "different"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": {"en": "one"}}\n', "row 1", "text must be text"),
        (
            "meta_cap.json",
            '{"a": {"caption": "one"}, "a": {"caption": "two"}}',
            "meta_cap.json",
            "occurs twice",
        ),
        ("meta_cap.json", '{"a": {"caption": "1"}, "x/a.png": {"caption": "2"}}', "meta_cap", "two entries"),
        ("meta_cap.json", '{"a": {"caption": "one", "tags": 5}}', "'a', tags", "neither text nor a list"),
        ("a.json", '{"caption": "one", "caption": "two"}', "a.json", "'caption' occurs twice"),
        ("a.json", '{"caption": "one", "text": "two"}', "a.json", "different captions"),
        (
            "a.json",
            '{"captions": ["one", "two"], "caption": "three"}',
            "a.json",
            "'three' is in caption only",
        ),
    ],
)
def test_what_would_lose_words_is_refused_with_its_place(
    folder: Path, name: str, content: str, place: str, words: str
) -> None:
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        prepare(folder, class_noun="dog")
    assert place in str(caught.value.where)
    assert name in str(caught.value.where)


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
        ("metadata.csv", "file_name,text,tags,id\na.png,x,solo,7\n", "tags"),
        (
            "a.json",
            '{"tag_string": "1girl long_hair", "tag_string_character": "saber", "id": 5}',
            "tag_string",
        ),
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


def _table(path: Path, **cells: list[Any]) -> Path:
    import pyarrow
    import pyarrow.parquet

    data = [(path.parent / "photos" / name).read_bytes() for name in IMAGES]
    pyarrow.parquet.write_table(
        pyarrow.table({"image": [{"bytes": d, "path": None} for d in data], **cells}), path
    )
    return path


def test_an_imported_table_names_columns_that_look_like_captions(folder: Path) -> None:
    table = _table(folder.parent / "t.parquet", description=["a dog", "a cat"])
    result = import_dataset(folder.parent / "out", [table])
    assert result.unread_columns == result.to_json()["unread_columns"] == ["description"]
    assert "description" in result.summary()


def test_an_imported_table_with_two_captions_is_refused_and_a_list_is_read(folder: Path) -> None:
    different = _table(folder.parent / "t.parquet", text=["a dog", "a cat"], caption=["a dog", "a bird"])
    with pytest.raises(DataError, match="different captions") as caught:
        import_dataset(folder.parent / "out", [different])
    assert "row 2" in str(caught.value.where)
    several = _table(folder.parent / "u.parquet", caption=[["one", "two"], ["three"]])
    import_dataset(folder.parent / "out2", [several])
    records = prepare(folder.parent / "out2").records
    assert [[c.text for c in r.captions] for r in records] == [["one", "two"], ["three"]]


@pytest.mark.parametrize("columns_", [("a", "a"), ("text", "text"), ("file_name", "text", "file_name")])
def test_two_columns_of_one_name_are_refused(columns_: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="two columns are named"):
        columns.check_column_names(columns_, "t.parquet")
