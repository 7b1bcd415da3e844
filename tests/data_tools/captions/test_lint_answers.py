"""Tests of what slipped through as a caption: markup, one answer for many images, another script."""

from __future__ import annotations

import pytest

from data_tools.captions.lint_answers import answer_findings
from lorakit.manifest import Caption, Record
from tests.data_tools.captions.answer_samples import DESCRIPTIONS, DOG, UNUSABLE

SEEN = ["A brown dog runs.", "A cat sleeps on a chair.", "Two birds in the sky.", "A red car in the rain."]


def record(number: int, text: str, source: str = "model", tags: tuple[str, ...] = ()) -> Record:
    caption = Caption(text, source, "m" if source == "model" else None, "what?")
    return Record(f"{number}.png", f"{number}", f"{number}", 64, 64, captions=(caption,), tags=tags)


def codes(*records: Record) -> dict[str, tuple[str, ...]]:
    return {finding.code: finding.files for finding in answer_findings(records)}


@pytest.mark.parametrize("text", [*UNUSABLE.values(), f"<think>hm</think>{DOG}", f'{{"caption": "{DOG}"}}'])
def test_an_answer_in_the_manifest_that_is_more_than_a_description_is_found(text: str) -> None:
    assert codes(record(0, SEEN[1]), record(1, text))["caption_markup"] == ("1.png",)


@pytest.mark.parametrize("text", [f"{DOG}<|im_end|>", f"<p>{DOG}</p>", f"```{DOG}```", f"{DOG}</s>"])
def test_markup_in_a_caption_file_is_found(text: str) -> None:
    assert codes(record(0, SEEN[1], "file"), record(1, text, "file"))["caption_markup"] == ("1.png",)


def test_plain_captions_have_no_findings() -> None:
    plain = [*SEEN, *DESCRIPTIONS[:18]]
    assert codes(*(record(number, text) for number, text in enumerate(plain))) == {}
    assert codes(*(record(number, text, "file") for number, text in enumerate(plain))) == {}
    assert codes(record(0, "^_^, >_<", tags=("^_^", ">_<")), record(1, "1girl, <3", "file")) == {}


def test_one_answer_for_different_images_is_suspect() -> None:
    same = [record(number, "A photo of a person.") for number in range(3)]
    assert codes(*same)["captioner_same_answer"] == ("0.png", "1.png", "2.png")
    assert codes(*same[:2]) == {}
    assert codes(*(record(number, "A photo of a person.", "file") for number in range(3))) == {}


def test_a_caption_in_another_script_is_found() -> None:
    english = [record(number, text) for number, text in enumerate(SEEN)]
    assert codes(*english, record(9, "一只狗坐在草地上。"))["caption_script"] == ("9.png",)
    assert codes(*english, record(9, 'A sign with the words "止まれ" in a street.')) == {}
    chinese = ["一只狗坐在草地上。", "两只猫在椅子上睡觉。", "天空中的鸟。"]
    assert codes(*(record(number, text) for number, text in enumerate(chinese))) == {}
