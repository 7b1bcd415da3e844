"""The bucket arithmetic against brute force and hand-made cases."""

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
    shapes: list[buckets.ImageSize],
    batch: int,
    waste: float,
    weights: list[int] | None = None,
) -> float:
    """The stated cost of a choice, computed the plain way."""
    total, slots = 0.0, Counter()
    for size, shape, weight in zip(sizes, shapes, weights or [1] * len(sizes), strict=True):
        crop = buckets.crop_fraction(size, shape)
        total += weight * (crop + buckets.EXCESS_CROP_COST * max(0.0, crop - buckets.FREE_CROP_FRACTION))
        slots[shape] += weight
    return total + waste * sum(-count % batch for count in slots.values())


def cheapest_by_brute_force(
    sizes: list[buckets.ImageSize],
    lattice: list[buckets.ImageSize],
    batch: int,
    k: int,
    waste: float,
    weights: list[int] | None = None,
) -> float:
    """Try every split of the sorted images into at most k intervals and every shape for each."""
    order = sorted(range(len(sizes)), key=lambda i: sizes[i][0] / sizes[i][1])
    ordered, shown = [sizes[i] for i in order], [(weights or [1] * len(sizes))[i] for i in order]
    best = math.inf
    for clusters in range(1, min(k, len(sizes)) + 1):
        for cuts in itertools.combinations(range(1, len(sizes)), clusters - 1):
            borders = [0, *cuts, len(sizes)]
            for shapes in itertools.product(lattice, repeat=clusters):
                chosen = []
                for shape, (first, last) in zip(shapes, itertools.pairwise(borders), strict=True):
                    chosen += [shape] * (last - first)
                best = min(best, cost(ordered, chosen, batch, waste, shown))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_auto_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [(int(rng.integers(40, 200)), int(rng.integers(40, 200))) for _ in range(int(rng.integers(2, 8)))]
    shapes = buckets.bucket_sizes(64, 8)[::2]
    batch, k = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    waste = float(rng.choice([0.0, 0.07, 0.3]))
    chosen = buckets.cluster_buckets(sizes, shapes, batch, k=k, waste=waste)
    assert len(set(chosen)) <= k
    expected = cheapest_by_brute_force(sizes, shapes, batch, k, waste)
    # Two clusters that chose one shape are one cluster in truth, which can only save slots.
    assert cost(sizes, chosen, batch, waste) <= expected + 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_repeats_count_when_batches_fill(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    count = int(rng.integers(2, 7))
    sizes = [(int(rng.integers(40, 200)), int(rng.integers(40, 200))) for _ in range(count)]
    weights = [int(n) for n in rng.integers(1, 6, count)]
    shapes = buckets.bucket_sizes(64, 8)[::2]
    batch, k = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    chosen = buckets.cluster_buckets(sizes, shapes, batch, k=k, waste=0.3, weights=weights)
    expected = cheapest_by_brute_force(sizes, shapes, batch, k, 0.3, weights)
    assert cost(sizes, chosen, batch, 0.3, weights) <= expected + 1e-9


def test_four_times_the_same_image_fills_a_batch_alone() -> None:
    sizes = [(90, 60)] + [(60, 60)] * 7
    shapes = [(72, 56), (64, 64)]  # a second shape costs four empty slots, unless it is shown four times
    assert len(set(buckets.cluster_buckets(sizes, shapes, 4, waste=0.3))) == 1
    assert len(set(buckets.cluster_buckets(sizes, shapes, 4, waste=0.3, weights=[4] + [1] * 7))) == 2


def test_without_waste_no_other_set_of_shapes_is_better() -> None:
    rng = np.random.default_rng(3)
    sizes = [(int(rng.integers(30, 300)), int(rng.integers(30, 300))) for _ in range(12)]
    shapes = buckets.bucket_sizes(64, 8)
    chosen = buckets.cluster_buckets(sizes, shapes, 1, k=3, waste=0.0)
    best = min(
        sum(min(cost([size], [shape], 1, 0) for shape in picked) for size in sizes)
        for picked in itertools.combinations(shapes, 3)
    )
    assert cost(sizes, chosen, 1, 0.0) == pytest.approx(best)


def test_lattice_shapes_keep_the_budget_and_the_step() -> None:
    shapes = buckets.bucket_sizes(1024, 16)
    assert (1024, 1024) in shapes
    assert len(set(shapes)) == len(shapes)
    for width, height in shapes:
        assert width % 16 == height % 16 == 0
        assert abs(width * height / 1024**2 - 1) <= 0.03
        assert max(width, height) <= 4 * min(width, height)
    assert {(height, width) for width, height in shapes} == set(shapes)
    aspects = [width / height for width, height in shapes]
    assert aspects == sorted(aspects)
    assert aspects[-1] > 3.8


def test_lattice_holds_every_shape_it_should() -> None:
    expected = {
        (width, height)
        for width in range(8, 400, 8)
        for height in range(8, 400, 8)
        if abs(width * height / 128**2 - 1) <= 0.05 and max(width, height) <= 3 * min(width, height)
    }
    assert set(buckets.bucket_sizes(128, 8, tolerance=0.05, max_aspect=3.0)) == expected


@pytest.mark.parametrize(("resolution", "step"), [(1000, 16), (0, 16), (8, 16), (64, 0), (-64, 8)])
def test_a_resolution_off_the_step_is_refused(resolution: int, step: int) -> None:
    with pytest.raises(ConfigError, match="multiple"):
        buckets.bucket_sizes(resolution, step)
    with pytest.raises(ConfigError, match="multiple"):
        buckets.assign_buckets([(64, 64)], resolution, step, mode="square")


def test_native_crops_least() -> None:
    shapes = buckets.bucket_sizes(512, 16)
    rng = np.random.default_rng(0)
    sizes = [(int(rng.integers(100, 4000)), int(rng.integers(100, 4000))) for _ in range(200)]
    for size, shape in zip(sizes, buckets.nearest_buckets(sizes, shapes), strict=True):
        least = min(buckets.crop_fraction(size, other) for other in shapes)
        assert buckets.crop_fraction(size, shape) == pytest.approx(least, abs=1e-12)
    assert buckets.nearest_buckets([(512, 512)], shapes) == [(512, 512)]


def test_auto_needs_fewer_shapes_and_wastes_less_than_native() -> None:
    shapes = buckets.bucket_sizes(1024, 16)
    aspects = np.exp(np.random.default_rng(2).normal(0.1, 0.35, 120))  # as free-hand crops have
    sizes = [(round(1500 * aspect), 1500) for aspect in aspects]
    chosen, closest = buckets.cluster_buckets(sizes, shapes, 4), buckets.nearest_buckets(sizes, shapes)
    assert len(set(chosen)) <= 16

    def empty_slots(picked: list[buckets.ImageSize]) -> int:
        return sum(-picked.count(shape) % 4 for shape in set(picked))

    assert empty_slots(chosen) <= 0.1 * empty_slots(closest)
    assert sum(map(buckets.crop_fraction, sizes, chosen)) / len(sizes) < 0.03


def test_camera_formats_keep_their_own_shapes() -> None:
    chosen = buckets.cluster_buckets(CAMERA, buckets.bucket_sizes(1024, 16), 4)
    assert len(set(chosen)) == 7
    assert sum(map(buckets.crop_fraction, CAMERA, chosen)) / len(CAMERA) < 0.002


def test_auto_scales_to_many_images() -> None:
    rng = np.random.default_rng(1)
    sizes = [(int(w), int(h)) for w, h in rng.integers(400, 4000, (5000, 2))]
    shapes = buckets.bucket_sizes(1024, 16)
    chosen = buckets.cluster_buckets(sizes, shapes, 8)
    assert len(chosen) == 5000
    assert len(set(chosen)) <= 16
    nearest = buckets.nearest_buckets(sizes, sorted(set(chosen)))
    lost = sum(map(buckets.crop_fraction, sizes, chosen))
    assert lost <= 1.05 * sum(map(buckets.crop_fraction, sizes, nearest))


def test_auto_of_nothing_and_of_bad_numbers() -> None:
    shapes = buckets.bucket_sizes(64, 8)
    assert buckets.cluster_buckets([], shapes, 4) == []
    with pytest.raises(ConfigError, match="at least 1"):
        buckets.cluster_buckets([(1, 1)], shapes, 0)


def test_the_crop_is_centred_and_as_large_as_it_can_be() -> None:
    assert buckets.crop_box((200, 100), (64, 64)) == (50, 0, 150, 100)
    assert buckets.crop_box((100, 201), (64, 64)) == (0, 50, 100, 150)
    assert buckets.crop_box((96, 32), (96, 32)) == (0, 0, 96, 32)


def test_what_a_shape_enlarges() -> None:
    assert buckets.cover_scale((200, 100), (64, 64)) == pytest.approx(0.64)
    assert buckets.cover_scale((96, 32), (96, 32)) == 1.0
    assert buckets.cover_scale((20, 20), (64, 64)) == pytest.approx(3.2)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (3, 2)])
def test_every_size_gets_a_crop_inside_it(size: buckets.ImageSize) -> None:
    for mode in buckets.MODES:
        (shape,) = buckets.assign_buckets([size], 64, 8, mode=mode)
        left, top, right, bottom = buckets.crop_box(size, shape)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


def test_crop_fraction_is_the_area_lost() -> None:
    assert buckets.crop_fraction((200, 100), (64, 64)) == pytest.approx(0.5)
    assert buckets.crop_fraction((100, 150), (64, 64)) == pytest.approx(1 / 3)
    assert buckets.crop_fraction((100, 100), (64, 64)) == 0


def test_a_crop_lies_around_its_focus_and_inside_the_image() -> None:
    assert buckets.crop_box((200, 100), (64, 64), (150, 50)) == (100, 0, 200, 100)
    assert buckets.crop_box((200, 100), (64, 64), (70, 0)) == (20, 0, 120, 100)
    assert buckets.crop_box((200, 100), (64, 64), (0, 99)) == (0, 0, 100, 100)
    assert buckets.crop_box((100, 300), (64, 64), (0, 299)) == (0, 200, 100, 300)
    for focus in [(0, 0), (199, 99), (100, 50), None]:
        left, top, right, bottom = buckets.crop_box((200, 100), (96, 64), focus)
        assert (right - left, bottom - top) == (150, 100)
        assert 0 <= left < right <= 200


def test_kohyas_table_is_the_one_its_users_know() -> None:
    chosen = buckets.kohya_buckets(
        [(1000, 1000), (3000, 2000), (2000, 3000), (1920, 1080), (4000, 1000)], 1024
    )
    # With its default limit of 1024, long sides are cut off: that is what costs 27 % of the pixels.
    assert chosen == [(1024, 1024), (1024, 704), (704, 1024), (1024, 576), (1024, 256)]
    longer = buckets.kohya_buckets([(3000, 2000), (1920, 1080)], 1024, high=2048)
    assert longer == [(1216, 832), (1344, 768)]
    assert buckets.kohya_buckets([(640, 576)], 768) == [(640, 576)] or (
        640,
        576,
    ) not in buckets.kohya_buckets([(1, 1)], 768)
    assert all(w % 64 == h % 64 == 0 for w, h in buckets.kohya_buckets(CAMERA, 768))
    with pytest.raises(ConfigError, match="below the step"):
        buckets.kohya_buckets([(1, 1)], 32)


def test_tiers_take_the_largest_that_an_image_fills() -> None:
    sizes = [(1500, 1000), (1024, 1024), (1000, 700), (900, 900), (512, 512), (400, 300), (1023, 1023)]
    assert buckets.assign_resolutions(sizes, (512, 768, 1024), 16) == [1024, 1024, 768, 768, 512, None, 1024]
    assert buckets.assign_resolutions([(1600, 700)], (512, 768), 16, "square") == [512]
    assert buckets.assign_resolutions([(1600, 700)], (512, 768), 16, "auto") == [768]


def test_our_programme_is_never_worse_with_as_many_shapes() -> None:
    from tests.benchmarks import buckets as benchmark

    rows = benchmark.measure(rounds=2)
    assert benchmark.good(rows)
    by_way = {(row["mix"], row["way"]): row for row in rows}
    for mix in benchmark.MIXES:
        ours, kohya = by_way[mix, "lorakit auto"], by_way[mix, "kohya, limit 2048"]
        assert ours["crop"] < kohya["crop"]
        assert ours["unfilled"] < kohya["unfilled"]
        assert ours["shapes"] <= 16
        assert by_way[mix, "kohya, its limit 1024"]["pixels"] < 80


def test_unknown_modes_are_named() -> None:
    assert set(buckets.assign_buckets(CAMERA, 512, 16, mode="square")) == {(512, 512)}
    with pytest.raises(ConfigError, match="auto, native, square, kohya"):
        buckets.assign_buckets(CAMERA, 512, 16, mode="automatic")
