"""Checks of caption texts: phrases, preambles, refusals, and captions of an earlier image."""

from __future__ import annotations

from dataclasses import replace

from data_tools.captions import lint
from lorakit.imaging import crops
from lorakit.manifest import Caption, Record

HASH = "ab" * 32


def captioned(*texts: str) -> list[Record]:
    return [
        Record(f"{number}.png", HASH, HASH, 64, 64, captions=(Caption(text, "file"),))
        for number, text in enumerate(texts)
    ]


def codes(*texts: str) -> set[str]:
    return {finding.code for finding in lint.lint_captions(captioned(*texts))}


def test_a_refusal_among_the_captions_is_a_finding() -> None:
    assert "captioner_refusal" in codes("I cannot describe people.", "a dog")
    assert "captioner_refusal" not in codes("a man who cannot swim", "a dog")


def test_a_preamble_is_noted() -> None:
    (found,) = [
        f
        for f in lint.lint_captions(captioned("The image shows a dog.", "a dog on grass"))
        if f.code == "caption_preamble"
    ]
    assert (found.level, found.files) == ("note", ("0.png",))


def test_phrases_are_counted_by_caption_and_only_the_longest_are_returned() -> None:
    records = captioned(
        "a brown clay teapot on a table, brown clay teapot",
        "the brown clay teapot in a shelf",
        "a brown clay teapot and a red cup",
        "a red cup",
        "something else",
    )
    assert lint.frequent_phrases(records) == [("brown clay teapot", 3), ("red cup", 2)]
    assert lint.frequent_phrases(records, limit=1) == [("brown clay teapot", 3)]
    assert lint.frequent_phrases([]) == []


def test_a_caption_of_an_earlier_image_is_a_warning() -> None:
    (record,) = captioned("a dog")
    now = replace(record, captions=(Caption("a dog", "model", "m", image_hash=crops.crop_hash(record)),))
    assert not [f for f in lint.lint_captions([now]) if f.code == "stale_caption"]
    changed = replace(now, content_hash="cd" * 32)
    assert [f.files for f in lint.lint_captions([changed]) if f.code == "stale_caption"] == [("0.png",)]


def test_token_counts_replace_the_estimate_of_tokens() -> None:
    records = captioned("word " * 80)
    assert "long_caption" in {f.code for f in lint.lint_captions(records)}
    assert "long_caption" not in {f.code for f in lint.lint_captions(records, tokens_counted=True)}
