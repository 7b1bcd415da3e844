"""Aspect-ratio buckets: the training size of each image, and the area that is cropped. Pure arithmetic.

Scaling an image of aspect a until it covers a bucket of aspect b, and cropping the rest, loses
1 - exp(-|ln a - ln b|) of its area. Choosing few buckets for many images is therefore one-dimensional
clustering of the log aspects over a list of allowed buckets, solved exactly by dynamic programming over the
sorted images.
All sizes are (width, height) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorakit.core.errors import ConfigError

ImageSize = tuple[int, int]
CropBox = tuple[int, int, int, int]  # left, top, right, bottom
Point = tuple[int, int]  # x, y

MODES = ("auto", "native", "square", "kohya")
MAX_ASPECT_RATIO = 4.0
MAX_UNNOTICED_UPSCALE = 1.02  # upscaling by less is invisible
FREE_CROP_FRACTION = 0.10  # a crop of more than this share of the image ...
EXCESS_CROP_COST = 4.0  # ... costs this many times more per unit
UPSCALE_COST = 4.0  # cost of an upscaled image where upscaling is not allowed
MAX_CLUSTER_BORDERS = 1024  # cluster borders considered; the result is exact up to this many images


def crop_fraction(size: ImageSize, bucket: ImageSize) -> float:
    """Return the share of the image (0..1) that is cropped when it is scaled to cover the bucket."""
    return -math.expm1(-abs(_log_aspect(size) - _log_aspect(bucket)))


def bucket_sizes(
    resolution: int,
    size_multiple: int,
    tolerance: float | None = None,
    max_aspect_ratio: float = MAX_ASPECT_RATIO,
) -> list[ImageSize]:
    """Return the buckets with sides that are multiples of `size_multiple`, sorted by aspect.

    Their area is within `tolerance` of resolution squared. The default is 3 %, or half a multiple of the
    square's side if the grid is too coarse for that: at resolution 64 and multiples of 16, 3 % would allow
    the square only. Raises ConfigError if the resolution is not a positive multiple of `size_multiple`.
    """
    _check_resolution(resolution, size_multiple)
    if tolerance is None:
        tolerance = max(0.03, size_multiple / (2 * resolution))
    area = resolution * resolution
    max_width = math.floor(resolution * math.sqrt(max_aspect_ratio * (1 + tolerance)))
    buckets = []
    for width in range(size_multiple, max_width + 1, size_multiple):
        min_height = math.ceil(area * (1 - tolerance) / width / size_multiple) * size_multiple
        max_height = math.floor(area * (1 + tolerance) / width)
        for height in range(max(min_height, size_multiple), max_height + 1, size_multiple):
            if max(width, height) <= max_aspect_ratio * min(width, height):
                buckets.append((width, height))
    return sorted(buckets, key=lambda bucket: (_log_aspect(bucket), bucket))


def square_bucket(resolution: int) -> list[ImageSize]:
    """Return the list with the square bucket only."""
    return [(resolution, resolution)]


def nearest_buckets(sizes: Sequence[ImageSize], buckets: Sequence[ImageSize]) -> list[ImageSize]:
    """Return for each image the bucket that crops it least; of equal ones the largest."""
    if not sizes:
        return []
    largest: dict[float, ImageSize] = {}
    for bucket in sorted(buckets, key=lambda bucket: (_log_aspect(bucket), bucket[0] * bucket[1])):
        largest[_log_aspect(bucket)] = bucket
    bucket_aspects = np.array(sorted(largest))
    image_aspects = np.array([_log_aspect(size) for size in sizes])
    above = np.searchsorted(bucket_aspects, image_aspects).clip(0, len(bucket_aspects) - 1)
    below = (above - 1).clip(0)
    distance_below = np.abs(bucket_aspects[below] - image_aspects)
    distance_above = np.abs(bucket_aspects[above] - image_aspects)
    nearest = np.where(distance_below <= distance_above, below, above)
    by_index = [largest[aspect] for aspect in bucket_aspects.tolist()]
    return [by_index[index] for index in nearest.tolist()]


def kohya_buckets(
    sizes: Sequence[ImageSize],
    resolution: int,
    size_multiple: int = 64,
    min_side: int = 256,
    max_side: int = 1024,
) -> list[ImageSize]:
    """Return for each image the bucket that sd-scripts chooses with its default limits.

    Its table has, for every side from `min_side` to `max_side`, the longest other side within the pixel
    budget, and the square; an image gets the bucket with the nearest aspect (plain difference). With a
    `max_side` of 1024, long sides at resolution 1024 are limited, which costs a quarter of the pixels on
    average.
    """
    square_side = resolution // size_multiple * size_multiple
    if size_multiple < 1 or square_side < size_multiple:
        raise ConfigError(
            f"resolution {resolution} is below {size_multiple}, the multiple of these buckets",
            where="resolution",
            remedy="use a larger resolution",
        )
    buckets = {(square_side, square_side)}
    for side in range(min_side, max_side + 1, size_multiple):
        other_side = min(max_side, resolution * resolution // side // size_multiple * size_multiple)
        if other_side >= min_side:
            buckets |= {(side, other_side), (other_side, side)}
    table = sorted(buckets, key=lambda bucket: (bucket[0] / bucket[1], bucket))
    nearest = {size: size if size in buckets else _nearest_by_ratio(size, table) for size in set(sizes)}
    return [nearest[size] for size in sizes]


def _nearest_by_ratio(size: ImageSize, table: Sequence[ImageSize]) -> ImageSize:
    return min(table, key=lambda bucket: abs(bucket[0] / bucket[1] - size[0] / size[1]))


def cluster_buckets(
    sizes: Sequence[ImageSize],
    buckets: Sequence[ImageSize],
    batch_size: int,
    max_buckets: int = 16,
    empty_slot_cost: float = 0.07,
    weights: Sequence[int] | None = None,
    upscale: bool = True,
) -> list[ImageSize]:
    """Return for each image the bucket of the cheapest clustering into at most `max_buckets` buckets.

    The cost is the sum over images of the cropped share (more expensive beyond `FREE_CROP_FRACTION`), plus
    `empty_slot_cost` for every empty slot in the last batch of a bucket. An image that an epoch contains
    `weights` times counts, and fills slots, as often. Without `upscale`, an upscaled image costs
    `UPSCALE_COST` more. Clusters are intervals of the images sorted by aspect; the result is exact up to
    `MAX_CLUSTER_BORDERS` images, beyond which cluster borders are limited to that many positions.
    """
    if batch_size < 1 or max_buckets < 1:
        raise ConfigError(
            f"batch_size and max_buckets must be at least 1, not {batch_size} and {max_buckets}"
        )
    if not sizes:
        return []
    order = np.argsort([_log_aspect(size) for size in sizes], kind="stable")
    sorted_sizes = np.array(sizes, dtype=np.float64)[order]
    sorted_weights = np.array(weights or [1] * len(sizes), dtype=np.int64)[order]
    borders = _cluster_borders(len(sizes))
    sums = _cost_sums(sorted_sizes, buckets, sorted_weights, upscale, borders)
    slots = np.concatenate([[0], np.cumsum(sorted_weights)])[borders]
    # cost[i, j]: the images from borders[i] up to borders[j] share a bucket
    cost = np.full((len(borders), len(borders)), np.inf)
    for row in sums:
        np.minimum(cost, row[None, :] - row[:, None], out=cost)
    cost += empty_slot_cost * ((slots[:, None] - slots[None, :]) % batch_size)
    cost[np.tril_indices(len(borders))] = np.inf
    assigned: list[ImageSize] = [(0, 0)] * len(sizes)
    for first, last in _cheapest_intervals(cost, max_buckets):
        bucket = buckets[int(np.argmin(sums[:, last] - sums[:, first]))]
        for index in order[borders[first] : borders[last]]:
            assigned[int(index)] = bucket
    return assigned


def assign_buckets(
    sizes: Sequence[ImageSize],
    resolution: int,
    size_multiple: int,
    *,
    mode: str = "auto",
    batch_size: int = 1,
    weights: Sequence[int] | None = None,
    upscale: bool = True,
) -> list[ImageSize]:
    """Return for each image a bucket of about `resolution` squared pixels, chosen by `mode` (see MODES)."""
    _check_resolution(resolution, size_multiple)
    if mode == "square":
        return square_bucket(resolution) * len(sizes)
    if mode == "kohya":
        return kohya_buckets(sizes, resolution, math.lcm(64, size_multiple))
    if mode == "native":
        return nearest_buckets(sizes, bucket_sizes(resolution, size_multiple))
    if mode == "auto":
        buckets = bucket_sizes(resolution, size_multiple)
        return cluster_buckets(sizes, buckets, batch_size, weights=weights, upscale=upscale)
    raise ConfigError(
        f"unknown bucket mode {mode!r}", where="bucket mode", remedy=f"use one of {', '.join(MODES)}"
    )


def assign_resolutions(
    sizes: Sequence[ImageSize], resolutions: Sequence[int], size_multiple: int, mode: str = "auto"
) -> list[int | None]:
    """Return for each image the largest resolution that needs no upscaling; None if all of them do."""
    assigned: list[int | None] = [None] * len(sizes)
    for resolution in sorted(set(resolutions), reverse=True):
        buckets = assign_buckets(sizes, resolution, size_multiple, mode="native" if mode == "auto" else mode)
        for i, (size, bucket) in enumerate(zip(sizes, buckets, strict=True)):
            if assigned[i] is None and cover_scale(size, bucket) <= MAX_UNNOTICED_UPSCALE:
                assigned[i] = resolution
    return assigned


def cover_scale(size: ImageSize, bucket: ImageSize) -> float:
    """Return the scale at which the image covers the bucket; above 1 it is upscaled."""
    return max(bucket[0] / size[0], bucket[1] / size[1])


def crop_box(size: ImageSize, bucket: ImageSize, focal_point: Point | None = None) -> CropBox:
    """Return the largest box of the bucket's aspect inside the image, as near to `focal_point` as possible.

    Without a focal point it is centered.
    """
    width, height = size
    x, y = focal_point or (width / 2, height / 2)
    if width * bucket[1] > height * bucket[0]:  # wider than the bucket: crop left and right
        crop_width = min(width, max(1, round(height * bucket[0] / bucket[1])))
        left = _crop_start(x, crop_width, width)
        return left, 0, left + crop_width, height
    crop_height = min(height, max(1, round(width * bucket[1] / bucket[0])))
    top = _crop_start(y, crop_height, height)
    return 0, top, width, top + crop_height


def _crop_start(center: float, crop_side: int, side: int) -> int:
    return min(max(0, math.floor(center - crop_side / 2)), side - crop_side)


def _log_aspect(size: ImageSize) -> float:
    return math.log(size[0] / size[1])


def _check_resolution(resolution: int, size_multiple: int) -> None:
    if size_multiple < 1 or resolution < size_multiple or resolution % size_multiple:
        multiple = max(size_multiple, 1)
        below = max(resolution // multiple, 1) * multiple
        raise ConfigError(
            f"resolution {resolution} is not a positive multiple of {size_multiple}",
            where="resolution",
            remedy=f"use {below} or {below + multiple}",
        )


def _cluster_borders(count: int) -> NDArray[np.int64]:
    """Return the positions in the sorted images where a cluster may start or end."""
    return np.unique(np.linspace(0, count, min(count, MAX_CLUSTER_BORDERS) + 1).round().astype(np.int64))


def _cost_sums(
    sizes: NDArray[np.float64],
    buckets: Sequence[ImageSize],
    weights: NDArray[np.int64],
    upscale: bool,
    borders: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the cumulative cost of images (N, 2) in each bucket up to each border: (buckets, borders)."""
    aspects = np.log(sizes[:, 0] / sizes[:, 1])
    rows = []
    for width, height in buckets:  # one by one: buckets x images would need too much memory
        cost = -np.expm1(-np.abs(aspects - math.log(width / height)))
        cost += EXCESS_CROP_COST * np.maximum(cost - FREE_CROP_FRACTION, 0)
        if not upscale:
            scale = np.maximum(width / sizes[:, 0], height / sizes[:, 1])
            cost += UPSCALE_COST * (scale > MAX_UNNOTICED_UPSCALE)
        rows.append(np.concatenate([[0.0], np.cumsum(cost * weights)])[borders])
    return np.array(rows)


def _cheapest_intervals(cost: NDArray[np.float64], max_intervals: int) -> list[tuple[int, int]]:
    """Split the borders 0..n into intervals of least total cost; of equal costs, the fewest intervals."""
    last = len(cost) - 1
    best = np.full(len(cost), np.inf)
    best[0] = 0.0
    origins, lowest, num_intervals = [], np.inf, 0
    for used in range(1, min(max_intervals, last) + 1):
        total = best[:, None] + cost
        origin = np.argmin(total, axis=0)
        best = total[origin, np.arange(len(cost))]
        origins.append(origin)
        if best[last] < lowest - 1e-9:
            lowest, num_intervals = best[last], used
    intervals, end = [], last
    for origin in reversed(origins[:num_intervals]):
        intervals.append((int(origin[end]), end))
        end = int(origin[end])
    return intervals[::-1]
