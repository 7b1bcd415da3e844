"""What each way of choosing shapes costs on the images at hand: crop, shapes, batches that do not fill."""

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
    """Shares (0..1) are of the images as an epoch shows them, repeats counted.

    `crop` and `worst` are the mean and largest share of an image that is cut off, `incomplete` the share of
    images in batches that one shape cannot fill, `pixels` the mean of bucket over resolution squared,
    `enlarged` the share of images with fewer pixels than their bucket.
    """

    mode: str
    shapes: int
    crop: float
    worst: float
    incomplete: float
    pixels: float
    enlarged: float


def bucket_cost(records: Sequence[Record], mode: str, resolution: int, batch: int) -> BucketCost:
    """The price of the buckets that the records have; images without one do not count."""
    placed = [record for record in records if record.keep and record.bucket]
    counts: Counter[buckets.ImageSize] = Counter()
    for record in placed:
        counts[record.bucket] += record.repeats  # type: ignore[index]
    total = max(1, counts.total())
    lost = [(crops.cropped_fraction(record), record.repeats) for record in placed]
    return BucketCost(
        mode,
        len(counts),
        sum(share * times for share, times in lost) / total,
        max((share for share, _ in lost), default=0.0),
        sum(number % batch for number in counts.values()) / total,
        sum(w * h * number for (w, h), number in counts.items()) / total / resolution**2,
        sum(r.repeats for r in placed if crops.upscale_factor(r) > MAX_UNNOTICED_UPSCALE) / total,
    )


def compare_bucket_modes(records: Sequence[Record], options: BucketOptions) -> list[BucketCost]:
    """Every mode's price for these images; a mode that the step rules out is left out."""
    kept = [record for record in records if record.keep]
    found = []
    for mode in buckets.MODES:
        try:
            placed = crops.assign_buckets_and_crops(
                kept,
                options.resolution,
                options.step,
                mode=mode,
                batch=options.batch,
                tiers=options.tiers,
                upscale=options.upscale,
            )
        except ConfigError:
            continue
        found.append(bucket_cost(placed, mode, options.resolution, options.batch))
    return found


COST_HEADERS = (
    "mode",
    "shapes",
    "mean crop, %",
    "worst crop, %",
    "in incomplete batches, %",
    "of the pixel budget, %",
    "enlarged, %",
)


def cost_cells(found: BucketCost) -> list[str]:
    """The cells of one line under `HEADERS`."""
    shares = (found.crop, found.worst, found.incomplete, found.pixels, found.enlarged)
    decimals = (2, 1, 0, 0, 0)
    parts = [f"{100 * share:.{places}f}" for share, places in zip(shares, decimals, strict=True)]
    return [found.mode, str(found.shapes), *parts]


def format_cost_table(records: Sequence[Record], options: BucketOptions) -> str:
    """A table for the terminal, the chosen mode marked."""
    rows = [list(COST_HEADERS), *(cost_cells(found) for found in compare_bucket_modes(records, options))]
    widths = [max(len(line[column]) for line in rows) for column in range(len(COST_HEADERS))]
    lines = []
    for line in rows:
        mark = ">" if line[0] == options.mode else " "
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        lines.append(f"{mark} {'  '.join(cells)}")
    return "\n".join([f"batch {options.batch}, resolution {options.resolution}", *lines])
