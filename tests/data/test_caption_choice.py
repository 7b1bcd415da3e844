"""The caption of each use: order of tags, tags left out, shares of several captions; by their frequencies."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest

from lorakit.config.caption_use import CaptionUse
from lorakit.core.words import is_tag_list
from lorakit.data import batch_sampler
from lorakit.data.caption_choice import caption_as_written, caption_choice, vary_tags
from lorakit.manifest import Caption

TAGS = "sks, red, round, shiny"
LONG = "A red ball lies on a table, and a cat looks at it."


def use(**keys: Any) -> CaptionUse:
    return CaptionUse.model_validate(keys)


def texts(captions: list[Caption], settings: CaptionUse, count: int, seed: int = 0) -> list[str]:
    """The captions of `count` uses of one image."""
    choices = [caption_choice(captions, settings, "image")]
    samples = (batch_sampler.sample_at(position, choices, seed) for position in range(count))
    return [
        vary_tags(captions[s.caption_index].text, settings, s.tag_seed, ["sks"])
        if s.tag_seed is not None
        else captions[s.caption_index].text
        for s in samples
    ]


def tags_of(text: str, count: int = 2000, **keys: Any) -> list[list[str]]:
    settings = use(**keys)
    separator = f"{settings.tag_separator} "
    return [line.split(separator) for line in texts([Caption(text, "file")], settings, count)]


def assert_share(hits: int, count: int, share: float) -> None:
    """The number of hits is within 4 standard deviations of a binomial distribution."""
    assert abs(hits - share * count) < 4 * math.sqrt(count * share * (1 - share)), (hits, count, share)


@pytest.mark.parametrize("seed", [0, 7])
def test_every_order_of_the_tags_is_as_frequent_as_any_other(seed):
    lines = texts([Caption(TAGS, "file")], use(shuffle_tags=True), 4800, seed)
    counts = Counter(tuple(line.split(", ")) for line in lines)
    assert set(counts) == set(itertools.permutations(TAGS.split(", ")))
    chi_squared = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_squared < 60  # 23 degrees of freedom: 1 in 30,000


@pytest.mark.parametrize(
    ("text", "keys", "first", "last"),
    [
        (TAGS, {"keep_first": 1}, ["sks"], []),
        (TAGS, {"keep_first": 2}, ["sks", "red"], []),
        ("sks, red ||| a, b, c ||| end, fin", {"keep_marker": "|||"}, ["sks", "red"], ["end", "fin"]),
        ("sks ||| a, b, c", {"keep_marker": "|||", "keep_first": 3}, ["sks"], []),
        ("sks; a, b; c; d", {"keep_first": 1, "tag_separator": ";"}, ["sks"], []),
    ],
)
def test_kept_tags_stay_in_place_and_the_others_move(text, keys, first, last):
    lines = tags_of(text, 300, shuffle_tags=True, tag_dropout=0.2, **keys)
    whole = {tag.strip() for part in text.split("|||") for tag in part.split(keys.get("tag_separator", ","))}
    assert all(line[: len(first)] == first and line[len(line) - len(last) :] == last for line in lines)
    free = [tuple(line[len(first) : len(line) - len(last)]) for line in lines]
    assert {tag for line in free for tag in line} == whole - set(first) - set(last)
    assert len(set(free)) >= 5


def test_tags_are_left_out_with_their_probability_but_not_the_trigger():
    lines = tags_of("red, sks dog, " + ", ".join(f"tag {i}" for i in range(8)), tag_dropout=0.3)
    for tag in ("red", "tag 3", "tag 7"):
        assert_share(sum(tag in line for line in lines), len(lines), 0.7)
    assert all("sks dog" in line for line in lines)
    orders = [[tag for tag in line if tag.startswith("tag")] for line in lines]
    assert all(line == sorted(line) for line in orders)  # without shuffle_tags their order stays
    together = sum("red" in line and "tag 3" in line for line in lines)
    assert_share(together, len(lines), 0.49)  # independently of each other


def test_at_least_one_tag_stays():
    lines = tags_of("a, b", tag_dropout=0.9)
    assert {tuple(line) for line in lines} == {("a",), ("b",), ("a", "b")}


def test_grouped_tags_move_and_vanish_together():
    lines = tags_of("sky;;;cloud, red, round, x", shuffle_tags=True, tag_dropout=0.3, group_separator=";;;")
    assert {"sky" in line for line in lines} == {True, False}
    for line in lines:
        assert ("sky" in line) == ("cloud" in line)
        assert "sky" not in line or line[line.index("sky") + 1] == "cloud"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, [1 / 3, 1 / 3, 1 / 3]),
        ({"sentences": 7, "tags": 3}, [0.7, 0.15, 0.15]),
        ({"model": 0.9, "file": 0.1}, [0.9, 0.1, 0]),
        ({"metadata": 1, "template": 5}, [0, 0, 1]),
        ([1, 3], [0.25, 0.75, 0]),
        ([2, 1, 1, 9], [0.5, 0.25, 0.25]),
    ],
)
def test_several_captions_are_used_by_their_weights(weights, expected):
    captions = [Caption(LONG, "model"), Caption(TAGS, "file"), Caption("blue, dark", "metadata")]
    used = Counter(texts(captions, use(weights=weights), 4000))
    for caption, share in zip(captions, expected, strict=True):
        assert_share(used[caption.text], 4000, share) if 0 < share < 1 else None
        assert share > 0 or used[caption.text] == 0
        assert share < 1 or used[caption.text] == 4000


def test_weights_and_dropout_and_the_order_of_tags_are_independent():
    captions = [Caption(LONG, "file"), Caption(TAGS, "file")]
    settings = use(weights={"sentences": 1, "tags": 3}, shuffle_tags=True, caption_dropout=0.2)
    choices = [caption_choice(captions, settings, "image")]
    samples = [batch_sampler.sample_at(position, choices, 5) for position in range(4000)]
    dropped = [s for s in samples if s.caption_index == batch_sampler.EMPTY_CAPTION]
    tags = [s for s in samples if s.caption_index == 1]
    assert_share(len(dropped), 4000, 0.2)
    assert_share(len(tags), 4000 - len(dropped), 0.75)
    lines = [vary_tags(TAGS, settings, s.tag_seed) for s in tags]
    assert_share(sum(line.startswith("sks") for line in lines), len(lines), 0.25)
    assert all(s.tag_seed is None for s in samples if s.caption_index == 0)  # sentences are never shuffled


@pytest.mark.parametrize("versions", [1, 3, 8])
def test_a_number_of_versions_bounds_the_texts(versions):
    settings = use(shuffle_tags=True, versions=versions)
    lines = Counter(texts([Caption("a, b, c, d, e, f, g", "file")], settings, 1600))
    assert len(lines) == versions
    for count in lines.values() if versions > 1 else ():
        assert_share(count, 1600, 1 / versions)


def test_the_caption_of_a_use_depends_on_no_batch_size_process_or_other_image():
    settings = use(shuffle_tags=True, caption_dropout=0.1, weights=[1, 1])
    images = [[Caption(f"{i}, a, b, c, d", "file"), Caption(f"{i}, e, f, g", "file")] for i in range(5)]
    choices = [caption_choice(captions, settings, f"image {i}") for i, captions in enumerate(images)]
    one = [s for step in range(48) for s in batch_sampler.step_samples(step, 1, choices, 3)]
    four = [s for step in range(12) for s in batch_sampler.step_samples(step, 4, choices, 3)]
    assert one == four
    split = [
        s
        for step in range(12)
        for rank in range(2)
        for s in batch_sampler.shard(batch_sampler.step_samples(step, 4, choices, 3), rank, 2)
    ]
    assert sorted(split, key=lambda s: s.position) == one
    assert batch_sampler.sample_at(31, choices, 3) == one[31]  # without those before
    assert [s.tag_seed for s in one] != [batch_sampler.sample_at(p, choices, 4).tag_seed for p in range(48)]
    orders = {i: [s.tag_seed for s in one if s.image_index == i and s.tag_seed is not None] for i in range(5)}
    seeds = [seed for values in orders.values() for seed in values]
    assert len(seeds) > 30
    assert len(set(seeds)) == len(seeds)  # a new order for each image at each use


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TAGS, True),
        ("1girl, solo, looking at another with a smile, long hair, smile", True),
        ("hatsune miku (cosplay), 1girl", True),
        (LONG, False),
        ("A dog, on a table.", False),
        ("a photo of sks dog", False),
        (
            "The dog sits on the grass of the garden, looking to the left at something dark",
            False,
        ),
        ("Red ball. Blue cat, dark", False),
        ("v1.5, 3.5 mm lens, f/1.8", True),
        ("红色, 圆形, 发光", True),
        ("", False),
    ],
)
def test_lists_of_tags_are_recognized(text, expected):
    assert is_tag_list(text) is expected


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        ("a,b", {"shuffle_tags": True}, "a,b"),  # no marker: every byte stays
        ("a ||| b, c", {"keep_marker": "|||"}, "a, b, c"),
        ("a ||| b, c ||| d", {"keep_marker": "|||"}, "a, b, c, d"),
        ("a, sky;;;cloud", {"group_separator": ";;;"}, "a, sky, cloud"),
        ("a ||| b;;;c", {"keep_marker": "|||", "group_separator": ";;;"}, "a, b, c"),
    ],
)
def test_markers_never_reach_the_text_encoder(text, keys, expected):
    assert caption_as_written(text, use(**keys)) == expected
