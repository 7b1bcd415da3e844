from __future__ import annotations

import dataclasses

import pytest
import torch

from lorakit import manifest
from lorakit.config import recipe
from lorakit.core.errors import DataError
from lorakit.data import caches, dataset
from lorakit.data.items import load_training_records, plan_items
from lorakit.imaging import resize
from lorakit.models import base_model
from lorakit.models.families import detect_family
from lorakit.training import run_plan
from tests import runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 6)


def test_the_manifests_buckets_serve_when_they_suit_and_are_replaced_when_not(folder):
    records = load_training_records(folder)
    items, own = plan_items(records, 64, 16, 1)
    assert not own
    assert [item.record.file for item in items] == [record.file for record in records]
    assert len({item.size for item in items}) == 3
    assert all(side % 16 == 0 for item in items for side in item.size)
    planned = [dataclasses.replace(i.record, crop=i.crop, bucket=i.size) for i in items]
    again, own = plan_items(planned, 64, 16, 1)
    assert own
    assert [(i.crop, i.size) for i in again] == [(i.crop, i.size) for i in items]
    assert not plan_items(planned, 128, 16, 1)[1]
    assert not plan_items(planned, 64, 64, 1)[1]


def test_missing_manifest_and_captions_are_named(tmp_path, folder):
    with pytest.raises(DataError, match="no manifest"):
        load_training_records(tmp_path)
    records = [dataclasses.replace(r, captions=()) for r in manifest.load_manifest(folder)]
    manifest.save_manifest(tmp_path, records)
    with pytest.raises(DataError, match=r"6 images have no caption: 0\.png"):
        load_training_records(tmp_path)


def test_latents_are_the_autoencoders_mean_of_the_fitted_picture(folder, tmp_path):
    from lorakit.models import vae

    base = base_model.resolve_base("tiny-unet")
    pipe = detect_family(base).load(base, dtype=torch.float32, only={"vae"})
    items, _ = plan_items(load_training_records(folder), 64, 16, 1)
    cache = caches.LatentCache(folder, base, tmp_path)
    assert cache.missing(items) == items
    cache.fill(items[:2], pipe, quiet=True)
    assert cache.missing(items) == items[2:]
    picture = resize.load_image_tensor(folder, items[1].record, items[1].crop, items[1].size)
    pixels = picture[None] / 127.5 - 1
    expected = vae.encode_latents(pipe.vae, pixels)[0][0]
    assert torch.allclose(cache[items[1]], expected, atol=1e-5)
    assert cache[items[1]].shape[1:] == (items[1].size[1] // 4, items[1].size[0] // 4)


def test_an_edited_picture_crop_or_caption_meets_no_stale_entry(folder, tmp_path):
    base = base_model.resolve_base("tiny-unet")
    items, _ = plan_items(load_training_records(folder), 64, 16, 1)
    cache = caches.LatentCache(folder, base, tmp_path)
    item = items[0]
    edited = [
        dataclasses.replace(item, crop=(0, 0, 32, 32)),
        dataclasses.replace(item, size=(80, 48)),
        dataclasses.replace(item, record=dataclasses.replace(item.record, pixels="f" * 64)),
    ]
    assert len({cache.key(i) for i in [item, *edited]}) == 4
    text = caches.TextCache(detect_family(base), base, torch.float32, tmp_path)
    half = caches.TextCache(detect_family(base), base, torch.bfloat16, tmp_path)
    other = caches.TextCache(
        detect_family(base), base_model.resolve_base("tiny-dit"), torch.float32, tmp_path
    )
    square = (64, 64)
    keys = {text.key("a", square), text.key("b", square), half.key("a", square), other.key("a", square)}
    assert len(keys) == 4


def test_repeats_show_an_image_more_often(folder, tmp_path):
    base = base_model.resolve_base("tiny-unet")
    records = load_training_records(folder)
    records[2] = dataclasses.replace(records[2], repeats=3)
    items, _ = plan_items(records, 64, 16, 1)
    text = caches.TextCache(detect_family(base), base, torch.float32, tmp_path)
    made = dataset.TrainingSet(items, caches.LatentCache(folder, base, tmp_path), text)
    assert [item.record.file for item in made.items].count("2.png") == 3
    assert len(made.items) == 8 == len(made.shapes) == len(made.captions)


def test_the_held_out_share_is_fixed_and_leaves_something_to_train_on(folder):
    items, _ = plan_items(load_training_records(folder), 64, 16, 1)
    tree = {"base": "tiny-dit", "dataset": "d", "out": "o"}
    half = recipe.parse_recipe(tree | {"validate": {"fraction": 0.5}})
    held, train = run_plan.split_held_out(items, half)
    assert len(held) == 3
    assert sorted(i.record.file for i in held + train) == sorted(i.record.file for i in items)
    assert run_plan.split_held_out(list(reversed(items)), half)[0] == list(reversed(held))
    greedy = recipe.parse_recipe(tree | {"validate": {"fraction": 0.99}})
    assert len(run_plan.split_held_out(items, greedy)[1]) == 1
    assert run_plan.split_held_out(items, recipe.parse_recipe(tree)) == ([], items)
