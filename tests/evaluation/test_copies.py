"""Copies are decided image by image; duplicates among the training images hide none."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lorakit.evaluation.copies import CopyScale, TrainingMatch, is_copy
from lorakit.evaluation.metrics.pixels import ImagePixels, PixelEncoder, unpack_pixels
from lorakit.evaluation.references import group_near_duplicates
from lorakit.evaluation.training_images import TrainingImages

SCALE = CopyScale(12, similarity=0.6, agreement=0.5)
SIDE = 5


def picture(seed: int) -> Image.Image:
    colors = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((64, 64), Image.Resampling.BICUBIC)


def pixels(images: list[Image.Image]) -> ImagePixels:
    return unpack_pixels(PixelEncoder().image_features(images).double().numpy())


def features(images: list[Image.Image]) -> np.ndarray:
    """Features that a mirror image does not change much, as those of an image encoder."""
    vectors = []
    for image in images:
        small = np.asarray(image.resize((SIDE, SIDE)), np.float64) - 128
        vectors.append((small + 0.8 * small[:, ::-1]).ravel())
    return np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)


def training_images(images: list[Image.Image]) -> TrainingImages:
    return TrainingImages([f"{i:02}.png" for i in range(len(images))], features(images), pixels(images))


MIRROR = Image.Transpose.FLIP_LEFT_RIGHT
CHANGES = {
    "same": lambda image: image,
    "mirrored": lambda image: image.transpose(MIRROR),
    "cropped": lambda image: image.crop((2, 3, 61, 62)).resize((64, 64)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("duplicate", [None, *CHANGES])
def test_a_copy_is_recognized_also_if_its_original_is_there_twice(change, duplicate):
    images = [picture(seed) for seed in range(12)]
    training = training_images(images + ([CHANGES[duplicate](images[3])] if duplicate else []))
    assert training.num_units == 12
    sample = CHANGES[change](images[3])
    (match,) = training.compare(features([sample]), pixels([sample]))
    assert match.image in ("03.png", "12.png")
    assert is_copy(match, training.scale)


@pytest.mark.parametrize("count", [3, 5, 12])
def test_other_images_are_no_copies(count):
    training = training_images([picture(seed) for seed in range(count)])
    fresh = [picture(100 + seed) for seed in range(30)]
    matches = training.compare(features(fresh), pixels(fresh))
    assert not any(is_copy(match, training.scale) for match in matches)


def test_a_duplicate_changes_neither_the_scale_nor_the_second_nearest_image():
    images = [picture(seed) for seed in range(12)]
    plain, doubled = training_images(images), training_images([*images, images[0]])
    assert doubled.scale == plain.scale
    fresh = [picture(50)]
    assert plain.compare(features(fresh), pixels(fresh)) == doubled.compare(features(fresh), pixels(fresh))


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_distinct_images_have_no_scale(count):
    images = [picture(seed) for seed in range(count)]
    training = training_images(images * 3)
    assert training.num_units == count
    assert training.scale is None
    assert training.compare(features(images), pixels(images))[0].image == "00.png"


@pytest.mark.parametrize(
    ("agreement", "similarity", "second_agreement", "expected"),
    [
        (0.99, 0.95, 0.3, True),
        (0.99, 0.5, 0.3, True),  # the same pixels, mirrored
        (0.9, 0.9, 0.3, True),  # a crop, also by features
        (0.9, 0.65, 0.3, False),  # features say another image
        (0.9, 0.9, 0.85, False),  # as near to another training image
        (0.98, 0.95, 0.97, False),
        (0.7, 0.97, 0.3, False),  # the same subject in another image
    ],
)
def test_a_copy_is_near_by_pixels_and_if_they_are_not_the_same_by_features(
    agreement, similarity, second_agreement, expected
):
    match = TrainingMatch("a.png", similarity, agreement, 0.55, second_agreement)
    assert is_copy(match, SCALE) is expected


@pytest.mark.parametrize(
    ("sscd", "typical", "expected"),
    [(0.4, 0.1, False), (0.55, 0.1, True), (0.55, None, True), (0.6, 0.55, False), (0.9, 0.55, True)],
)
def test_sscd_above_one_half_is_a_copy_unless_the_training_images_are_alike_too(sscd, typical, expected):
    match = TrainingMatch("a.png", 0.6, 0.2, 0.6, 0.1)
    assert is_copy(match, CopyScale(12, 0.6, 0.5, typical), sscd) is expected


def test_matches_and_scale_survive_json():
    match = TrainingMatch("a.png", 0.9, 0.8, 0.7, 0.6)
    assert TrainingMatch.from_json(match.to_json()) == match
    assert CopyScale.from_json(SCALE.to_json()) == SCALE


def test_near_duplicates_are_grouped_by_pixels_not_by_similar_features():
    images = [picture(seed) for seed in range(6)]
    images += [images[1].transpose(MIRROR), CHANGES["cropped"](images[2])]
    measured = pixels(images)
    groups = group_near_duplicates(features(images), measured.agreement(measured).astype(np.float64))
    assert sorted(map(len, groups)) == [1, 1, 1, 1, 2, 2]
    assert [1, 6] in groups
    assert [2, 7] in groups
