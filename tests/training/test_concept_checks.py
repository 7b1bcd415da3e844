"""Warnings about concepts whose images or captions contradict each other."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from lorakit.config.concepts import Concept
from lorakit.data.items import ConceptRecords
from lorakit.manifest import Caption, Record
from lorakit.training.concept_checks import concept_warnings

REX = {"folder": Path("photos/rex"), "trigger": "sks", "class_noun": "dog"}
MIA = {"folder": Path("photos/mia"), "trigger": "ohwx", "class_noun": "cat"}


def data(concept: dict[str, Any], *captions: str, first: int = 0, source: str = "file") -> ConceptRecords:
    """A folder with an image for each caption; the content of an image is its number."""
    records = [
        Record(f"{n}.png", f"{n:064x}", f"{n:064x}", 64, 64, (Caption(text, source),))
        for n, text in enumerate(captions, first)
    ]
    return ConceptRecords(Concept(**concept), records)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (data(MIA, "an ohwx cat"), "1 images are in folders with different trigger words"),
        (data(MIA, "an ohwx cat", "an ohwx cat"), "rex/0.png = mia/0.png, rex/1.png = mia/1.png"),
        (data({"folder": Path("photos/all")}, "a pet"), "1 images are in folders with different"),
        (data({**REX, "folder": Path("photos/more")}, "a sks dog"), None),
        (data(MIA, "an ohwx cat", first=10), None),
    ],
)
def test_images_in_folders_of_different_triggers_are_named(second, words):
    lines = list(concept_warnings([data(REX, "a sks dog", "a sks dog"), second]))
    assert [words in line for line in lines] == ([True] if words else [])


@pytest.mark.parametrize(
    ("captions", "words"),
    [
        (["a sks cat"], "1 images of photos/mia have the trigger 'sks' of another concept"),
        (["an ohwx cat", "SKS on a sofa"], "1 images of photos/mia have the trigger 'sks'"),
        (["an ohwx cat and a sks dog"], None),
        (["a sksy cat"], None),
    ],
)
def test_captions_with_the_trigger_of_another_concept_only_are_named(captions, words):
    lines = list(concept_warnings([data(REX, "a sks dog"), data(MIA, *captions, first=10)]))
    assert [words in line for line in lines] == ([True] if words else [])


@pytest.mark.parametrize(
    ("concept", "caption", "words"),
    [
        (REX, "a photo of zwx dog", "--trigger sks --class-noun dog"),
        (
            {**REX, "captions": "{trigger} indoors"},
            "a photo of sks dog",
            "--caption-template '{trigger} indoors'",
        ),
        (
            {"folder": Path("my photos"), "class_noun": "cat"},
            "a photo of dog",
            "'my photos' --class-noun cat",
        ),
        (REX, "a photo of sks dog", None),
        ({**REX, "captions": "{trigger} indoors"}, "sks indoors", None),
        ({"folder": Path("photos")}, "a photo of sks dog", None),
    ],
)
def test_captions_of_an_earlier_template_are_named_with_the_command_that_changes_them(
    concept, caption, words
):
    lines = list(concept_warnings([data(concept, caption, source="template")]))
    assert [words in line for line in lines] == ([True] if words else [])
    assert all("lorakit data caption" in line for line in lines)


def test_the_command_of_the_warning_changes_the_captions(tmp_path):
    from PIL import Image

    from data_tools.prepare import PrepareOptions, prepare_dataset
    from lorakit.cli import main
    from lorakit.core import storage
    from lorakit.data.items import load_concepts

    folder = tmp_path / "my photos"
    storage.save_image(folder / "0.png", Image.new("RGB", (64, 64), "red"))
    prepare_dataset(folder, PrepareOptions(resolution=64, trigger="zwx", class_noun="dog", quiet=True))
    concept = Concept(folder=folder, trigger="sks", class_noun="dog", captions="{trigger} the {class_noun}")
    lines = list(concept_warnings(load_concepts([concept])))
    assert len(lines) == 1
    command = shlex.split(lines[0].rpartition("to change it: ")[2])
    assert main.main(command[1:]) == 0
    assert not list(concept_warnings(load_concepts([concept])))
    assert load_concepts([concept])[0].captions == ["sks the dog"]
