"""Tests of caption files with several lines: tags, captions of their own, one caption in lines."""

from __future__ import annotations

import pytest

from data_tools.captions import lines
from lorakit.core.errors import ConfigError

LONG = "a golden retriever with a red collar sits on the green lawn in"


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("1girl\nblue eyes\nsolo", ["1girl, blue eyes, solo"]),
        ("1girl,\nblue eyes,\n", ["1girl, blue eyes"]),
        ("1girl, solo\nlong hair, looking at viewer", ["1girl, solo, long hair, looking at viewer"]),
        ("sks dog\r\ngrass\r\n", ["sks dog, grass"]),
        ("猫\n座る\n草", ["猫, 座る, 草"]),
    ],
)
def test_short_lines_are_tags(text, captions):
    found, notes = lines.split_captions(text, "a.txt")
    assert found == captions
    assert notes[0].startswith(lines.TAGS)


@pytest.mark.parametrize(
    "captions",
    [
        ["a photo of sks dog on the grass", "sks dog looking at the camera"],
        ["A dog sits on the lawn.", "The animal is seen from the side.", "There is a ball beside it."],
        [f"{LONG} the sun.", f"{LONG} the rain."],
        ["a photo of a very old dog that lies beside the fire", "the dog is asleep near a warm fireplace"],
    ],
)
def test_lines_that_are_sentences_are_a_caption_each(captions):
    found, notes = lines.split_captions("\n".join(captions), "a.txt")
    assert found == captions
    assert notes[0].startswith(lines.CAPTIONS)


@pytest.mark.parametrize(
    "text",
    [
        f"{LONG}\nfront of an old house",
        "A dog sits on the lawn.\n\nThe light comes from the left.",
        "a dog that lies on the grass, and\nlooks at the camera",
        "a very detailed photograph of a large dog beside\nsome trees and bushes in the park",
    ],
)
def test_a_caption_that_was_broken_into_lines_is_one(text):
    found, notes = lines.split_captions(text, "a.txt")
    assert found == [" ".join(line for line in text.split("\n") if line)]
    assert notes[0].startswith(lines.JOINED)


@pytest.mark.parametrize(
    ("mode", "captions"), [("join", ["a b"]), ("tags", ["a, b"]), ("captions", ["a", "b"])]
)
def test_the_way_can_be_chosen(mode, captions):
    assert lines.split_captions("a\n\nb\n", "a.txt", mode)[0] == captions


def test_one_line_is_kept_and_an_unknown_way_refused():
    assert lines.split_captions("a dog\n", "a.txt") == (["a dog\n"], [])
    with pytest.raises(ConfigError, match="caption-lines"):
        lines.check_line_mode("rows")
