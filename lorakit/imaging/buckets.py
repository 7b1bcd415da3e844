"""Aspect-ratio buckets: which training shape each image gets, and what the crop costs. Pure arithmetic.

Scaling an image of aspect a until it covers a bucket of aspect b and cropping the rest loses
1 - exp(-|ln a - ln b|) of its area. Choosing a few shapes for many images is therefore one-dimensional
clustering of the log-aspects over a lattice of allowed shapes, solved exactly by dynamic programming over the
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
MAX_ASPECT = 4.0
MAX_UNNOTICED_UPSCALE = 1.02  # enlarging by less, nobody sees
FREE_CROP_FRACTION = 0.10  # a crop beyond this share of the image ...
EXCESS_CROP_COST = 4.0  # ... counts this many times more per unit
UPSCALE_COST = 4.0  # cost of an enlarged image where none should be
MAX_CLUSTER_BORDERS = 1024  # cluster borders considered; exact up to this many images


def crop_fraction(size: ImageSize, bucket: ImageSize) -> float:
    """The share of the image (0..1) lost when it is scaled to cover the bucket."""
    return -math.expm1(-abs(_log_aspect(size) - _log_aspect(bucket)))


def bucket_sizes(
    resolution: int, step: int, tolerance: float | None = None, max_aspect: float = MAX_ASPECT
) -> list[ImageSize]:
    """The shapes with sides in multiples of `step` and an area within `tolerance` of resolution squared.

    The default is 3 %, or half a step of the square's side where the grid is too coarse for that: at
    resolution 64 in steps of 16, 3 % would leave the square alone. Sorted by aspect. Raises `ConfigError`
    when the resolution is not a positive multiple of the step.
    """
    _check_grid(resolution, step)
    tolerance = max(0.03, step / (2 * resolution)) if tolerance is None else tolerance
    budget = resolution * resolution
    shapes = []
    for width in range(step, math.floor(resolution * math.sqrt(max_aspect * (1 + tolerance))) + 1, step):
        lowest = math.ceil(budget * (1 - tolerance) / width / step) * step
        highest = math.floor(budget * (1 + tolerance) / width)
        for height in range(max(lowest, step), highest + 1, step):
            if max(width, height) <= max_aspect * min(width, height):
                shapes.append((width, height))
    return sorted(shapes, key=lambda shape: (_log_aspect(shape), shape))


def square_bucket(resolution: int) -> list[ImageSize]:
    """The one-shape lattice."""
    return [(resolution, resolution)]


def nearest_buckets(sizes: Sequence[ImageSize], lattice: Sequence[ImageSize]) -> list[ImageSize]:
    """For each image the lattice shape that crops it least; of equal ones the largest."""
    if not sizes:
        return []
    largest: dict[float, ImageSize] = {}
    for shape in sorted(lattice, key=lambda shape: (_log_aspect(shape), shape[0] * shape[1])):
        largest[_log_aspect(shape)] = shape
    aspects = np.array(sorted(largest))
    wanted = np.array([_log_aspect(size) for size in sizes])
    above = np.searchsorted(aspects, wanted).clip(0, len(aspects) - 1)
    below = (above - 1).clip(0)
    nearest = np.where(np.abs(aspects[below] - wanted) <= np.abs(aspects[above] - wanted), below, above)
    shapes = [largest[aspect] for aspect in aspects.tolist()]
    return [shapes[index] for index in nearest.tolist()]


def kohya_buckets(
    sizes: Sequence[ImageSize], resolution: int, step: int = 64, low: int = 256, high: int = 1024
) -> list[ImageSize]:
    """The shapes that sd-scripts chooses with its default limits, for datasets tuned to them.

    Its table holds, for every side from `low` to `high` in steps, the longest other side within the pixel
    budget, and the square; an image gets the shape of the nearest aspect (as a plain difference). With `high`
    1024 the long sides of resolution 1024 are cut off, which costs a quarter of the pixels on average.
    """
    edge = resolution // step * step
    if step < 1 or edge < step:
        raise ConfigError(
            f"resolution {resolution} is below the step {step} of these buckets",
            where="resolution",
            remedy="raise it",
        )
    shapes = {(edge, edge)}
    for side in range(low, high + 1, step):
        other = min(high, resolution * resolution // side // step * step)
        if other >= low:
            shapes |= {(side, other), (other, side)}
    table = sorted(shapes, key=lambda shape: (shape[0] / shape[1], shape))
    chosen = []
    for size in sizes:
        aspect = size[0] / size[1]
        nearest = min(table, key=lambda shape: abs(shape[0] / shape[1] - aspect))
        chosen.append(size if size in shapes else nearest)
    return chosen


def cluster_buckets(
    sizes: Sequence[ImageSize],
    lattice: Sequence[ImageSize],
    batch: int,
    k: int = 16,
    waste: float = 0.07,
    weights: Sequence[int] | None = None,
    upscale: bool = True,
) -> list[ImageSize]:
    """For each image the shape of the cheapest clustering into at most `k` shapes.

    The cost is the sum over images of the cropped share (dearer beyond `CROP_CAP`) plus `waste` for every
    empty slot in a shape's last batch; an image that an epoch shows `weights` times counts and fills as many.
    Clusters are intervals of the images sorted by aspect; over those the result is exact up to `PLACES`
    images, beyond which cluster borders are limited to `PLACES` positions. Without `upscale`, a shape that
    enlarges an image costs `ENLARGED` more.
    """
    if batch < 1 or k < 1:
        raise ConfigError(f"batch and k must be at least 1, not {batch} and {k}")
    if not sizes:
        return []
    order = np.argsort([_log_aspect(size) for size in sizes], kind="stable")
    ordered = np.array(sizes, dtype=np.float64)[order]
    shown = np.array(weights or [1] * len(sizes), dtype=np.int64)[order]
    places = _cluster_borders(len(sizes))
    sums = _cost_sums(ordered, lattice, shown, upscale, places)
    filled = np.concatenate([[0], np.cumsum(shown)])[places]
    # cost[i, j]: the images from places[i] up to places[j] share a shape
    cost = np.full((len(places), len(places)), np.inf)
    for row in sums:
        np.minimum(cost, row[None, :] - row[:, None], out=cost)
    cost += waste * ((filled[:, None] - filled[None, :]) % batch)
    cost[np.tril_indices(len(places))] = np.inf
    chosen: list[ImageSize] = [(0, 0)] * len(sizes)
    for first, last in _cheapest_intervals(cost, k):
        shape = lattice[int(np.argmin(sums[:, last] - sums[:, first]))]
        for image in order[places[first] : places[last]]:
            chosen[int(image)] = shape
    return chosen


def assign_buckets(
    sizes: Sequence[ImageSize],
    resolution: int,
    step: int,
    *,
    mode: str = "auto",
    batch: int = 1,
    weights: Sequence[int] | None = None,
    upscale: bool = True,
) -> list[ImageSize]:
    """For each image a shape of about `resolution` squared pixels, by mode."""
    _check_grid(resolution, step)
    if mode == "square":
        return square_bucket(resolution) * len(sizes)
    if mode == "kohya":
        return kohya_buckets(sizes, resolution, math.lcm(64, step))
    if mode == "native":
        return nearest_buckets(sizes, bucket_sizes(resolution, step))
    if mode == "auto":
        return cluster_buckets(sizes, bucket_sizes(resolution, step), batch, weights=weights, upscale=upscale)
    raise ConfigError(f"unknown bucket mode {mode!r}", where="mode", remedy=f"use one of {', '.join(MODES)}")


def assign_resolutions(
    sizes: Sequence[ImageSize], tiers: Sequence[int], step: int, mode: str = "auto"
) -> list[int | None]:
    """For each image the largest resolution of `tiers` that it fills without being enlarged, None without."""
    found: list[int | None] = [None] * len(sizes)
    for tier in sorted(set(tiers), reverse=True):
        shapes = assign_buckets(sizes, tier, step, mode="native" if mode == "auto" else mode)
        for i, (size, shape) in enumerate(zip(sizes, shapes, strict=True)):
            if found[i] is None and cover_scale(size, shape) <= MAX_UNNOTICED_UPSCALE:
                found[i] = tier
    return found


def cover_scale(size: ImageSize, shape: ImageSize) -> float:
    """Shape pixels per image pixel when the image covers the shape; above 1 it is enlarged."""
    return max(shape[0] / size[0], shape[1] / size[1])


def crop_box(size: ImageSize, shape: ImageSize, focus: Point | None = None) -> CropBox:
    """The largest box of the shape's aspect inside the image, as near to centred on `focus` as it can be."""
    width, height = size
    x, y = focus or (width / 2, height / 2)
    if width * shape[1] > height * shape[0]:  # wider than the shape: cut left and right
        kept = min(width, max(1, round(height * shape[0] / shape[1])))
        left = _start(x, kept, width)
        return left, 0, left + kept, height
    kept = min(height, max(1, round(width * shape[1] / shape[0])))
    top = _start(y, kept, height)
    return 0, top, width, top + kept


def _start(middle: float, kept: int, whole: int) -> int:
    return min(max(0, math.floor(middle - kept / 2)), whole - kept)


def _log_aspect(size: ImageSize) -> float:
    return math.log(size[0] / size[1])


def _check_grid(resolution: int, step: int) -> None:
    if step < 1 or resolution < step or resolution % step:
        below = max(resolution // max(step, 1), 1) * max(step, 1)
        raise ConfigError(
            f"resolution {resolution} is not a positive multiple of the step {step}",
            where="resolution",
            remedy=f"use {below} or {below + max(step, 1)}",
        )


def _cluster_borders(count: int) -> NDArray[np.int64]:
    """Positions in the sorted images where a cluster may begin or end."""
    return np.unique(np.linspace(0, count, min(count, MAX_CLUSTER_BORDERS) + 1).round().astype(np.int64))


def _cost_sums(
    sizes: NDArray[np.float64],
    lattice: Sequence[ImageSize],
    weights: NDArray[np.int64],
    upscale: bool,
    places: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Running sums over the images (N, 2) of their cost in each shape, up to each place: (shapes, places)."""
    aspects = np.log(sizes[:, 0] / sizes[:, 1])
    rows = []
    for width, height in lattice:  # one by one: shapes x images would not fit for very many images
        cost = -np.expm1(-np.abs(aspects - math.log(width / height)))
        cost += EXCESS_CROP_COST * np.maximum(cost - FREE_CROP_FRACTION, 0)
        if not upscale:
            cost += UPSCALE_COST * (
                np.maximum(width / sizes[:, 0], height / sizes[:, 1]) > MAX_UNNOTICED_UPSCALE
            )
        rows.append(np.concatenate([[0.0], np.cumsum(cost * weights)])[places])
    return np.array(rows)


def _cheapest_intervals(cost: NDArray[np.float64], k: int) -> list[tuple[int, int]]:
    """Split places 0..n into at most k intervals of least total cost; of equal costs the fewest intervals."""
    last = len(cost) - 1
    best = np.full(len(cost), np.inf)
    best[0] = 0.0
    origins, lowest, clusters = [], np.inf, 0
    for used in range(1, min(k, last) + 1):
        total = best[:, None] + cost
        origin = np.argmin(total, axis=0)
        best = total[origin, np.arange(len(cost))]
        origins.append(origin)
        if best[last] < lowest - 1e-9:
            lowest, clusters = best[last], used
    intervals, end = [], last
    for origin in reversed(origins[:clusters]):
        intervals.append((int(origin[end]), end))
        end = int(origin[end])
    return intervals[::-1]
