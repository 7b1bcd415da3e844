"""Masks on their way into the loss: on the latents' grid, cached by content, and pictures painted outside."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lorakit import manifest
from lorakit.config import recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.data import caches, mask_cache
from lorakit.data.items import DatasetItem, load_training_records, plan_items
from lorakit.imaging import decode, masks
from lorakit.models import base_model
from tests import runs

GRID = (16, 16)


def with_masks(folder: Path, box: tuple[int, int, int, int] = (16, 16, 48, 56), every: int = 2) -> Path:
    """Masks with a white box for every second picture of a dataset."""
    records = manifest.load_manifest(folder)
    for index in range(0, len(records), every):
        mask = Image.new("L", records[index].size)
        ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
        file = storage.save_image(folder / "masks" / f"{index}.png", mask)
        records[index] = dataclasses.replace(
            records[index],
            mask=file.relative_to(folder).as_posix(),
            mask_source="metadata",
            mask_pixels=masks.mask_hash(mask),
        )
    manifest.save_manifest(folder, records)
    return folder


def repainted(folder: Path, copy: Path, seed: int) -> Path:
    """The dataset with other pixels outside every mask."""
    rng = np.random.default_rng(seed)
    records = manifest.load_manifest(folder)
    for index, record in enumerate(records):
        pixels = np.array(Image.open(folder / record.file))
        if record.mask:
            outside = np.array(Image.open(folder / record.mask)) == 0
            storage.copy_file(folder / record.mask, copy / record.mask)
            pixels[outside] = rng.integers(0, 255, (int(outside.sum()), 3))
        picture = Image.fromarray(pixels)
        file = storage.save_image(copy / record.file, picture)
        changes = {"sha256": storage.sha256_file(file), "pixels": decode.pixel_hash(picture)}
        records[index] = dataclasses.replace(record, **changes)
    manifest.save_manifest(copy, records)
    return copy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_masks(runs.make_dataset(tmp_path_factory.mktemp("data"), 3))


def items_of(folder: Path) -> list[DatasetItem]:
    return plan_items(load_training_records(folder), 64, 16, 1)[0]


def test_a_mask_is_the_mean_over_each_latents_pixels(data, tmp_path):
    item = items_of(data)[0]
    assert item.size == (64, 64)
    cache = mask_cache.MaskCache(data, {item.size: GRID}, tmp_path)
    cache.fill([item], quiet=True)
    expected = torch.zeros(1, *GRID)
    expected[:, 4:14, 4:12] = 1
    assert torch.equal(cache.get(item), expected)
    cropped = dataclasses.replace(item, crop=(14, 0, 64, 50))
    cache.fill([cropped], quiet=True)
    made = cache.get(cropped)
    assert 0 < made[0, 6, 0] < 1  # its pixels lie on both sides of the edge
    assert (made[0, :4] == 0).all()
    assert cache.key(item) != cache.key(cropped)
    other = dataclasses.replace(item, record=dataclasses.replace(item.record, mask_pixels="0" * 64))
    assert cache.key(item) != cache.key(other)


def test_a_picture_without_a_mask_counts_whole(data, tmp_path):
    item = items_of(data)[1]
    assert item.record.mask is None
    cache = mask_cache.MaskCache(data, {item.size: (16, 24)}, tmp_path)
    cache.fill([item], quiet=True)
    assert torch.equal(cache.get(item), torch.ones(1, 16, 24))


def test_a_mask_that_shows_nothing_of_the_crop_is_named(data, tmp_path):
    item = dataclasses.replace(items_of(data)[0], crop=(0, 0, 64, 12))
    cache = mask_cache.MaskCache(data, {item.size: GRID}, tmp_path)
    with pytest.raises(DataError, match="mask is black within what is trained on") as caught:
        cache.fill([item], quiet=True)
    assert item.record.file in str(caught.value)
    cache.fill([item], empty=True, quiet=True)


def test_hidden_pixels_change_no_bit_of_the_picture_that_is_encoded(data, tmp_path):
    other = repainted(data, tmp_path / "other", seed=1)
    for mine, theirs in zip(items_of(data), items_of(other), strict=True):
        for crop, size in ((mine.crop, mine.size), ((3, 5, 61, 60), (80, 48))):  # resized too
            same = [
                mask_cache.load_image_gray_unmasked(folder, item.record, crop, size)
                for folder, item in ((data, mine), (other, theirs))
            ]
            assert torch.equal(*same)
        hidden = mask_cache.load_image_gray_unmasked(data, mine.record, mine.crop, mine.size)
        grey = (hidden == mask_cache.GRAY_LEVEL).all(0)
        assert bool(grey.any()) == bool(mine.record.mask)


def test_hidden_latents_have_an_address_of_their_own(data, tmp_path):
    base, items = base_model.resolve_base("tiny-dit"), items_of(data)
    plain, hide = (caches.LatentCache(data, base, tmp_path, hide=hide) for hide in (False, True))
    assert [plain.key(item) == hide.key(item) for item in items] == [i.record.mask is None for i in items]


def test_a_dataset_without_masks_is_refused_before_any_model(tmp_path):
    from lorakit.training import run_plan

    folder = runs.make_dataset(tmp_path / "data", 2)
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", folder, tmp_path / "run", objective={"mask": {}})
    with pytest.raises(ConfigError, match=r"objective\.mask.*no picture of the dataset has one"):
        run_plan.plan_training(recipe.load_recipe(file), print)
