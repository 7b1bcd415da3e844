"""The dataset's report: one HTML page that shows what the model will see, and its JSON twin."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from data_tools import bucket
from data_tools.findings import Finding
from data_tools.scan import code_of
from lorakit import __version__, buckets, images, storage
from lorakit.errors import DataError
from lorakit.manifest import Record
from lorakit.progress import track
from lorakit.report import Html, badge, details, escape, grid, image, join, page, section, table, tag, verdict

HTML, JSON = "report.html", "report.json"
PICTURES = 400  # images shown; the others are in the JSON twin
THUMBNAIL = 160  # long side, in CSS pixels
_BINS = 24
_OUTSIDE = 0.35  # how bright the cropped part is drawn


def write(
    root: Path,
    records: Sequence[Record],
    findings: Sequence[Finding],
    *,
    counts: Mapping[str, Any],
    trigger: str | None = None,
    quiet: bool = True,
) -> bool:
    """Write report.json and report.html; False when both already say exactly this."""
    value = to_json(records, findings, counts, trigger)
    text = storage.dump_json(value).encode("utf-8")
    twin, html = root / JSON, root / HTML
    if html.is_file() and twin.is_file() and twin.read_bytes() == text:
        return False
    body = [
        _verdict(records, findings),
        _problems(findings),
        _shapes(records),
        _duplicates(root, records, findings),
        _pictures(root, records, trigger, quiet),
    ]
    title = f"Dataset {root.resolve().name}"
    storage.write_text(html, page(title, [part for part in body if part], subtitle=_subtitle(counts)))
    storage.write_bytes(twin, text)
    return True


def to_json(
    records: Sequence[Record], findings: Sequence[Finding], counts: Mapping[str, Any], trigger: str | None
) -> dict[str, Any]:
    """The report as JSON; equal data give equal bytes."""
    return {
        "lorakit": __version__,
        "counts": dict(counts),
        "trigger": trigger,
        "findings": [finding.to_json() for finding in findings],
        "images": [
            {
                "file": record.file,
                "keep": record.keep,
                "reason": record.reason,
                "size": list(record.size),
                "bucket": record.bucket,
                "crop": record.crop,
                "cropped": round(bucket.crop_share(record), 4),
                "captions": [caption.text for caption in record.captions],
                "notes": list(record.notes),
                "pixels": record.pixels,
            }
            for record in records
        ],
    }


def _subtitle(counts: Mapping[str, Any]) -> str:
    aside = counts["images"] - counts["kept"]
    return f"{counts['images']} images, {counts['kept']} for training, {aside} set aside"


def _verdict(records: Sequence[Record], findings: Sequence[Finding]) -> Html:
    errors = [finding for finding in findings if finding.level == "error"]
    warnings = [finding for finding in findings if finding.level == "warning"]
    if errors:
        files = len({file for finding in errors for file in finding.files})
        return verdict(f"{files} files cannot be used as they are. They are listed first below.", False)
    if warnings:
        return verdict(f"Ready to train. {len(warnings)} things deserve a look.", None)
    return verdict("Ready to train. Nothing to complain about.", True)


def _problems(findings: Sequence[Finding]) -> Html:
    if not findings:
        return Html("")
    rows: list[list[str | Html | int | float]] = [
        [_label(finding), finding.message, _files(finding.files)] for finding in findings
    ]
    return section("Findings", table(["finding", "what", "files"], rows))


def _label(finding: Finding) -> Html:
    good = {"error": False, "warning": None, "note": True}[finding.level]
    return tag("span", badge(finding.level, good), " ", tag("code", finding.code), style="white-space:nowrap")


def _files(files: Sequence[str]) -> Html:
    shown = escape(", ".join(files[:6]))
    if len(files) <= 6:
        return shown
    return join([shown, details(f"and {len(files) - 6} more", tag("p", ", ".join(files[6:])))])


# ---- shapes ------------------------------------------------------------------------------------------------


def _shapes(records: Sequence[Record]) -> Html:
    counts = bucket.count(records)
    if not counts:
        return Html("")
    kept = [record for record in records if record.keep and record.bucket]
    rows: list[list[str | Html | int | float]] = []
    for shape, number in counts.items():
        lost = [bucket.crop_share(record) for record in kept if record.bucket == shape]
        aspect = f"{shape[0] / shape[1]:.3f}"
        rows.append([f"{shape[0]}x{shape[1]}", aspect, number, f"{100 * sum(lost) / len(lost):.1f}"])
    headers = ["bucket", "aspect", "images", "mean crop, %"]
    return section("Shapes", _histogram(kept, list(counts)), table(headers, rows))


def _histogram(records: Sequence[Record], shapes: Sequence[buckets.Size]) -> Html:
    """Images by aspect (log scale) as bars, the chosen buckets as lines."""
    values = [math.log(record.width / record.height) for record in records]
    lines = [math.log(width / height) for width, height in shapes]
    low, high = min(values + lines) - 0.08, max(values + lines) + 0.08
    width, height, foot = 1000, 180, 150
    bins = [0] * _BINS
    for value in values:
        bins[min(_BINS - 1, int((value - low) / (high - low) * _BINS))] += 1
    parts = []
    for index, number in enumerate(bins):
        tall = round(number / max(bins) * (foot - 10), 1)
        place = {"x": round(index * width / _BINS + 2, 1), "y": foot - tall, "width": width / _BINS - 4}
        parts.append(tag("rect", tag("title", f"{number} images"), height=tall, fill="var(--c1)", **place))
    last_label = -100.0
    for (w, h), line in zip(shapes, lines, strict=True):
        x = round((line - low) / (high - low) * width, 1)
        stroke = {"stroke": "var(--c2)", "stroke_width": 2, "stroke_dasharray": "5 4"}
        parts.append(tag("line", tag("title", f"{w}x{h}"), x1=x, x2=x, y1=0, y2=foot, **stroke))
        if x - last_label >= 60:
            parts.append(tag("text", f"{w / h:.2f}", x=x, y=foot + 18, text_anchor="middle"))
            last_label = x
    label = "Images by aspect, and the chosen buckets"
    drawing = tag("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=label)
    return tag(
        "figure",
        drawing,
        tag("p", "Bars: images by aspect (width/height). Dashed: the buckets.", class_="legend"),
    )


# ---- pictures ----------------------------------------------------------------------------------------------


def _duplicates(root: Path, records: Sequence[Record], findings: Sequence[Finding]) -> Html:
    """The pictures of each group of duplicates, side by side."""
    clusters = [finding for finding in findings if finding.code in ("duplicate", "near_duplicate")][:40]
    if not clusters:
        return Html("")
    by_file = {record.file: record for record in records}
    rows = []
    for cluster in clusters:
        cells = [join([_thumbnail(root, by_file[file]), tag("p", file)]) for file in cluster.files[:6]]
        rows.append(cells + [Html("")] * (6 - len(cells)))
    return section("Duplicates", grid([""] * 6, [cluster.message for cluster in clusters], rows))


def _pictures(root: Path, records: Sequence[Record], trigger: str | None, quiet: bool) -> Html:
    """Every image with its crop box, worst first."""
    worst = sorted(records, key=lambda record: (record.keep, -len(record.notes), record.file))
    shown = worst[:PICTURES]
    rows: list[list[str | Html | int | float]] = []
    for record in track(shown, "report", len(shown), quiet=quiet):
        rows.append(
            [
                _thumbnail(root, record),
                join([tag("strong", record.file), *_facts(record)]),
                _caption(record, trigger),
                join(_note(note) for note in record.notes),
            ]
        )
    parts = [table(["picture", "file", "caption", "notes"], rows)]
    if len(records) > len(shown):
        text = f"The first {len(shown)} of {len(records)} images, worst first; all are in {JSON}."
        parts.insert(0, tag("p", text))
    return section("Images", *parts)


def _facts(record: Record) -> Iterator[Html]:
    if not record.keep:
        yield tag("div", badge("set aside", False), " ", record.reason or "")
    if record.width:
        yield tag("div", f"{record.width}x{record.height}")
    if record.bucket:
        yield tag(
            "div", f"bucket {record.bucket[0]}x{record.bucket[1]}, crop {bucket.crop_share(record):.1%}"
        )
    if record.repeats > 1:
        yield tag("div", f"shown {record.repeats} times an epoch")


def _note(note: str) -> Html:
    return tag("div", badge(code_of(note)), note.partition(":")[2])


def _caption(record: Record, trigger: str | None) -> Html:
    """All caption variants with their sources, the trigger in bold."""
    lines = []
    for caption in record.captions:
        words = (
            re.split(rf"(?i)(?<!\w)({re.escape(trigger)})(?!\w)", caption.text) if trigger else [caption.text]
        )
        marked = [tag("mark", word) if index % 2 else escape(word) for index, word in enumerate(words)]
        lines.append(tag("div", join(marked), " ", badge(caption.source)))
    return join(lines)


def _thumbnail(root: Path, record: Record) -> Html:
    """The picture, what the crop leaves out darkened; nothing for a file that gives none."""
    if not record.width:
        return Html("")
    try:
        picture = images.preview(root, record, 2 * THUMBNAIL)
    except DataError as error:
        return tag("p", str(error).splitlines()[0])
    if record.crop:
        picture = _with_box(picture, record)
    scale = min(1.0, THUMBNAIL / max(picture.size))
    return image(picture, alt=record.file, width=max(1, round(picture.width * scale)))


def _with_box(picture: Image.Image, record: Record) -> Image.Image:
    assert record.crop is not None
    scale = picture.width / record.width, picture.height / record.height
    box = [round(value * scale[index % 2]) for index, value in enumerate(record.crop)]
    if box == [0, 0, *picture.size]:
        return picture
    dark = picture.point(lambda value: int(value * _OUTSIDE))
    dark.paste(picture.crop((box[0], box[1], box[2], box[3])), (box[0], box[1]))
    ImageDraw.Draw(dark).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=(255, 255, 255))
    return dark
