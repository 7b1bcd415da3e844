"""The match of captions and images, and two subjects under one trigger, on simulated features."""

from __future__ import annotations

import numpy as np
import pytest

from lorakit.evaluation.caption_match import measure_caption_match

DIMENSION = 64


def features(count: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of images and of captions that say the same, up to noise and a constant offset."""
    rng = np.random.default_rng(seed)
    common, offset = rng.normal(size=(2, DIMENSION)) * 2
    content = rng.normal(size=(count, DIMENSION))
    images = common + content + noise * rng.normal(size=content.shape)
    captions = common + offset + content + noise * rng.normal(size=content.shape)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, captions))


def measure(images: np.ndarray, captions: np.ndarray, texts: list[str] | None = None):
    texts = texts or [f"caption {i}" for i in range(len(images))]
    return measure_caption_match(images, captions, texts, [f"{i}.png" for i in range(len(images))])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "noise"), [(8, 0.5), (12, 1.0), (40, 1.5)])
def test_captions_of_their_images_match_and_those_of_others_do_not(count, noise, seed):
    images, captions = features(count, noise, seed)
    assert measure(images, captions).share.mean > 0.6
    shuffled = measure(images, np.roll(captions, 1, axis=0))
    assert shuffled.share.mean < 0.35
    assert shuffled.share.ci_high < 0.8
    assert shuffled.worst


def test_a_few_swapped_captions_are_named():
    images, captions = features(20, 0.5, 0)
    captions[[3, 11]] = captions[[11, 3]]
    match = measure(images, captions)
    assert match.share.mean > 0.6
    assert set(match.worst[:2]) == {"3.png", "11.png"}


def test_captions_that_are_alike_are_not_compared():
    images, captions = features(12, 0.5, 0)
    assert measure(images, captions, ["a photo of a dog"] * 12) is None
    assert measure(images, captions, ["a photo", "an image", "a dog"] * 4) is None
    assert measure(images, np.repeat(captions[:1], 12, axis=0)) is None
