"""Warnings about captions when a run begins, in its report and its exports."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from lorakit import adapters, manifest
from lorakit.config.concepts import Concept
from lorakit.data.items import ConceptRecords, load_concepts
from lorakit.manifest import Caption
from lorakit.training.data_warnings import data_warnings, triggers_in_captions
from tests import runs
from tests.commands import call_data


def dataset(folder: Path, *captions: str) -> Path:
    """Write a prepared folder with one image for each caption, which its caption file has too."""
    runs.make_dataset(folder, len(captions))
    records = [
        replace(record, captions=(Caption(text, "file"),))
        for record, text in zip(manifest.load_manifest(folder), captions, strict=True)
    ]
    manifest.save_manifest(folder, records)
    for record in records:
        (folder / record.file).with_suffix(".txt").write_text(record.caption)
    return folder


def warnings(folder: Path, trigger: str | None = "sks") -> list[str]:
    return data_warnings(load_concepts([Concept(folder=folder, trigger=trigger)]))


@pytest.mark.parametrize(
    ("captions", "words"),
    [
        (("a dog", "a cat", "a sksy bird"), "no caption of"),
        (("a sks dog", "a cat", "a bird"), "the captions of 2 of 3 images"),
        (("SKS", "(sks) cat", "a sks"), None),
    ],
)
def test_a_missing_trigger_is_named_with_a_command_that_adds_it(
    captions: tuple[str, ...], words: str | None, tmp_path: Path
) -> None:
    folder = dataset(tmp_path / "my photos", *captions)
    found = warnings(folder)
    assert bool(found) == bool(words)
    assert warnings(folder, None) == []
    if words:
        assert words in found[0]
        command = shlex.split(found[0].partition("to add it: ")[2])
        assert command[:2] == ["lorakit", "data"]
        call_data(*command[2:], "--quiet")
        assert warnings(folder) == []


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a dog <lora:x:1>", "a tag of a network"),
        ("a dog --w 512 --n bad", "options of a prompt file"),
        ("a [trigger] dog", "a placeholder"),
        (r"saber \(fate\)", "escaped parentheses"),
        ("a (red:1.2) dog", "attention syntax"),
    ],
)
def test_syntax_of_other_tools_is_named_for_each_folder(caption: str, words: str, tmp_path: Path) -> None:
    concepts = load_concepts(
        [
            Concept(folder=dataset(tmp_path / "one", "a man (left) at 10:30", "a dog -- brown")),
            Concept(folder=dataset(tmp_path / "two", "a cat", caption)),
        ]
    )
    (found,) = data_warnings(concepts)
    assert words in found
    assert str(tmp_path / "two" / "1.png") in found


def test_a_trigger_counts_as_learned_if_any_caption_has_it() -> None:
    captions = ["a sks dog", "a cat", "ohwxs"]
    assert triggers_in_captions(["sks", "ohwx", "cat"], captions) == ("sks", "cat")
    assert data_warnings([ConceptRecords(Concept(folder=Path("x"), trigger="sks"), [])]) == []


@pytest.mark.parametrize(("trigger", "exported"), [("sks", "sks"), ("zwx", None)])
def test_a_trigger_that_no_caption_has_is_logged_reported_and_not_exported(
    trigger: str, exported: str | None, tmp_path: Path
) -> None:
    folder = dataset(tmp_path / "data", "a sks dog", "a sks cat <lora:x:1>")
    train = {"steps": 1, "batch_size": 1, "save_every": 1, "precision": "fp32"}
    file = runs.make_recipe(
        tmp_path / "r.json",
        "tiny-dit",
        folder,
        tmp_path / "run",
        train=train,
        trigger=trigger,
        export=["comfyui"],
    )
    run = runs.train(file)
    log = (run / "log.txt").read_text(encoding="utf-8")
    report = (run / "report.html").read_text(encoding="utf-8")
    for text in (log, report):
        assert "a tag of a network" in text
        assert ("no caption of" in text) == (exported is None)
    assert adapters.read_adapter_metadata(run / "adapter.safetensors").get("trigger") == exported
    (exported_file,) = (run / "exports").glob("*.safetensors")
    header = exported_file.read_bytes()[:20_000]
    assert (b"modelspec.trigger_phrase" in header) == (exported is not None)
