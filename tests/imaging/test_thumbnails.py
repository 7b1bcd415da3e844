"""Copies of an image agree with it pixel by pixel, and other images do not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from lorakit.imaging import thumbnails


def picture(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A smooth image with colors, different for every seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (7, 7, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def agreement(sample: Image.Image, *references: Image.Image) -> list[float]:
    def aspects(images: list[Image.Image]) -> np.ndarray:
        return np.array([image.width / image.height for image in images], np.float32)

    samples = np.stack([thumbnails.thumbnail(sample)])
    others = np.stack([thumbnails.thumbnail(image) for image in references])
    return thumbnails.agreement(samples, aspects([sample]), others, aspects(list(references)))[0].tolist()


COPIES = {
    "same": lambda image: image,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "smaller": lambda image: image.resize((48, 48)),
    "cropped": lambda image: image.crop((3, 5, 92, 94)).resize((96, 96)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_copy_agrees_with_its_original_only(kind, seed):
    own, other = agreement(COPIES[kind](picture(seed)), picture(seed), picture(seed + 10))
    assert own > 0.95
    assert other < 0.7


@pytest.mark.parametrize("left", [0, 32, 64])
def test_a_square_copy_agrees_with_the_part_of_a_wide_photo_that_it_shows(left):
    wide = picture(3, (160, 96))
    (value,) = agreement(wide.crop((left, 0, left + 96, 96)), wide)
    assert value > 0.97


def test_another_color_is_another_image():
    image = picture(5)
    red, green, blue = image.split()
    assert agreement(Image.merge("RGB", (blue, red, green)), image)[0] < 0.8


def test_an_image_of_one_color_agrees_with_nothing():
    plain = Image.new("RGB", (64, 64), (200, 30, 30))
    assert max(agreement(plain, plain, picture(1))) == 0
