"""`eval score` with the ImageNet encoder: the nearest image is of the same subject, and copies are found."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lorakit.evaluation.metrics import imagenet_encoder
from lorakit.quickstart import shape_world
from tests.benchmarks import evaluation_photos
from tests.long_tier import long

pytestmark = [
    long,
    pytest.mark.skipif(
        not imagenet_encoder.is_installed(), reason="the package with the ImageNet encoder is not installed"
    ),
]

SUBJECTS = (("heart", "red", "white"), ("moon", "yellow", "blue"), ("cross", "green", "pink"))
PLACES = ("left", "top")


def test_rendered_subjects_are_told_apart_and_their_copies_found(tmp_path):
    """Two images of each of three subjects, on backgrounds with grain, as a camera would take them."""
    rng = np.random.default_rng(0)
    for shape, color, background in SUBJECTS:
        (tmp_path / shape).mkdir()
        for number, position in enumerate(PLACES):
            scene = shape_world.Scene(shape, color, background, "solid", "large", position)
            pixels = np.asarray(shape_world.render_scene(scene, 192), np.float64)
            texture = rng.normal(0, 25, (12, 12, 3))
            grain = np.asarray(
                Image.fromarray(np.uint8(np.clip(texture + 128, 0, 255))).resize((192, 192)), np.float64
            )
            image = np.clip(pixels + grain - 128, 0, 255).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / shape / f"{number:02}.png")
    results = evaluation_photos.measure(tmp_path)
    assert results["photos"] == 6
    assert results["nearest_of_same_subject"] == 6
    assert results["other_photos_called_copies"] == []
    assert min(results["copies_found"].values()) >= 0.8
