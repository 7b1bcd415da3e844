"""Buckets and crops of records: crops set by hand are kept, and training uses the same crops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lorakit.config.concepts import Concept
from lorakit.data.items import ConceptRecords, plan_items
from lorakit.imaging import buckets, crops, decode
from lorakit.manifest import Caption, Record

HASH = "ab" * 32


def record(width: int = 600, height: int = 400, **changes: object) -> Record:
    plain = Record("a.png", HASH, HASH, width, height, captions=(Caption("x", "file"),))
    return replace(plain, **changes)  # type: ignore[arg-type]


def named(*records: Record) -> list[Record]:
    return [replace(r, file=f"{number}.png") for number, r in enumerate(records)]


def test_the_crop_is_centered_and_its_source_is_recorded() -> None:
    (bucketed,) = crops.assign_buckets_and_crops([record()], 256, 16, mode="square")
    assert (bucketed.bucket, bucketed.crop, bucketed.crop_source) == (
        (256, 256),
        (100, 0, 500, 400),
        "center",
    )
    assert not crops.has_user_crop(bucketed)
    assert crops.cropped_fraction(bucketed) == pytest.approx(1 / 3)
    assert crops.upscale_factor(bucketed) == pytest.approx(256 / 400)


@pytest.mark.parametrize("source", [None, "center", "user"])
@pytest.mark.parametrize("mode", buckets.MODES)
@pytest.mark.parametrize("resolution", [256, 512])
def test_a_crop_set_by_hand_is_never_changed(source: str | None, mode: str, resolution: int) -> None:
    (first,) = crops.assign_buckets_and_crops([record()], 256, 16, mode="square")
    edited = replace(first, crop=(310, 20, 590, 380), crop_source=source)
    again = edited
    for _ in range(3):
        (again,) = crops.assign_buckets_and_crops([again], resolution, 16, mode=mode, batch_size=4)
        assert again.crop == (310, 20, 590, 380)
        assert again.crop_source == "user"
    assert again.bucket is not None
    if mode in ("auto", "native"):
        assert crops.cropped_fraction(again) < 0.01


def test_a_crop_set_by_hand_gets_a_bucket_of_other_images_if_that_crops_little() -> None:
    others = [record(900, 600) for _ in range(4)]
    near = record(crop=(0, 0, 450, 301), crop_source="user")  # 1.495 where the others have 1.5
    far = record(crop=(0, 0, 300, 301), crop_source="user")
    bucketed = crops.assign_buckets_and_crops(named(*others, near, far), 256, 16, batch_size=4)
    assert bucketed[4].bucket == bucketed[0].bucket
    assert bucketed[5].bucket == (256, 256)


def test_a_centered_crop_without_a_source_does_not_count_as_set_by_hand() -> None:
    (bucketed,) = crops.assign_buckets_and_crops([record()], 256, 16, mode="square")
    old = replace(bucketed, crop_source=None)
    (again,) = crops.assign_buckets_and_crops([old], 256, 16)
    assert again.crop != old.crop
    assert again.crop_source == "center"


def test_training_uses_the_center_of_a_crop_set_by_hand_in_the_buckets_aspect() -> None:
    odd = record(crop=(100, 100, 500, 200), crop_source="user", bucket=(256, 256))
    assert crops.training_crop(odd) == (250, 100, 350, 200)
    assert crops.cropped_fraction(odd) == pytest.approx(0.75)
    assert crops.training_crop(record(crop=None, bucket=(256, 256))) == (100, 0, 500, 400)


def test_several_resolutions_never_upscale_unless_allowed() -> None:
    records = named(record(1500, 1000), record(800, 800), record(600, 400), record(200, 100))
    bucketed = crops.assign_buckets_and_crops(records, 1024, 16, resolutions=(512, 768, 1024), upscale=False)
    areas = [r.bucket[0] * r.bucket[1] if r.bucket else None for r in bucketed]
    assert areas[3] is None
    assert bucketed[3].crop is None
    assert areas[2] is None  # 600x400 is 0.9 of 512 squared
    for bucketed_record, resolution in zip(bucketed, (1024, 768), strict=False):
        assert crops.upscale_factor(bucketed_record) <= buckets.MAX_UNNOTICED_UPSCALE
        assert bucketed_record.bucket is not None
        assert bucketed_record.bucket[0] * bucketed_record.bucket[1] == pytest.approx(resolution**2, rel=0.05)
    upscaled = crops.assign_buckets_and_crops(records, 1024, 16, resolutions=(512, 768, 1024), upscale=True)
    assert all(r.bucket for r in upscaled)
    assert crops.upscale_factor(upscaled[3]) > 2


@pytest.mark.parametrize("seed", range(5))
def test_shared_buckets_of_several_resolutions_upscale_nothing(seed: int) -> None:
    import numpy as np

    rng = np.random.default_rng(seed)
    sizes = [(int(w), int(h)) for w, h in rng.integers(500, 1400, (40, 2))]
    records = named(*(record(*size) for size in sizes))
    bucketed = crops.assign_buckets_and_crops(
        records, 1024, 16, batch_size=4, resolutions=(512, 768, 1024), upscale=False
    )
    used = [r for r in bucketed if r.bucket]
    assert len(used) > 30
    assert max(map(crops.upscale_factor, used)) <= buckets.MAX_UNNOTICED_UPSCALE


def test_training_uses_the_buckets_and_crops_of_the_manifest() -> None:
    records = named(record(1500, 1000), record(800, 800, crop=(0, 0, 700, 640), crop_source="user"))
    bucketed = crops.assign_buckets_and_crops(records, 1024, 16, resolutions=(512, 1024), upscale=False)
    data = ConceptRecords(Concept(folder=Path("photos")), bucketed)
    planned = plan_items(data, 1024, 16, 1)
    assert planned.from_manifest
    assert [item.bucket for item in planned.items] == [r.bucket for r in bucketed]
    # At another resolution, new buckets are chosen inside the crop set by hand.
    planned = plan_items(data, 512, 16, 1)
    assert not planned.from_manifest
    item = planned.items[1]
    left, top, right, bottom = item.crop
    assert (left, top) >= (0, 0)
    assert (right, bottom) <= (700, 640)
    assert (right - left) * (bottom - top) > 0.98 * 700 * 640
    image = decode.crop_and_resize(Image.new("RGB", (800, 800)), item.crop, item.bucket)
    assert image.size == item.bucket


def test_the_crop_hash_changes_with_the_crop_not_with_the_file_name() -> None:
    first, other = record(crop=(0, 0, 400, 400), bucket=(256, 256)), record(crop=(100, 0, 500, 400))
    assert crops.crop_hash(first) != crops.crop_hash(other)
    assert crops.crop_hash(first) == crops.crop_hash(replace(first, file="b.png"))
