"""Masks of the loss: on the latents' grid, cached by content, and images that are gray outside them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lorakit.config import recipe
from lorakit.core.errors import ConfigError, DataError
from lorakit.data import caches, mask_cache
from lorakit.data.items import DatasetItem
from lorakit.models import base_model
from tests import runs
from tests.masked_data import add_masks, repaint_unmasked

GRID = (16, 16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_masks(runs.make_dataset(tmp_path_factory.mktemp("data"), 3))


def items_of(folder: Path) -> list[DatasetItem]:
    return runs.load_items(folder)


def test_a_mask_is_the_mean_over_each_latents_pixels(data, tmp_path):
    item = items_of(data)[0]
    assert item.bucket == (64, 64)
    cache = mask_cache.MaskCache({item.bucket: GRID}, tmp_path)
    cache.fill([item], quiet=True)
    expected = torch.zeros(1, *GRID)
    expected[:, 4:14, 4:12] = 1
    assert torch.equal(cache.get(item), expected)
    cropped = dataclasses.replace(item, crop=(14, 0, 64, 50))
    cache.fill([cropped], quiet=True)
    mask = cache.get(cropped)
    assert 0 < mask[0, 6, 0] < 1  # its pixels lie on both sides of the edge
    assert (mask[0, :4] == 0).all()
    assert cache.key(item) != cache.key(cropped)
    other = dataclasses.replace(item, record=dataclasses.replace(item.record, mask_content_hash="0" * 64))
    assert cache.key(item) != cache.key(other)


def test_an_image_without_a_mask_has_full_weight(data, tmp_path):
    item = items_of(data)[1]
    assert item.record.mask is None
    cache = mask_cache.MaskCache({item.bucket: (16, 24)}, tmp_path)
    cache.fill([item], quiet=True)
    assert torch.equal(cache.get(item), torch.ones(1, 16, 24))


def test_a_mask_that_is_black_in_the_crop_is_an_error_that_names_the_image(data, tmp_path):
    item = dataclasses.replace(items_of(data)[0], crop=(0, 0, 64, 12))
    cache = mask_cache.MaskCache({item.bucket: GRID}, tmp_path)
    with pytest.raises(DataError, match="mask is black everywhere in its crop") as caught:
        cache.fill([item], quiet=True)
    assert item.record.file in str(caught.value)
    cache.fill([item], allow_empty=True, quiet=True)


def test_pixels_outside_the_mask_have_no_influence_on_the_encoded_image(data, tmp_path):
    other = repaint_unmasked(data, tmp_path / "other", seed=1)
    for mine, theirs in zip(items_of(data), items_of(other), strict=True):
        for crop, size in ((mine.crop, mine.bucket), ((3, 5, 61, 60), (80, 48))):  # resized too
            same = [
                mask_cache.load_image_gray_unmasked(folder, item.record, crop, size)
                for folder, item in ((data, mine), (other, theirs))
            ]
            assert torch.equal(*same)
        gray_image = mask_cache.load_image_gray_unmasked(data, mine.record, mine.crop, mine.bucket)
        is_gray = (gray_image == mask_cache.GRAY_LEVEL).all(0)
        assert bool(is_gray.any()) == bool(mine.record.mask)


def test_latents_of_images_that_are_gray_outside_have_their_own_keys(data, tmp_path):
    base, items = base_model.resolve_base("tiny-dit"), items_of(data)
    plain, gray = (caches.LatentCache(base, tmp_path, gray_unmasked=gray) for gray in (False, True))
    assert [plain.key(item) == gray.key(item) for item in items] == [i.record.mask is None for i in items]


def test_a_dataset_without_masks_is_refused_before_a_model_is_loaded(tmp_path):
    from lorakit.training import run_plan

    folder = runs.make_dataset(tmp_path / "data", 2)
    file = runs.make_recipe(
        tmp_path / "r.yaml", "tiny-dit", folder, tmp_path / "run", objective={"masked_loss": {}}
    )
    with pytest.raises(ConfigError, match="no image of the dataset has one"):
        run_plan.plan_training(recipe.load_recipe(file), print)
