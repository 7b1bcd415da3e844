"""Edits of captions: applied in order, recorded, and refused if invalid."""

from __future__ import annotations

import pytest

from data_tools.captions import edits
from lorakit.core.errors import ConfigError
from lorakit.manifest import Caption


@pytest.mark.parametrize(
    ("text", "specs", "expected"),
    [
        ("The image shows a dog on grass.", ["strip-preamble"], "A dog on grass."),
        ("Sure! Here is a detailed caption of the image: A dog runs.", ["strip-preamble"], "A dog runs."),
        ("In this photo, there is a dog.", ["strip-preamble"], "A dog."),
        ("A dog in the image of its mother.", ["strip-preamble"], "A dog in the image of its mother."),
        ("a dog", ["trigger=sks"], "sks, a dog"),
        ("a photo of SKS dog", ["trigger=sks"], "a photo of SKS dog"),
        ("a task", ["trigger=sk"], "sk, a task"),
        ("a dog", ["prefix=photo of ", "suffix=, film grain"], "photo of a dog, film grain"),
        ("colour, grey", ["replace=/gr[ae]y/silver/"], "colour, silver"),
        ("a/b", ["replace=|a/(.)|\\1/a|"], "b/a"),
        ("1girl, Solo, solo, cat, 1girl", ["dedupe"], "1girl, Solo, cat"),
        ("1girl, solo, cat", ["drop=Solo,1girl"], "cat"),
        ("cat, long hair", ["alias=cat:feline,long hair:mane"], "feline, mane"),
        ("One. Two! Three? Four", ["max-sentences=2"], "One. Two!"),
        ("One two. Three four five. Six.", ["max-words=5"], "One two. Three four five."),
        (
            "A long first sentence stays whole. Not this.",
            ["max-words=2"],
            "A long first sentence stays whole.",
        ),
        ('He said "Stop." Then 3.5 m on.', ["max-sentences=1"], 'He said "Stop."'),
        ("The image shows a cat.", ["strip-preamble", "replace=/\\.$//", "trigger=sks"], "sks, A cat"),
    ],
)
def test_each_edit(text: str, specs: list[str], expected: str) -> None:
    assert edits.apply_edits(text, specs) == expected


def test_a_shuffle_keeps_the_first_tags_and_depends_only_on_the_key() -> None:
    text = "a, b, " + ", ".join(str(number) for number in range(20))
    shuffled = edits.apply_edits(text, ["shuffle=2"], key=7)
    assert shuffled.startswith("a, b, ")
    assert shuffled != text
    assert sorted(shuffled.split(", ")) == sorted(text.split(", "))
    assert shuffled == edits.apply_edits(text, ["shuffle=2"], key=7)
    assert shuffled != edits.apply_edits(text, ["shuffle=2"], key=8)


def test_edits_start_from_the_original_text() -> None:
    plain = Caption("The image shows a dog.", "model", "m")
    once = edits.edit_caption(plain, ["strip-preamble"], "a.png", 0)
    assert (once.text, once.original_text, once.edits) == (
        "A dog.",
        "The image shows a dog.",
        ("strip-preamble",),
    )
    again = edits.edit_caption(once, ["trigger=sks"], "a.png", 0)
    assert (again.text, again.original_text) == ("sks, The image shows a dog.", "The image shows a dog.")
    assert edits.edit_caption(again, [], "a.png", 0) == plain


@pytest.mark.parametrize(
    "spec",
    [
        *("", "polish", "trigger", "dedupe=yes", "replace=/a/b", "replace=/(/b/", "replace=/a/\\9/"),
        *("max-sentences=0", "max-sentences=two", "alias=cat", "alias=:x", "max-words=", "shuffle=-1"),
    ],
)
def test_an_invalid_edit_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError) as caught:
        edits.check_edits(["dedupe", spec])
    assert caught.value.remedy


def test_whole_sentences_leave_out_an_incomplete_one() -> None:
    assert edits.whole_sentences("A dog. It runs over the") == "A dog."
    assert edits.whole_sentences("A dog. It runs.") == "A dog. It runs."
    assert edits.whole_sentences("A dog that") == ""
    assert edits.whole_sentences("") == ""
