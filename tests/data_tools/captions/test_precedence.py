"""The source of each caption: file, metadata, model, folder, template; and what the summary says."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_tools.captions.edits import apply_edits
from data_tools.dataset import Dataset
from data_tools.prepare import PrepareOptions, caption_dataset, check_dataset_folder, prepare_dataset
from lorakit import manifest
from lorakit.core import storage
from lorakit.manifest import Caption
from tests.data_tools.folders import fill

TEMPLATE = "a photo of sks dog"


def prepare(folder: Path, **options: Any) -> Dataset:
    return prepare_dataset(folder, PrepareOptions(**{"resolution": 64, "quiet": True, **options}))


def texts(result: Dataset) -> dict[str, tuple[str, str]]:
    """Return the text and the source of each image's first caption."""
    return {r.file: (r.caption, r.captions[0].source) for r in result.records if r.captions}


def images(folder: Path, *names: str, **captions: str) -> Path:
    return fill(folder, {name: captions.get(name) for name in names}, size=(64, 64))


def add_model_caption(folder: Path, file: str) -> None:
    """Add a model's caption to the manifest, as an earlier `data caption` run leaves it."""
    records = [
        replace(r, captions=(Caption("seen by a model", "model", "m"),)) if r.file == file else r
        for r in manifest.load_manifest(folder)
    ]
    manifest.save_manifest(folder, records)


def test_folder_names_go_before_the_template(tmp_path: Path) -> None:
    images(tmp_path, "10_aaa dog/a.png", "3_bbb cat/b.png", "other/c.png")
    result = prepare(tmp_path, trigger="sks", class_noun="dog")
    assert texts(result) == {
        "10_aaa dog/a.png": ("aaa dog", "folder"),
        "3_bbb cat/b.png": ("bbb cat", "folder"),
        "other/c.png": (TEMPLATE, "template"),
    }
    assert result.counts()["captions"] == {"folder": 2, "template": 1}
    assert "captions   folder x 2, template x 1" in result.summary()
    report = storage.read_json(tmp_path / "report.json")
    assert report["counts"]["captions"] == {"folder": 2, "template": 1}
    assert "Sources of captions" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_requested_folder_names_are_used_though_a_trigger_is_given(tmp_path: Path) -> None:
    images(tmp_path, "red_fox/a.png", "grey wolf/b.png", "c.png")
    result = prepare(tmp_path, trigger="sks", caption_from_folder=True)
    assert texts(result) == {
        "red_fox/a.png": ("red fox", "folder"),
        "grey wolf/b.png": ("grey wolf", "folder"),
        "c.png": ("a photo of sks", "template"),  # it is in no named folder
    }
    (found,) = [f for f in result.findings if f.code == "trigger_missing"]
    assert set(found.files) == {"red_fox/a.png", "grey wolf/b.png"}


@pytest.mark.parametrize(
    ("sources", "options", "expected"),
    [
        ({"file", "metadata", "folder"}, {}, ("in the file", "file")),
        ({"file", "folder"}, {"class_noun": "dog"}, ("in the file", "file")),
        ({"metadata", "folder"}, {}, ("in metadata", "metadata")),
        ({"metadata", "folder"}, {"class_noun": "dog"}, ("in metadata", "metadata")),
        ({"metadata", "model"}, {}, ("in metadata", "metadata")),
        ({"model", "folder"}, {}, ("seen by a model", "model")),
        ({"model"}, {"class_noun": "dog"}, ("seen by a model", "model")),
        ({"folder"}, {"class_noun": "dog"}, ("aaa dog", "folder")),
        ({"folder"}, {}, ("aaa dog", "folder")),
        (set(), {"class_noun": "dog"}, ("a photo of dog", "template")),
        ({"file", "metadata", "folder"}, {"overwrite_captions": True, "class_noun": "dog"}, "template"),
        ({"file", "model"}, {"overwrite_captions": True, "trigger": "sks"}, "template"),
        (
            {"file", "metadata", "folder"},
            {"overwrite_captions": True, "caption_from_folder": True, "class_noun": "dog"},
            ("aaa dog", "folder"),
        ),
        (
            {"file", "folder"},
            {"overwrite_captions": True, "caption_from_folder": True},
            ("aaa dog", "folder"),
        ),
    ],
)
def test_each_combination_of_sources_has_one_caption(
    sources: set[str], options: dict[str, Any], expected: Any, tmp_path: Path
) -> None:
    file = ("10_aaa dog/" if "folder" in sources else "") + "a.png"
    images(tmp_path, file)
    if "model" in sources:
        prepare(tmp_path, class_noun="dog", report=False)
        add_model_caption(tmp_path, file)
        (tmp_path / manifest.METADATA_FILE).unlink()
    if "file" in sources:
        (tmp_path / file).with_suffix(".txt").write_text("in the file")
    if "metadata" in sources:
        (tmp_path / "metadata.csv").write_text(f"file_name,text\n{file},in metadata\n")
    for _ in range(2):  # the second time, the manifest has the first one's captions
        result = prepare(tmp_path, report=False, **options)
        caption, source = texts(result)[file]
        assert source == expected if isinstance(expected, str) else (caption, source) == expected


@pytest.mark.parametrize(
    ("captions", "code", "number"),
    [
        (["a dog", "a cat", "a bird"], "trigger_in_no_caption", 3),
        (["a sks dog", "a cat", "a sksy bird"], "trigger_missing", 2),
        (["SKS", "sks, cat", "a (sks) bird"], None, 0),
    ],
)
def test_a_trigger_in_no_or_few_captions_is_a_finding_whose_remedy_works(
    captions: list[str], code: str | None, number: int, tmp_path: Path
) -> None:
    fill(tmp_path, {f"{i}.png": text for i, text in enumerate(captions)}, size=(64, 64))
    options = PrepareOptions(resolution=64, quiet=True, trigger="sks")
    found = [f for f in check_dataset_folder(tmp_path, options).findings if "trigger" in f.code]
    assert [(f.level, f.code, len(f.files)) for f in found] == ([("warning", code, number)] if code else [])
    if not code:
        return
    assert "--caption-edit trigger=sks" in found[0].message
    result = caption_dataset(tmp_path, replace(options, caption_edits=("trigger=sks",)))
    assert not [f for f in result.findings if "trigger" in f.code]
    assert all("sks" in r.caption.lower() for r in result.records)


@pytest.mark.parametrize("placeholder", ["[trigger]", "{trigger}", "[Trigger Word]", "{trigger_word}"])
def test_a_placeholder_becomes_the_trigger_and_is_remembered(placeholder: str, tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": f"a photo of {placeholder} on grass"}, size=(64, 64))
    before = prepare(tmp_path)
    (found,) = [f for f in before.findings if f.code == "placeholder"]
    assert found.level == "warning"
    assert "--trigger" in found.message
    result = prepare(tmp_path, trigger="sks")
    assert texts(result) == {"a.png": ("a photo of sks on grass", "file")}
    assert {f.code for f in result.findings} >= {"caption_trigger_filled"}
    assert not {f.code for f in result.findings} & {"placeholder", "trigger_in_no_caption"}
    assert texts(prepare(tmp_path)) == texts(result)
    assert texts(prepare(tmp_path, trigger="ohwx")) == {"a.png": ("a photo of ohwx on grass", "file")}
    assert placeholder in (tmp_path / "a.txt").read_text()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (r"1girl, saber \(fate\), smile", "1girl, saber (fate), smile"),
        (r"\[x\] on a wall", "[x] on a wall"),
        (r"a \(b\) \(c\)", "a (b) (c)"),
    ],
)
def test_escaped_parentheses_are_read_as_plain_ones_with_a_note(
    text: str, plain: str, tmp_path: Path
) -> None:
    fill(tmp_path, {"a.png": text, "b.png": "a dog"}, size=(64, 64))
    result = prepare(tmp_path)
    assert texts(result)["a.png"] == (plain, "file")
    (found,) = [f for f in result.findings if f.code == "caption_parentheses_unescaped"]
    assert (found.level, found.files) == ("note", ("a.png",))
    assert "attention_weight" not in {f.code for f in result.findings}


def test_syntax_of_other_tools_is_a_finding_for_each_kind_with_a_working_edit(tmp_path: Path) -> None:
    captions = {
        "a.png": "a dog <lora:style:0.8>",
        "b.png": "a (red:1.3) dog",
        "c.png": "a dog --w 512 --h 512",
        "d.png": "a {red|blue} dog",
        "e.png": "a dog BREAK grass",
        "f.png": "a man (left) at 10:30",
    }
    fill(tmp_path, dict(captions), size=(64, 64))
    result = check_dataset_folder(tmp_path, PrepareOptions(resolution=64, quiet=True))
    found = {f.code: f for f in result.findings}
    expected = {
        "network_tag": "a.png",
        "attention_weight": "b.png",
        "prompt_options": "c.png",
        "wildcard": "d.png",
        "prompt_keyword": "e.png",
    }
    assert {code: found[code].files for code in expected} == {code: (f,) for code, f in expected.items()}
    assert not any("f.png" in f.files for f in result.findings)
    for code, file in expected.items():
        assert found[code].level == "warning"
        if "--caption-edit" in found[code].message:
            edit = shlex.split(found[code].message.partition("--caption-edit ")[2])[0]
            edited = apply_edits(captions[file], [edit])
            assert not {use for use in "<>:|" if use in edited}
            assert "dog" in edited
