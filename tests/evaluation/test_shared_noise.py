"""Folders whose seeds have equal numbers: the same noise, or that of another generator."""

from __future__ import annotations

import numpy as np
import pytest

from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.shared_noise import share_noise, unpaired_note


def features(seed: int, num_prompts: int, num_seeds: int, correlation: float):
    """Return keys, images and base images; `correlation` is the part of an image that its noise decides."""
    generator = np.random.default_rng(seed)
    keys = [SampleKey(f"p{p}", s) for p in range(num_prompts) for s in range(num_seeds)]
    prompts = np.repeat(generator.normal(size=(num_prompts, 64)), num_seeds, axis=0)
    noise = generator.normal(size=(len(keys), 64))
    rows = []
    for _ in range(2):
        own = generator.normal(size=noise.shape)
        rows.append(prompts + correlation * noise + np.sqrt(1 - correlation**2) * own)
    return keys, *(row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows)


@pytest.mark.parametrize(("num_prompts", "num_seeds"), [(24, 4), (8, 4), (24, 2), (12, 3)])
def test_the_same_noise_is_recognised(num_prompts, num_seeds):
    results = [share_noise(*features(seed, num_prompts, num_seeds, 0.8)) for seed in range(20)]
    assert results.count(True) >= 19


@pytest.mark.parametrize(("num_prompts", "num_seeds"), [(24, 4), (8, 4), (24, 2), (12, 3)])
def test_other_noise_under_the_same_seeds_is_recognised(num_prompts, num_seeds):
    results = [share_noise(*features(seed, num_prompts, num_seeds, 0.0)) for seed in range(100)]
    assert results.count(False) >= 96


@pytest.mark.parametrize(("num_prompts", "num_seeds"), [(24, 1), (1, 2), (3, 2)])
def test_too_few_seeds_cannot_tell(num_prompts, num_seeds):
    assert share_noise(*features(0, num_prompts, num_seeds, 0.9)) is None


def test_a_model_that_makes_one_image_of_all_seeds_cannot_tell():
    keys, images, base = features(0, 24, 4, 0.9)
    images = np.repeat(images[::4], 4, axis=0)
    assert share_noise(keys, images, base) is None


def test_the_order_of_the_images_does_not_matter():
    keys, images, base = features(3, 24, 4, 0.8)
    order = np.random.default_rng(0).permutation(len(keys))
    assert share_noise([keys[row] for row in order], images[order], base[order]) is True


def test_only_noise_that_is_not_shared_or_not_known_is_noted():
    assert unpaired_note("images", True) is None
    assert "Drift is not measured" in unpaired_note("images", False)
    assert "It is unknown" in unpaired_note("images", None)
