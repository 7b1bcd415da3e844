"""Shapes and words in figures: aspects and buckets, what each mode costs, phrases, tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data_tools import assign_buckets, bucket_costs
from data_tools.report.facts import CURRENT_BUCKETS, REPORT_BATCH_SIZE, ReportData
from lorakit.imaging import buckets, crops
from lorakit.manifest import Record
from lorakit.reports import Html, escape, html_table, join, paragraph, section, tag

_BINS = 48
_ASPECTS = ((9, 16), (2, 3), (3, 4), (4, 5), (1, 1), (5, 4), (4, 3), (3, 2), (16, 9), (2, 1), (1, 2), (21, 9))
_WIDTH, _HEIGHT, _BASELINE_Y = 1000, 220, 186
Cell = str | Html | int | float


def buckets_section(facts: ReportData) -> Html:
    """The aspects of the images, the buckets chosen, and what another choice would cost."""
    counts = assign_buckets.count_per_bucket(facts.kept)
    if not counts:
        return Html("")
    kept = [record for record in facts.kept if record.bucket]
    parts = [paragraph(_epoch_text(facts)), _histogram(kept, list(counts)), _buckets(kept, counts)]
    if facts.prices:
        rows: list[list[Cell]] = []
        for price in facts.prices:
            name = tag("b", price.mode) if price.mode == CURRENT_BUCKETS else escape(price.mode)
            rows.append([name, *bucket_costs.cost_cells(price)[1:]])
        headers = [
            header.replace("batches", f"batches of {REPORT_BATCH_SIZE}")
            for header in bucket_costs.COST_HEADERS
        ]
        parts += [
            tag("h3", "What each way of choosing shapes costs on these images"),
            html_table(headers, rows),
        ]
    return section("Shapes", *parts)


def captions_section(facts: ReportData) -> Html:
    """How often the trigger is said, the most frequent phrases, and the length in tokens."""
    captioned = [record for record in facts.kept if record.captions]
    if not captioned:
        return Html("")
    parts: list[Html] = []
    phrases = facts.phrases()
    if phrases:
        parts += [tag("h3", "Phrases in several captions"), _phrase_bars(phrases, len(captioned))]
    if facts.counted:
        parts += [tag("h3", f"Tokens, as {facts.base} counts them"), _token_table(facts)]
    return section("Words", *parts) if parts else Html("")


def _epoch_text(facts: ReportData) -> str:
    """Steps an epoch, for the usual batch sizes."""
    steps = ", ".join(f"{math.ceil(facts.epoch / batch)} at {batch}" for batch in (2, 4, 8))
    shown = f"An epoch shows {facts.epoch} images" + (
        f" ({len(facts.kept)} with their repeats)" if facts.epoch != len(facts.kept) else ""
    )
    return f"{shown}: {facts.epoch} steps at batch 1, {steps}."


def _buckets(kept: Sequence[Record], counts: dict[buckets.ImageSize, int]) -> Html:
    rows: list[list[Cell]] = []
    for shape, number in counts.items():
        lost = [crops.cropped_fraction(record) for record in kept if record.bucket == shape]
        name = escape(f"{shape[0]} × {shape[1]}")
        rows.append(
            [
                name,
                _aspect_name(shape),
                number,
                f"{100 * sum(lost) / len(lost):.1f}",
                f"{100 * max(lost):.1f}",
            ]
        )
    return html_table(["bucket", "aspect", "images", "mean crop, %", "worst crop, %"], rows)


def _aspect_name(shape: buckets.ImageSize) -> Html:
    """The number, and the usual ratio that it is within a hundredth of."""
    aspect = shape[0] / shape[1]
    usual = min(_ASPECTS, key=lambda ratio: abs(math.log(ratio[0] / ratio[1] / aspect)))
    near = abs(math.log(usual[0] / usual[1] / aspect)) < 0.01
    return escape(f"{aspect:.3f}" + (f" ({usual[0]}:{usual[1]})" if near else ""))


def _histogram(records: Sequence[Record], shapes: Sequence[buckets.ImageSize]) -> Html:
    """Images by aspect (log scale) as bars, the chosen buckets as lines."""
    values = [math.log(record.width / record.height) for record in records]
    lines = [math.log(width / height) for width, height in shapes]
    low, high = min([*values, *lines, -0.35]) - 0.06, max([*values, *lines, 0.35]) + 0.06
    wide = (high - low) / _BINS
    low -= (wide / 2 + low) % wide  # a bar's middle at 1:1, where most pictures are
    high = low + (_BINS + 1) * wide

    def x(value: float) -> float:
        return round((value - low) / (high - low) * _WIDTH, 1)

    counts = [0] * (_BINS + 1)
    for value in values:
        counts[min(_BINS, int((value - low) / wide))] += 1
    bar = _WIDTH / len(counts)
    parts = [tag("line", class_="axis", x1=0, x2=_WIDTH, y1=_BASELINE_Y, y2=_BASELINE_Y)]
    for index, number in enumerate(counts):
        if number:
            tall = round(number / max(counts) * (_BASELINE_Y - 40), 1)
            place = {"x": round(index * bar + 1, 1), "y": _BASELINE_Y - tall, "width": round(bar - 2, 1)}
            title = tag("title", f"{number} images")
            parts.append(tag("rect", title, class_="bar", height=tall, fill="var(--c1)", rx=1.5, **place))
    parts += [_tick(ratio, x(math.log(ratio[0] / ratio[1]))) for ratio in _ticks(low, high)]
    for (w, h), line in zip(shapes, lines, strict=True):
        title = tag("title", f"{w} × {h}")
        stroke = {"stroke": "var(--c2)", "stroke_width": 2, "stroke_dasharray": "5 4"}
        parts.append(tag("line", title, x1=x(line), x2=x(line), y1=22, y2=_BASELINE_Y, **stroke))
        parts.append(tag("path", d=f"M{x(line) - 6} 10h12l-6 9z", fill="var(--c2)"))
    drawing = tag(
        "svg",
        *parts,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label="Images by aspect, and buckets",
    )
    legend = [
        tag("li", tag("i", style="background:var(--c1)"), "images by aspect, width to height"),
        tag("li", tag("i", style="background:var(--c2)"), "buckets"),
    ]
    return tag("figure", tag("ul", *legend, class_="legend"), drawing)


def _ticks(low: float, high: float) -> list[tuple[int, int]]:
    """Usual ratios on the axis, none closer to another than a label is wide."""
    found: list[tuple[int, int]] = []
    for ratio in ((1, 1), (3, 2), (2, 3), (16, 9), (9, 16), (4, 3), (3, 4), (21, 9), (1, 2), (2, 1)):
        value = math.log(ratio[0] / ratio[1])
        gap = 0.05 * (high - low)
        if low < value < high and all(abs(value - math.log(w / h)) > gap for w, h in found):
            found.append(ratio)
    return found


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


def _token_table(facts: ReportData) -> Html:
    rows: list[list[Cell]] = []
    for index, first in enumerate(next(iter(facts.counted.values()))):
        counts = [counted[index] for counted in facts.counted.values()]
        lengths = [count.tokens for count in counts]
        cut = sum(bool(count.lost) for count in counts)
        rows.append(
            [escape(first.tokenizer), first.limit, f"{sum(lengths) / len(lengths):.1f}", max(lengths), cut]
        )
    return html_table(["tokenizer", "tokens that fit", "mean", "longest", "captions cut"], rows)
