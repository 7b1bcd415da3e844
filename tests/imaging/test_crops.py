"""Buckets and crops of records: by hand stays by hand, tiers enlarge nothing, the trainer sees the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from lorakit.data.items import plan_items
from lorakit.imaging import buckets, crops, decode
from lorakit.manifest import Caption, Record

HASH = "ab" * 32


def record(width: int = 600, height: int = 400, **changes: object) -> Record:
    plain = Record("a.png", HASH, HASH, width, height, captions=(Caption("x", "sidecar"),))
    return replace(plain, **changes)  # type: ignore[arg-type]


def named(*records: Record) -> list[Record]:
    return [replace(r, file=f"{number}.png") for number, r in enumerate(records)]


def test_the_crop_is_centred_and_says_so() -> None:
    (placed,) = crops.assign_buckets_and_crops([record()], 256, 16, mode="square")
    assert (placed.bucket, placed.crop, placed.crop_by) == ((256, 256), (100, 0, 500, 400), "centre")
    assert not crops.has_user_crop(placed)
    assert crops.cropped_fraction(placed) == pytest.approx(1 / 3)
    assert crops.upscale_factor(placed) == pytest.approx(256 / 400)


@pytest.mark.parametrize("mark", [None, "centre", "user"])
@pytest.mark.parametrize("mode", buckets.MODES)
@pytest.mark.parametrize("resolution", [256, 512])
def test_a_crop_set_by_hand_is_never_touched(mark: str | None, mode: str, resolution: int) -> None:
    (first,) = crops.assign_buckets_and_crops([record()], 256, 16, mode="square")
    edited = replace(first, crop=(310, 20, 590, 380), crop_by=mark)
    again = edited
    for _ in range(3):
        (again,) = crops.assign_buckets_and_crops([again], resolution, 16, mode=mode, batch=4)
        assert again.crop == (310, 20, 590, 380)
        assert again.crop_by == "user"
    assert again.bucket is not None
    if mode in ("auto", "native"):
        assert crops.cropped_fraction(again) < 0.01


def test_a_shape_that_others_have_serves_a_hand_set_crop_when_it_cuts_little() -> None:
    others = [record(900, 600) for _ in range(4)]
    near = record(crop=(0, 0, 450, 301), crop_by="user")  # 1.495 where the others have 1.5
    far = record(crop=(0, 0, 300, 301), crop_by="user")
    placed = crops.assign_buckets_and_crops(named(*others, near, far), 256, 16, batch=4)
    assert placed[4].bucket == placed[0].bucket
    assert placed[5].bucket == (256, 256)


def test_an_earlier_manifests_centred_crop_is_not_taken_for_a_persons() -> None:
    (placed,) = crops.assign_buckets_and_crops([record()], 256, 16, mode="square")
    old = replace(placed, crop_by=None)
    (again,) = crops.assign_buckets_and_crops([old], 256, 16)
    assert again.crop != old.crop
    assert again.crop_by == "centre"


def test_what_is_kept_of_a_hand_set_crop_is_its_middle_in_the_buckets_aspect() -> None:
    odd = record(crop=(100, 100, 500, 200), crop_by="user", bucket=(256, 256))
    assert crops.training_crop(odd) == (250, 100, 350, 200)
    assert crops.cropped_fraction(odd) == pytest.approx(0.75)
    assert crops.training_crop(record(crop=None, bucket=(256, 256))) == (100, 0, 500, 400)


def test_tiers_never_enlarge_unless_allowed() -> None:
    records = named(record(1500, 1000), record(800, 800), record(600, 400), record(200, 100))
    placed = crops.assign_buckets_and_crops(records, 1024, 16, tiers=(512, 768, 1024), upscale=False)
    areas = [r.bucket[0] * r.bucket[1] if r.bucket else None for r in placed]
    assert areas[3] is None
    assert placed[3].crop is None
    assert areas[2] is None  # 600x400 is 0.9 of 512 squared
    for placed_record, tier in zip(placed, (1024, 768), strict=False):
        assert crops.upscale_factor(placed_record) <= buckets.MAX_UNNOTICED_UPSCALE
        assert placed_record.bucket is not None
        assert placed_record.bucket[0] * placed_record.bucket[1] == pytest.approx(tier**2, rel=0.05)
    enlarged = crops.assign_buckets_and_crops(records, 1024, 16, tiers=(512, 768, 1024), upscale=True)
    assert all(r.bucket for r in enlarged)
    assert crops.upscale_factor(enlarged[3]) > 2


@pytest.mark.parametrize("seed", range(5))
def test_shared_shapes_of_a_tier_enlarge_nothing(seed: int) -> None:
    import numpy as np

    rng = np.random.default_rng(seed)
    sizes = [(int(w), int(h)) for w, h in rng.integers(500, 1400, (40, 2))]
    records = named(*(record(*size) for size in sizes))
    placed = crops.assign_buckets_and_crops(records, 1024, 16, batch=4, tiers=(512, 768, 1024), upscale=False)
    found = [r for r in placed if r.bucket]
    assert len(found) > 30
    assert max(map(crops.upscale_factor, found)) <= buckets.MAX_UNNOTICED_UPSCALE


def test_the_trainer_takes_what_was_placed() -> None:
    records = named(record(1500, 1000), record(800, 800, crop=(0, 0, 700, 640), crop_by="user"))
    tiered = crops.assign_buckets_and_crops(records, 1024, 16, tiers=(512, 1024), upscale=False)
    items, own = plan_items(tiered, 1024, 16, 1)
    assert own
    assert [item.size for item in items] == [r.bucket for r in tiered]
    # At another resolution, shapes are chosen anew, and the hand-set crop still holds.
    items, own = plan_items(tiered, 512, 16, 1)
    assert not own
    left, top, right, bottom = items[1].crop
    assert (left, top) >= (0, 0)
    assert (right, bottom) <= (700, 640)
    assert (right - left) * (bottom - top) > 0.98 * 700 * 640
    picture = decode.crop_and_resize(Image.new("RGB", (800, 800)), items[1].crop, items[1].size)
    assert picture.size == items[1].size


def test_what_a_model_is_shown_changes_with_the_crop() -> None:
    first, other = record(crop=(0, 0, 400, 400), bucket=(256, 256)), record(crop=(100, 0, 500, 400))
    assert crops.crop_hash(first) != crops.crop_hash(other)
    assert crops.crop_hash(first) == crops.crop_hash(replace(first, file="b.png"))
