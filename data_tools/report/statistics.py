"""Sections with statistics: aspect ratios and buckets, costs of each bucket mode, phrases, tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data_tools import assign_buckets, bucket_costs
from data_tools.report.data import CURRENT_BUCKETS, REPORT_BATCH_SIZE, ReportData
from lorakit.imaging import buckets, crops
from lorakit.manifest import Record
from lorakit.reports import Html, escape, html_table, join, paragraph, section, tag

_BINS = 48
_ASPECTS = ((9, 16), (2, 3), (3, 4), (4, 5), (1, 1), (5, 4), (4, 3), (3, 2), (16, 9), (2, 1), (1, 2), (21, 9))
_WIDTH, _HEIGHT, _BASELINE_Y = 1000, 220, 186
Cell = str | Html | int | float


def buckets_section(data: ReportData) -> Html:
    """Show the aspect ratios of the images, the buckets, and the costs of each bucket mode."""
    counts = assign_buckets.count_per_bucket(data.kept)
    if not counts:
        return Html("")
    kept = [record for record in data.kept if record.bucket]
    parts = [paragraph(_epoch_text(data)), _histogram(kept, list(counts)), _buckets(kept, counts)]
    if data.bucket_costs:
        rows: list[list[Cell]] = []
        for cost in data.bucket_costs:
            is_current = cost.bucket_mode == CURRENT_BUCKETS
            name = tag("b", cost.bucket_mode) if is_current else escape(cost.bucket_mode)
            rows.append([name, *bucket_costs.cost_cells(cost)[1:]])
        headers = [
            header.replace("batches", f"batches of {REPORT_BATCH_SIZE}")
            for header in bucket_costs.COST_HEADERS
        ]
        parts += [
            tag("h3", "Costs of each bucket mode on these images"),
            html_table(headers, rows),
        ]
    return section("Buckets", *parts)


def captions_section(data: ReportData) -> Html:
    """Show the most frequent phrases of the captions, and their lengths in tokens."""
    captioned = [record for record in data.kept if record.captions]
    if not captioned:
        return Html("")
    parts: list[Html] = [tag("h3", "Sources of captions"), _source_table(data)]
    phrases = data.frequent_phrases()
    if phrases:
        parts += [tag("h3", "Phrases in several captions"), _phrase_bars(phrases, len(captioned))]
    if data.token_counts:
        parts += [tag("h3", f"Tokens of {data.base}"), _token_table(data)]
    return section("Captions", *parts)


def _source_table(data: ReportData) -> Html:
    """Return a table of the sources: captions and images with each, and one of the captions."""
    rows: list[list[Cell]] = []
    for source, number in data.counts["captions"].items():
        of_source = [(r.file, c.text) for r in data.kept for c in r.captions if c.source == source]
        rows.append([source, number, len({file for file, _ in of_source}), of_source[0][1][:120]])
    return html_table(["source", "captions", "images", "for example"], rows)


def _epoch_text(data: ReportData) -> str:
    """Return the number of steps of an epoch for usual batch sizes."""
    steps = ", ".join(f"{math.ceil(data.images_per_epoch / batch)} at {batch}" for batch in (2, 4, 8))
    repeats = f" ({len(data.kept)} and their repeats)" if data.images_per_epoch != len(data.kept) else ""
    text = f"An epoch has {data.images_per_epoch} images{repeats}"
    return f"{text}: {data.images_per_epoch} steps at batch size 1, {steps}."


def _buckets(kept: Sequence[Record], counts: dict[buckets.ImageSize, int]) -> Html:
    rows: list[list[Cell]] = []
    for bucket, number in counts.items():
        crop_shares = [crops.cropped_fraction(record) for record in kept if record.bucket == bucket]
        name = escape(f"{bucket[0]} × {bucket[1]}")
        rows.append(
            [
                name,
                _aspect_name(bucket),
                number,
                f"{100 * sum(crop_shares) / len(crop_shares):.1f}",
                f"{100 * max(crop_shares):.1f}",
            ]
        )
    return html_table(["bucket", "aspect", "images", "mean crop, %", "max crop, %"], rows)


def _aspect_name(bucket: buckets.ImageSize) -> Html:
    """Return the aspect ratio as a number, with the usual ratio if it is within 1 % of one."""
    aspect = bucket[0] / bucket[1]
    usual = min(_ASPECTS, key=lambda ratio: abs(math.log(ratio[0] / ratio[1] / aspect)))
    near = abs(math.log(usual[0] / usual[1] / aspect)) < 0.01
    return escape(f"{aspect:.3f}" + (f" ({usual[0]}:{usual[1]})" if near else ""))


def _histogram(records: Sequence[Record], sizes: Sequence[buckets.ImageSize]) -> Html:
    """Draw the images by aspect ratio (log scale) as bars, and the buckets as lines."""
    values = [math.log(record.width / record.height) for record in records]
    lines = [math.log(width / height) for width, height in sizes]
    low, high = min([*values, *lines, -0.35]) - 0.06, max([*values, *lines, 0.35]) + 0.06
    bar_width = (high - low) / _BINS
    low -= (bar_width / 2 + low) % bar_width  # center one bar at 1:1, where most images are
    high = low + (_BINS + 1) * bar_width

    def x(value: float) -> float:
        return round((value - low) / (high - low) * _WIDTH, 1)

    counts = [0] * (_BINS + 1)
    for value in values:
        counts[min(_BINS, int((value - low) / bar_width))] += 1
    bar = _WIDTH / len(counts)
    parts = [tag("line", class_="axis", x1=0, x2=_WIDTH, y1=_BASELINE_Y, y2=_BASELINE_Y)]
    for index, number in enumerate(counts):
        if number:
            bar_height = round(number / max(counts) * (_BASELINE_Y - 40), 1)
            place = {
                "x": round(index * bar + 1, 1),
                "y": _BASELINE_Y - bar_height,
                "width": round(bar - 2, 1),
            }
            title = tag("title", f"{number} images")
            parts.append(
                tag("rect", title, class_="bar", height=bar_height, fill="var(--c1)", rx=1.5, **place)
            )
    parts += [_tick(ratio, x(math.log(ratio[0] / ratio[1]))) for ratio in _ticks(low, high)]
    for (w, h), line in zip(sizes, lines, strict=True):
        title = tag("title", f"{w} × {h}")
        stroke = {"stroke": "var(--c2)", "stroke_width": 2, "stroke_dasharray": "5 4"}
        parts.append(tag("line", title, x1=x(line), x2=x(line), y1=22, y2=_BASELINE_Y, **stroke))
        parts.append(tag("path", d=f"M{x(line) - 6} 10h12l-6 9z", fill="var(--c2)"))
    drawing = tag(
        "svg",
        *parts,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label="Images by aspect ratio, and buckets",
    )
    legend = [
        tag("li", tag("i", style="background:var(--c1)"), "images by aspect ratio (width to height)"),
        tag("li", tag("i", style="background:var(--c2)"), "buckets"),
    ]
    return tag("figure", tag("ul", *legend, class_="legend"), drawing)


def _ticks(low: float, high: float) -> list[tuple[int, int]]:
    """Return usual ratios for the axis, without those whose labels would overlap."""
    ticks: list[tuple[int, int]] = []
    for ratio in ((1, 1), (3, 2), (2, 3), (16, 9), (9, 16), (4, 3), (3, 4), (21, 9), (1, 2), (2, 1)):
        value = math.log(ratio[0] / ratio[1])
        gap = 0.05 * (high - low)
        if low < value < high and all(abs(value - math.log(w / h)) > gap for w, h in ticks):
            ticks.append(ratio)
    return ticks


def _tick(ratio: tuple[int, int], x: float) -> Html:
    line = tag("line", class_="axis", x1=x, x2=x, y1=_BASELINE_Y, y2=_BASELINE_Y + 5)
    return join([line, tag("text", f"{ratio[0]}:{ratio[1]}", x=x, y=_BASELINE_Y + 22, text_anchor="middle")])


def _phrase_bars(phrases: Sequence[tuple[str, int]], total: int) -> Html:
    rows = []
    for phrase, number in phrases:
        share = f"width:{100 * number / total:.1f}%"
        bar = tag("span", tag("i", style=share), class_="share")
        rows.append(
            tag(
                "li",
                tag("span", phrase, class_="phrase"),
                bar,
                tag("span", f"{number} of {total}", class_="of"),
            )
        )
    return tag("ul", *rows, class_="phrases")


def _token_table(data: ReportData) -> Html:
    rows: list[list[Cell]] = []
    for index, first in enumerate(next(iter(data.token_counts.values()))):
        counts = [counted[index] for counted in data.token_counts.values()]
        lengths = [count.num_tokens for count in counts]
        truncated = sum(bool(count.truncated_text) for count in counts)
        rows.append(
            [
                escape(first.tokenizer),
                first.max_tokens,
                f"{sum(lengths) / len(lengths):.1f}",
                max(lengths),
                truncated,
            ]
        )
    return html_table(["tokenizer", "max tokens", "mean", "longest", "captions truncated"], rows)
