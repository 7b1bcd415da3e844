"""Costs of each bucket mode on a dataset: crop, number of buckets, incomplete batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from data_tools.assign_buckets import BucketOptions
from lorakit.core.errors import ConfigError
from lorakit.imaging import buckets, crops
from lorakit.imaging.buckets import MAX_UNNOTICED_UPSCALE
from lorakit.manifest import Record


@dataclass(frozen=True)
class BucketCost:
    """Costs of one bucket mode; shares (0..1) are of the images of an epoch, repeats counted.

    `mean_crop` and `max_crop` are shares of an image's area that are cropped off, `incomplete_batches` is the
    share of images in batches that their bucket cannot fill, `pixel_budget` the mean bucket area over
    resolution squared, `upscaled` the share of images with fewer pixels than their bucket.
    """

    bucket_mode: str
    num_buckets: int
    mean_crop: float
    max_crop: float
    incomplete_batches: float
    pixel_budget: float
    upscaled: float


def bucket_cost(records: Sequence[Record], mode: str, resolution: int, batch: int) -> BucketCost:
    """Return the costs of the records' buckets; images without one do not count."""
    kept = [record for record in records if record.keep]
    return _cost(kept, [record.bucket for record in kept], mode, resolution, batch)


def _cost(
    records: Sequence[Record],
    sizes: Sequence[buckets.ImageSize | None],
    mode: str,
    resolution: int,
    batch: int,
) -> BucketCost:
    """Return the costs of a bucket for each record; many records share their size and bucket."""
    pairs: Counter[tuple[buckets.ImageSize, buckets.ImageSize]] = Counter()
    counts: Counter[buckets.ImageSize] = Counter()
    for record, bucket in zip(records, sizes, strict=True):
        if bucket is not None:
            pairs[crops.crop_size(record), bucket] += record.repeats
            counts[bucket] += record.repeats
    total = max(1, counts.total())
    crop_shares = {pair: _crop_share(*pair) for pair in pairs}
    upscaled = {pair: buckets.cover_scale(*pair) > MAX_UNNOTICED_UPSCALE for pair in pairs}
    return BucketCost(
        mode,
        len(counts),
        sum(crop_shares[pair] * times for pair, times in pairs.items()) / total,
        max(crop_shares.values(), default=0.0),
        sum(number % batch for number in counts.values()) / total,
        sum(w * h * number for (w, h), number in counts.items()) / total / resolution**2,
        sum(times for pair, times in pairs.items() if upscaled[pair]) / total,
    )


def _crop_share(size: buckets.ImageSize, bucket: buckets.ImageSize) -> float:
    left, top, right, bottom = buckets.crop_box(size, bucket)
    return 1 - (right - left) * (bottom - top) / (size[0] * size[1])


def compare_bucket_modes(records: Sequence[Record], options: BucketOptions) -> list[BucketCost]:
    """Return the costs of every mode that is possible with this size_multiple."""
    kept = [record for record in records if record.keep]
    costs = []
    for mode in buckets.MODES:
        try:
            sizes = crops.choose_sizes(
                kept,
                options.resolution,
                options.size_multiple,
                mode=mode,
                batch_size=options.batch_size,
                resolutions=options.resolutions,
                upscale=options.upscale,
            )
        except ConfigError:
            continue
        costs.append(_cost(kept, sizes, mode, options.resolution, options.batch_size))
    return costs


COST_HEADERS = (
    "mode",
    "buckets",
    "mean crop, %",
    "max crop, %",
    "in incomplete batches, %",
    "of the pixel budget, %",
    "upscaled, %",
)


def cost_cells(cost: BucketCost) -> list[str]:
    """Return the cells of one row under `COST_HEADERS`."""
    shares = (cost.mean_crop, cost.max_crop, cost.incomplete_batches, cost.pixel_budget, cost.upscaled)
    decimals = (2, 1, 0, 0, 0)
    parts = [f"{100 * share:.{places}f}" for share, places in zip(shares, decimals, strict=True)]
    return [cost.bucket_mode, str(cost.num_buckets), *parts]
