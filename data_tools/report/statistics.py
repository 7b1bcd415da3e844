"""Sections with statistics: aspect ratios and buckets, costs of each bucket mode, phrases, tokens."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_tools import assign_buckets, bucket_costs
from data_tools.report.data import CURRENT_BUCKETS, REPORT_BATCH_SIZE, ReportData
from lorakit.imaging import buckets, crops
from lorakit.manifest import Record
from lorakit.reports import Badge, Chart, Table, histogram

_ASPECTS = ((9, 16), (2, 3), (3, 4), (4, 5), (1, 1), (5, 4), (4, 3), (3, 2), (16, 9), (2, 1), (1, 2), (21, 9))
_TICKS = ((1, 1), (3, 2), (2, 3), (16, 9), (9, 16), (4, 3), (3, 4), (21, 9), (1, 2), (2, 1))


@dataclass(frozen=True)
class BucketStatistics:
    """The steps of an epoch, the aspect ratios, the buckets, and the costs of each bucket mode."""

    epoch: str
    aspects: Chart
    table: Table
    costs: Table | None


@dataclass(frozen=True)
class Phrase:
    """A phrase of several captions."""

    text: str
    percent: float
    count: str


@dataclass(frozen=True)
class CaptionStatistics:
    """The sources of the captions, their most frequent phrases, and their lengths in tokens."""

    sources: Table
    phrases: list[Phrase]
    tokens: Table | None


def bucket_statistics(data: ReportData) -> BucketStatistics | None:
    """Return the aspect ratios of the images, the buckets, and the costs of each bucket mode."""
    counts = assign_buckets.count_per_bucket(data.kept)
    if not counts:
        return None
    kept = [record for record in data.kept if record.bucket]
    return BucketStatistics(
        _epoch_text(data), _aspects(kept, list(counts)), _buckets(kept, counts), _costs(data)
    )


def _costs(data: ReportData) -> Table | None:
    rows: list[list[Any]] = []
    for cost in data.bucket_costs:
        name = Badge(cost.bucket_mode, "note") if cost.bucket_mode == CURRENT_BUCKETS else cost.bucket_mode
        rows.append([name, *bucket_costs.cost_cells(cost)[1:]])
    headers = [
        header.replace("batches", f"batches of {REPORT_BATCH_SIZE}") for header in bucket_costs.COST_HEADERS
    ]
    return Table(headers, rows) if rows else None


def caption_statistics(data: ReportData) -> CaptionStatistics | None:
    """Return the sources and most frequent phrases of the captions, and their lengths in tokens."""
    captioned = [record for record in data.kept if record.captions]
    if not captioned:
        return None
    total = len(captioned)
    phrases = [
        Phrase(text, round(100 * number / total, 1), f"{number} of {total}")
        for text, number in data.frequent_phrases()
    ]
    return CaptionStatistics(_source_table(data), phrases, _token_table(data) if data.token_counts else None)


def _source_table(data: ReportData) -> Table:
    """Return a table of the sources: captions and images with each, and one of the captions."""
    rows: list[list[Any]] = []
    for source, number in data.counts["captions"].items():
        of_source = [(r.file, c.text) for r in data.kept for c in r.captions if c.source == source]
        rows.append([source, number, len({file for file, _ in of_source}), of_source[0][1][:120]])
    return Table(["source", "captions", "images", "for example"], rows)


def _epoch_text(data: ReportData) -> str:
    """Return the number of steps of an epoch for usual batch sizes."""
    steps = ", ".join(f"{math.ceil(data.images_per_epoch / batch)} at {batch}" for batch in (2, 4, 8))
    repeats = f" ({len(data.kept)} and their repeats)" if data.images_per_epoch != len(data.kept) else ""
    text = f"An epoch has {data.images_per_epoch} images{repeats}"
    return f"{text}: {data.images_per_epoch} steps at batch size 1, {steps}."


def _buckets(kept: Sequence[Record], counts: dict[buckets.ImageSize, int]) -> Table:
    rows: list[list[Any]] = []
    shares_by_bucket: dict[buckets.ImageSize | None, list[float]] = defaultdict(list)
    for record in kept:
        shares_by_bucket[record.bucket].append(crops.cropped_fraction(record))
    for bucket, number in counts.items():
        crop_shares = shares_by_bucket[bucket]
        rows.append(
            [
                f"{bucket[0]} × {bucket[1]}",
                _aspect_name(bucket),
                number,
                f"{100 * sum(crop_shares) / len(crop_shares):.1f}",
                f"{100 * max(crop_shares):.1f}",
            ]
        )
    return Table(["bucket", "aspect", "images", "mean crop, %", "max crop, %"], rows)


def _aspect_name(bucket: buckets.ImageSize) -> str:
    """Return the aspect ratio as a number, with the usual ratio if it is within 1 % of one."""
    aspect = bucket[0] / bucket[1]
    usual = min(_ASPECTS, key=lambda ratio: abs(math.log(ratio[0] / ratio[1] / aspect)))
    near = abs(math.log(usual[0] / usual[1] / aspect)) < 0.01
    return f"{aspect:.3f}" + (f" ({usual[0]}:{usual[1]})" if near else "")


def _aspects(records: Sequence[Record], sizes: Sequence[buckets.ImageSize]) -> Chart:
    """Return the images by aspect ratio (log scale) as bars, and the buckets as lines."""
    return histogram(
        [math.log(record.width / record.height) for record in records],
        title="Images by aspect ratio, and buckets",
        value_label="images by aspect ratio (width to height)",
        marks={f"{width} × {height}": math.log(width / height) for width, height in sizes},
        mark_label="buckets",
        ticks={f"{width}:{height}": math.log(width / height) for width, height in _TICKS},
        noun="images",
    )


def _token_table(data: ReportData) -> Table:
    rows: list[list[Any]] = []
    for index, first in enumerate(next(iter(data.token_counts.values()))):
        counts = [counted[index] for counted in data.token_counts.values()]
        lengths = [count.num_tokens for count in counts]
        truncated = sum(bool(count.truncated_text) for count in counts)
        mean = f"{sum(lengths) / len(lengths):.1f}"
        rows.append([first.tokenizer, first.max_tokens, mean, max(lengths), truncated])
    return Table(["tokenizer", "max tokens", "mean", "longest", "captions truncated"], rows)
