"""Training items, their caches and the training set."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lorakit import manifest
from lorakit.config.concepts import Concept
from lorakit.core.errors import DataError
from lorakit.data import caches, dataset
from lorakit.data.items import ConceptRecords, load_training_records, plan_items
from lorakit.imaging import resize
from lorakit.models import base_model
from lorakit.models.families import detect_family
from tests import runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 6)


def test_the_manifests_buckets_are_used_if_they_fit_and_replaced_if_not(folder):
    records = load_training_records(folder)
    concept = Concept(folder=folder)
    planned = plan_items(ConceptRecords(concept, records), 64, 16, 1)
    items = planned.items
    assert not planned.from_manifest
    assert [item.record.file for item in items] == [record.file for record in records]
    assert len({item.bucket for item in items}) == 3
    assert all(side % 16 == 0 for item in items for side in item.bucket)
    bucketed = [dataclasses.replace(i.record, crop=i.crop, bucket=i.bucket) for i in items]
    data = ConceptRecords(concept, bucketed)
    again = plan_items(data, 64, 16, 1)
    assert again.from_manifest
    assert again.items == [dataclasses.replace(i, record=r) for i, r in zip(items, bucketed, strict=True)]
    assert not plan_items(data, 128, 16, 1).from_manifest
    assert not plan_items(data, 64, 64, 1).from_manifest


def test_a_missing_manifest_and_missing_captions_are_errors(tmp_path, folder):
    with pytest.raises(DataError, match="no manifest"):
        load_training_records(tmp_path)
    records = [dataclasses.replace(r, captions=()) for r in manifest.load_manifest(folder)]
    manifest.save_manifest(tmp_path, records)
    with pytest.raises(DataError, match=r"6 images have no caption: 0\.png"):
        load_training_records(tmp_path)


def test_latents_are_the_vaes_mean_of_the_cropped_and_resized_image(folder, tmp_path):
    from lorakit.models import vae

    base = base_model.resolve_base("tiny-unet")
    pipe = detect_family(base).load(base, dtype=torch.float32, only={"vae"})
    items = runs.load_items(folder)
    cache = caches.LatentCache(base, tmp_path)
    assert cache.missing(items) == items
    cache.fill(items[:2], pipe, quiet=True)
    assert cache.missing(items) == items[2:]
    image = resize.load_image_tensor(folder, items[1].record, items[1].crop, items[1].bucket)
    pixels = image[None] / 127.5 - 1
    expected = vae.encode_latents(pipe.vae, pixels).mean[0]
    assert torch.allclose(cache[items[1]], expected, atol=1e-5)
    assert cache[items[1]].shape[1:] == (items[1].bucket[1] // 4, items[1].bucket[0] // 4)


def test_an_edited_image_crop_or_caption_gets_no_stale_entry(folder, tmp_path):
    base = base_model.resolve_base("tiny-unet")
    items = runs.load_items(folder)
    cache = caches.LatentCache(base, tmp_path)
    item = items[0]
    edited = [
        dataclasses.replace(item, crop=(0, 0, 32, 32)),
        dataclasses.replace(item, bucket=(80, 48)),
        dataclasses.replace(item, record=dataclasses.replace(item.record, content_hash="f" * 64)),
    ]
    assert len({cache.key(i) for i in [item, *edited]}) == 4
    text = caches.TextCache(detect_family(base), base, torch.float32, tmp_path)
    half = caches.TextCache(detect_family(base), base, torch.bfloat16, tmp_path)
    other = caches.TextCache(
        detect_family(base), base_model.resolve_base("tiny-dit"), torch.float32, tmp_path
    )
    first, second = (caches.TextRequest(caption, (64, 64)) for caption in "ab")
    keys = {text.key(first), text.key(second), half.key(first), other.key(first)}
    assert len(keys) == 4


def test_an_epoch_contains_an_image_as_often_as_its_repeats_say(folder, tmp_path):
    base = base_model.resolve_base("tiny-unet")
    records = load_training_records(folder)
    records[2] = dataclasses.replace(records[2], repeats=3)
    items = plan_items(ConceptRecords(Concept(folder=folder), records), 64, 16, 1).items
    text = caches.TextCache(detect_family(base), base, torch.float32, tmp_path)
    train_set = dataset.TrainingSet(items, caches.LatentCache(base, tmp_path), text)
    assert [item.record.file for item in train_set.items].count("2.png") == 3
    assert len(train_set.items) == 8 == len(train_set.batch_shapes) == len(train_set.caption_choices)
