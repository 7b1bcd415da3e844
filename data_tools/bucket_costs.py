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
    bucketed = [record for record in records if record.keep and record.bucket]
    counts: Counter[buckets.ImageSize] = Counter()
    for record in bucketed:
        counts[record.bucket] += record.repeats  # type: ignore[index]
    total = max(1, counts.total())
    crop_shares = [(crops.cropped_fraction(record), record.repeats) for record in bucketed]
    return BucketCost(
        mode,
        len(counts),
        sum(share * times for share, times in crop_shares) / total,
        max((share for share, _ in crop_shares), default=0.0),
        sum(number % batch for number in counts.values()) / total,
        sum(w * h * number for (w, h), number in counts.items()) / total / resolution**2,
        sum(r.repeats for r in bucketed if crops.upscale_factor(r) > MAX_UNNOTICED_UPSCALE) / total,
    )


def compare_bucket_modes(records: Sequence[Record], options: BucketOptions) -> list[BucketCost]:
    """Return the costs of every mode that is possible with this size_multiple."""
    kept = [record for record in records if record.keep]
    costs = []
    for mode in buckets.MODES:
        try:
            bucketed = crops.assign_buckets_and_crops(
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
        costs.append(bucket_cost(bucketed, mode, options.resolution, options.batch_size))
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
