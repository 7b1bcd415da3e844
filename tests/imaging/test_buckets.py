"""The arithmetic of buckets against brute force and hand-computed cases."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from lorakit.core.errors import ConfigError
from lorakit.imaging import buckets

CAMERA = [(3000, 2000)] * 48 + [(2000, 3000)] * 20 + [(4000, 3000)] * 25 + [(3000, 4000)] * 9
CAMERA += [(1000, 1000)] * 7 + [(1920, 1080)] * 8 + [(1080, 1920)] * 3


def cost(
    sizes: list[buckets.ImageSize],
    bucket_list: list[buckets.ImageSize],
    batch_size: int,
    waste: float,
    weights: list[int] | None = None,
) -> float:
    """The documented cost of an assignment, computed directly."""
    total, slots = 0.0, Counter()
    for size, bucket, weight in zip(sizes, bucket_list, weights or [1] * len(sizes), strict=True):
        crop = buckets.crop_fraction(size, bucket)
        total += weight * (crop + buckets.EXCESS_CROP_COST * max(0.0, crop - buckets.FREE_CROP_FRACTION))
        slots[bucket] += weight
    return total + waste * sum(-count % batch_size for count in slots.values())


def cheapest_by_brute_force(
    sizes: list[buckets.ImageSize],
    allowed: list[buckets.ImageSize],
    batch_size: int,
    k: int,
    waste: float,
    weights: list[int] | None = None,
) -> float:
    """Try every split of the sorted images into at most k intervals, and every bucket for each."""
    order = sorted(range(len(sizes)), key=lambda i: sizes[i][0] / sizes[i][1])
    ordered, weights_in_order = [sizes[i] for i in order], [(weights or [1] * len(sizes))[i] for i in order]
    best = math.inf
    for clusters in range(1, min(k, len(sizes)) + 1):
        for cuts in itertools.combinations(range(1, len(sizes)), clusters - 1):
            borders = [0, *cuts, len(sizes)]
            for bucket_list in itertools.product(allowed, repeat=clusters):
                chosen = []
                for bucket, (first, last) in zip(bucket_list, itertools.pairwise(borders), strict=True):
                    chosen += [bucket] * (last - first)
                best = min(best, cost(ordered, chosen, batch_size, waste, weights_in_order))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_auto_is_as_cheap_as_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [(int(rng.integers(40, 200)), int(rng.integers(40, 200))) for _ in range(int(rng.integers(2, 8)))]
    bucket_list = buckets.bucket_sizes(64, 8)[::2]
    batch_size, k = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    waste = float(rng.choice([0.0, 0.07, 0.3]))
    chosen = buckets.cluster_buckets(sizes, bucket_list, batch_size, max_buckets=k, empty_slot_cost=waste)
    assert len(set(chosen)) <= k
    expected = cheapest_by_brute_force(sizes, bucket_list, batch_size, k, waste)
    # Two clusters with the same bucket are in fact one, which can only save slots.
    assert cost(sizes, chosen, batch_size, waste) <= expected + 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_repeats_fill_batches(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    count = int(rng.integers(2, 7))
    sizes = [(int(rng.integers(40, 200)), int(rng.integers(40, 200))) for _ in range(count)]
    weights = [int(n) for n in rng.integers(1, 6, count)]
    bucket_list = buckets.bucket_sizes(64, 8)[::2]
    batch_size, k = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    chosen = buckets.cluster_buckets(
        sizes, bucket_list, batch_size, max_buckets=k, empty_slot_cost=0.3, weights=weights
    )
    expected = cheapest_by_brute_force(sizes, bucket_list, batch_size, k, 0.3, weights)
    assert cost(sizes, chosen, batch_size, 0.3, weights) <= expected + 1e-9


def test_an_image_repeated_four_times_fills_a_batch_alone() -> None:
    sizes = [(90, 60)] + [(60, 60)] * 7
    # A second bucket costs four empty slots, unless the image is repeated four times.
    bucket_list = [(72, 56), (64, 64)]
    assert len(set(buckets.cluster_buckets(sizes, bucket_list, 4, empty_slot_cost=0.3))) == 1
    assert (
        len(set(buckets.cluster_buckets(sizes, bucket_list, 4, empty_slot_cost=0.3, weights=[4] + [1] * 7)))
        == 2
    )


def test_if_empty_slots_are_free_no_other_set_of_buckets_is_better() -> None:
    rng = np.random.default_rng(3)
    sizes = [(int(rng.integers(30, 300)), int(rng.integers(30, 300))) for _ in range(12)]
    bucket_list = buckets.bucket_sizes(64, 8)
    chosen = buckets.cluster_buckets(sizes, bucket_list, 1, max_buckets=3, empty_slot_cost=0.0)
    best = min(
        sum(min(cost([size], [bucket], 1, 0) for bucket in picked) for size in sizes)
        for picked in itertools.combinations(bucket_list, 3)
    )
    assert cost(sizes, chosen, 1, 0.0) == pytest.approx(best)


def test_buckets_have_the_area_of_the_resolution_and_sides_that_are_multiples() -> None:
    bucket_list = buckets.bucket_sizes(1024, 16)
    assert (1024, 1024) in bucket_list
    assert len(set(bucket_list)) == len(bucket_list)
    for width, height in bucket_list:
        assert width % 16 == height % 16 == 0
        assert abs(width * height / 1024**2 - 1) <= 0.03
        assert max(width, height) <= 4 * min(width, height)
    assert {(height, width) for width, height in bucket_list} == set(bucket_list)
    aspects = [width / height for width, height in bucket_list]
    assert aspects == sorted(aspects)
    assert aspects[-1] > 3.8


def test_no_allowed_bucket_is_missing() -> None:
    expected = {
        (width, height)
        for width in range(8, 400, 8)
        for height in range(8, 400, 8)
        if abs(width * height / 128**2 - 1) <= 0.05 and max(width, height) <= 3 * min(width, height)
    }
    assert set(buckets.bucket_sizes(128, 8, tolerance=0.05, max_aspect_ratio=3.0)) == expected


@pytest.mark.parametrize(("resolution", "size_multiple"), [(1000, 16), (0, 16), (8, 16), (64, 0), (-64, 8)])
def test_a_resolution_that_is_not_a_multiple_is_refused(resolution: int, size_multiple: int) -> None:
    with pytest.raises(ConfigError, match="multiple"):
        buckets.bucket_sizes(resolution, size_multiple)
    with pytest.raises(ConfigError, match="multiple"):
        buckets.assign_buckets([(64, 64)], resolution, size_multiple, mode="square")


def test_native_crops_least() -> None:
    bucket_list = buckets.bucket_sizes(512, 16)
    rng = np.random.default_rng(0)
    sizes = [(int(rng.integers(100, 4000)), int(rng.integers(100, 4000))) for _ in range(200)]
    for size, bucket in zip(sizes, buckets.nearest_buckets(sizes, bucket_list), strict=True):
        least = min(buckets.crop_fraction(size, other) for other in bucket_list)
        assert buckets.crop_fraction(size, bucket) == pytest.approx(least, abs=1e-12)
    assert buckets.nearest_buckets([(512, 512)], bucket_list) == [(512, 512)]


def test_auto_needs_fewer_buckets_and_leaves_fewer_empty_slots_than_native() -> None:
    bucket_list = buckets.bucket_sizes(1024, 16)
    aspects = np.exp(np.random.default_rng(2).normal(0.1, 0.35, 120))  # like free-hand crops
    sizes = [(round(1500 * aspect), 1500) for aspect in aspects]
    chosen, closest = (
        buckets.cluster_buckets(sizes, bucket_list, 4),
        buckets.nearest_buckets(sizes, bucket_list),
    )
    assert len(set(chosen)) <= 16

    def empty_slots(picked: list[buckets.ImageSize]) -> int:
        return sum(-picked.count(bucket) % 4 for bucket in set(picked))

    assert empty_slots(chosen) <= 0.1 * empty_slots(closest)
    assert sum(map(buckets.crop_fraction, sizes, chosen)) / len(sizes) < 0.03


def test_camera_formats_get_their_own_buckets() -> None:
    chosen = buckets.cluster_buckets(CAMERA, buckets.bucket_sizes(1024, 16), 4)
    assert len(set(chosen)) == 7
    assert sum(map(buckets.crop_fraction, CAMERA, chosen)) / len(CAMERA) < 0.002


def test_auto_scales_to_many_images() -> None:
    rng = np.random.default_rng(1)
    sizes = [(int(w), int(h)) for w, h in rng.integers(400, 4000, (5000, 2))]
    bucket_list = buckets.bucket_sizes(1024, 16)
    chosen = buckets.cluster_buckets(sizes, bucket_list, 8)
    assert len(chosen) == 5000
    assert len(set(chosen)) <= 16
    nearest = buckets.nearest_buckets(sizes, sorted(set(chosen)))
    lost = sum(map(buckets.crop_fraction, sizes, chosen))
    assert lost <= 1.05 * sum(map(buckets.crop_fraction, sizes, nearest))


def test_no_images_get_no_buckets_and_wrong_numbers_are_refused() -> None:
    bucket_list = buckets.bucket_sizes(64, 8)
    assert buckets.cluster_buckets([], bucket_list, 4) == []
    with pytest.raises(ConfigError, match="at least 1"):
        buckets.cluster_buckets([(1, 1)], bucket_list, 0)


def test_the_crop_is_centered_and_as_large_as_possible() -> None:
    assert buckets.crop_box((200, 100), (64, 64)) == (50, 0, 150, 100)
    assert buckets.crop_box((100, 201), (64, 64)) == (0, 50, 100, 150)
    assert buckets.crop_box((96, 32), (96, 32)) == (0, 0, 96, 32)


def test_an_image_smaller_than_its_bucket_is_upscaled() -> None:
    assert buckets.cover_scale((200, 100), (64, 64)) == pytest.approx(0.64)
    assert buckets.cover_scale((96, 32), (96, 32)) == 1.0
    assert buckets.cover_scale((20, 20), (64, 64)) == pytest.approx(3.2)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (3, 2)])
def test_every_size_gets_a_crop_inside_it(size: buckets.ImageSize) -> None:
    for mode in buckets.MODES:
        (bucket,) = buckets.assign_buckets([size], 64, 8, mode=mode)
        left, top, right, bottom = buckets.crop_box(size, bucket)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


def test_crop_fraction_is_the_area_lost() -> None:
    assert buckets.crop_fraction((200, 100), (64, 64)) == pytest.approx(0.5)
    assert buckets.crop_fraction((100, 150), (64, 64)) == pytest.approx(1 / 3)
    assert buckets.crop_fraction((100, 100), (64, 64)) == 0


def test_a_crop_is_around_its_focal_point_and_inside_the_image() -> None:
    assert buckets.crop_box((200, 100), (64, 64), (150, 50)) == (100, 0, 200, 100)
    assert buckets.crop_box((200, 100), (64, 64), (70, 0)) == (20, 0, 120, 100)
    assert buckets.crop_box((200, 100), (64, 64), (0, 99)) == (0, 0, 100, 100)
    assert buckets.crop_box((100, 300), (64, 64), (0, 299)) == (0, 200, 100, 300)
    for focal_point in [(0, 0), (199, 99), (100, 50), None]:
        left, top, right, bottom = buckets.crop_box((200, 100), (96, 64), focal_point)
        assert (right - left, bottom - top) == (150, 100)
        assert 0 <= left < right <= 200


def test_kohya_buckets_are_those_of_sd_scripts() -> None:
    chosen = buckets.kohya_buckets(
        [(1000, 1000), (3000, 2000), (2000, 3000), (1920, 1080), (4000, 1000)], 1024
    )
    # Its default limit of 1024 on the long sides costs 27 % of the pixels.
    assert chosen == [(1024, 1024), (1024, 704), (704, 1024), (1024, 576), (1024, 256)]
    longer = buckets.kohya_buckets([(3000, 2000), (1920, 1080)], 1024, max_side=2048)
    assert longer == [(1216, 832), (1344, 768)]
    assert buckets.kohya_buckets([(640, 576)], 768) == [(640, 576)] or (
        640,
        576,
    ) not in buckets.kohya_buckets([(1, 1)], 768)
    assert all(w % 64 == h % 64 == 0 for w, h in buckets.kohya_buckets(CAMERA, 768))
    with pytest.raises(ConfigError, match="below 64"):
        buckets.kohya_buckets([(1, 1)], 32)


def test_each_image_gets_the_largest_resolution_that_needs_no_upscaling() -> None:
    sizes = [(1500, 1000), (1024, 1024), (1000, 700), (900, 900), (512, 512), (400, 300), (1023, 1023)]
    assert buckets.assign_resolutions(sizes, (512, 768, 1024), 16) == [1024, 1024, 768, 768, 512, None, 1024]
    assert buckets.assign_resolutions([(1600, 700)], (512, 768), 16, "square") == [512]
    assert buckets.assign_resolutions([(1600, 700)], (512, 768), 16, "auto") == [768]


def test_no_other_tool_crops_less_with_the_same_number_of_buckets() -> None:
    from tests.benchmarks import buckets as benchmark

    rows = benchmark.measure(rounds=2)
    assert benchmark.passes(rows)
    by_method = {(row["mix"], row["method"]): row for row in rows}
    for mix in benchmark.MIXES:
        ours, kohya = by_method[mix, "lorakit auto"], by_method[mix, "kohya, limit 2048"]
        assert ours["crop"] < kohya["crop"]
        assert ours["unfilled"] < kohya["unfilled"]
        assert ours["buckets"] <= 16
        assert by_method[mix, "kohya, its limit 1024"]["pixels"] < 80


def test_an_unknown_mode_is_an_error_that_lists_the_modes() -> None:
    assert set(buckets.assign_buckets(CAMERA, 512, 16, mode="square")) == {(512, 512)}
    with pytest.raises(ConfigError, match="auto, native, square, kohya"):
        buckets.assign_buckets(CAMERA, 512, 16, mode="automatic")
