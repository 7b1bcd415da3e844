"""Aspect-ratio buckets: which training shape each image gets, and what the crop costs. Pure arithmetic.

Scaling an image of aspect a until it covers a bucket of aspect b and cropping the rest loses
1 - exp(-|ln a - ln b|) of its area. Choosing a few shapes for many images is therefore one-dimensional
clustering of the log-aspects over a lattice of allowed shapes, solved exactly by dynamic programming over the
sorted images.
All sizes are (width, height) in pixels.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorakit.errors import ConfigError

Size = tuple[int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom

MODES = ("auto", "native", "square")
MAX_ASPECT = 4.0
CROP_CAP = 0.10  # a crop beyond this share of the image ...
OVER_CAP = 4.0  # ... counts this many times more per unit
PLACES = 1024  # cluster borders considered; exact up to this many images


@dataclass(frozen=True)
class Assignment:
    """One image's training shape and the centred part of the image that fills it."""

    bucket: Size
    crop: Box

    @property
    def scale(self) -> float:
        """Bucket pixels per image pixel; above 1 the image is enlarged."""
        left, top, right, bottom = self.crop
        return max(self.bucket[0] / (right - left), self.bucket[1] / (bottom - top))


def crop_fraction(size: Size, bucket: Size) -> float:
    """The share of the image (0..1) lost when it is scaled to cover the bucket."""
    return -math.expm1(-abs(_log_aspect(size) - _log_aspect(bucket)))


def lattice(
    resolution: int, step: int, tolerance: float | None = None, max_aspect: float = MAX_ASPECT
) -> list[Size]:
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


def square(resolution: int) -> list[Size]:
    """The one-shape lattice."""
    return [(resolution, resolution)]


def native(sizes: Sequence[Size], lattice: Sequence[Size]) -> list[Size]:
    """For each image the lattice shape that crops it least; of equal ones the largest."""
    shapes = sorted(lattice, key=lambda shape: (_log_aspect(shape), shape))
    aspects = [_log_aspect(shape) for shape in shapes]
    chosen = []
    for size in sizes:
        aspect = _log_aspect(size)
        place = bisect_left(aspects, aspect)
        nearby = {aspects[i] for i in (place - 1, place) if 0 <= i < len(aspects)}
        nearest = min(nearby, key=lambda other: (abs(other - aspect), other))
        candidates = (shape for shape in shapes if _log_aspect(shape) == nearest)
        chosen.append(max(candidates, key=lambda shape: shape[0] * shape[1]))
    return chosen


def auto(
    sizes: Sequence[Size], lattice: Sequence[Size], batch: int, k: int = 16, waste: float = 0.07
) -> list[Size]:
    """For each image the shape of the cheapest clustering into at most `k` shapes.

    The cost is the sum over images of the cropped share (dearer beyond `CROP_CAP`) plus `waste` for every
    empty slot in a shape's last batch. Clusters are intervals of the images sorted by aspect; over those the
    result is exact up to `PLACES` images, beyond which cluster borders are limited to `PLACES` positions.
    """
    if batch < 1 or k < 1:
        raise ConfigError(f"batch and k must be at least 1, not {batch} and {k}")
    if not sizes:
        return []
    aspects = np.array([_log_aspect(size) for size in sizes])
    order = np.argsort(aspects, kind="stable")
    places = _places(len(sizes))
    sums = _cost_sums(aspects[order], lattice)[:, places]  # (shapes, places)
    cost = np.full(
        (len(places), len(places)), np.inf
    )  # cost[i, j]: images places[i]..places[j] share a shape
    for row in sums:
        np.minimum(cost, row[None, :] - row[:, None], out=cost)
    counts = places[None, :] - places[:, None]
    cost += waste * (-counts % batch)
    cost[counts <= 0] = np.inf
    chosen: list[Size] = [(0, 0)] * len(sizes)
    for first, last in _cheapest_intervals(cost, k):
        shape = lattice[int(np.argmin(sums[:, last] - sums[:, first]))]
        for image in order[places[first] : places[last]]:
            chosen[int(image)] = shape
    return chosen


def assign(sizes: Sequence[Size], shapes: Sequence[Size]) -> list[Assignment]:
    """Pair each image with its shape: the largest centred box of that shape's aspect is kept."""
    return [Assignment(shape, _centre_crop(size, shape)) for size, shape in zip(sizes, shapes, strict=True)]


def plan(
    sizes: Sequence[Size], resolution: int, step: int, *, mode: str = "auto", batch: int = 1
) -> list[Assignment]:
    """The whole step: lattice, choice by mode (`auto`, `native` or `square`) and crop boxes."""
    _check_grid(resolution, step)
    if mode == "square":
        return assign(sizes, square(resolution) * len(sizes))
    shapes = lattice(resolution, step)
    if mode == "native":
        return assign(sizes, native(sizes, shapes))
    if mode == "auto":
        return assign(sizes, auto(sizes, shapes, batch))
    raise ConfigError(f"unknown bucket mode {mode!r}", where="mode", remedy=f"use one of {', '.join(MODES)}")


def _log_aspect(size: Size) -> float:
    return math.log(size[0] / size[1])


def _check_grid(resolution: int, step: int) -> None:
    if step < 1 or resolution < step or resolution % step:
        below = max(resolution // max(step, 1), 1) * max(step, 1)
        raise ConfigError(
            f"resolution {resolution} is not a positive multiple of the step {step}",
            where="resolution",
            remedy=f"use {below} or {below + max(step, 1)}",
        )


def _centre_crop(size: Size, shape: Size) -> Box:
    width, height = size
    if width * shape[1] > height * shape[0]:  # wider than the shape: cut left and right
        kept = min(width, max(1, round(height * shape[0] / shape[1])))
        left = (width - kept) // 2
        return left, 0, left + kept, height
    kept = min(height, max(1, round(width * shape[1] / shape[0])))
    top = (height - kept) // 2
    return 0, top, width, top + kept


def _places(count: int) -> NDArray[np.int64]:
    """Positions in the sorted images where a cluster may begin or end."""
    return np.unique(np.linspace(0, count, min(count, PLACES) + 1).round().astype(np.int64))


def _cost_sums(aspects: NDArray[np.float64], lattice: Sequence[Size]) -> NDArray[np.float64]:
    """Running sums over the sorted images of the cost in each shape: (shapes, images + 1)."""
    shapes = np.array([_log_aspect(shape) for shape in lattice])
    crop = -np.expm1(-np.abs(aspects[None, :] - shapes[:, None]))
    crop += OVER_CAP * np.maximum(crop - CROP_CAP, 0)
    return np.concatenate([np.zeros((len(lattice), 1)), np.cumsum(crop, axis=1)], axis=1)


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
