"""A card for each image: the image as training uses it, its captions, and its findings.

The filter uses radio buttons and CSS, no script.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from data_tools.captions import tokens
from data_tools.crop_focus import NO_FACE
from data_tools.report.data import Flag, ReportData, severity_key, split_notes
from data_tools.report.findings import LEVELS
from data_tools.report.thumbnails import Thumbnail, Thumbnails
from data_tools.scan import SCAN_REASONS
from lorakit.core.progress import track_progress
from lorakit.imaging import crops
from lorakit.manifest import Caption, Record
from lorakit.reports import Badge, Choice

MAX_IMAGES = 400  # on the page; report.json has all
_FILTERS = (
    ("all", "all"),
    ("flagged", "with findings"),
    ("excluded", "excluded"),
    ("masked", "masked"),
    ("user-crop", "cropped by hand"),
)
Words = list[tuple[str, bool]]
"""Parts of a text; True for the trigger word."""


@dataclass(frozen=True)
class CaptionText:
    """A caption: the words that are read, those that no text encoder reads, and its source and lengths."""

    read: Words
    unread: Words
    badges: list[Badge]


@dataclass(frozen=True)
class ImageCard:
    """The facts of one image; `classes` are those of the filter."""

    classes: list[str]
    anchor: str
    folder: str
    name: str
    thumbnail: Thumbnail
    facts: str
    badges: list[Badge]
    reason: str
    captions: list[CaptionText]
    notes: list[tuple[str, str]]


@dataclass(frozen=True)
class ImageCards:
    """The cards, worst first, the filter's choices, and the number of images."""

    cards: list[ImageCard]
    choices: list[Choice]
    total: int


def image_cards(data: ReportData, thumbnails: Thumbnails, *, quiet: bool) -> ImageCards:
    """Return a card for each image, worst first, at most `MAX_IMAGES`."""
    flags = data.flags_by_file()
    ordered = sorted(data.records, key=lambda record: severity_key(record, flags))
    first = ordered[:MAX_IMAGES]
    cards = [
        _card(record, flags.get(record.file, []), data, thumbnails)
        for record in track_progress(first, "report", len(first), quiet=quiet)
    ]
    return ImageCards(cards, _filter([card.classes for card in cards]), len(ordered))


def _filter_classes(record: Record, flags: Sequence[Flag]) -> list[str]:
    classes = ["image-card"]
    classes += ["excluded"] if not record.keep else []
    classes += ["flagged"] if any(flag.level != "note" for flag in flags) else []
    classes += ["masked"] if record.mask else []
    classes += ["user-crop"] if record.crop_source == crops.USER else []
    return classes


def _filter(classes: Sequence[Sequence[str]]) -> list[Choice]:
    """Return choices for the classes in use; the style sheet hides the other cards."""
    numbers = {name: sum(name in card for card in classes) for name, _ in _FILTERS} | {"all": len(classes)}
    choices = [Choice(name, label, numbers[name]) for name, label in _FILTERS if numbers[name]]
    return choices if len(choices) > 1 else []


def _card(record: Record, flags: Sequence[Flag], data: ReportData, thumbnails: Thumbnails) -> ImageCard:
    path = PurePosixPath(record.file)
    return ImageCard(
        classes=_filter_classes(record, flags),
        anchor=thumbnails.anchors[record.file],
        folder=f"{path.parent}/" if str(path.parent) != "." else "",
        name=path.name,
        thumbnail=thumbnails.thumbnail(record.file),
        facts="".join(_size_line(record)),
        badges=[Badge(flag.code.replace("_", " "), LEVELS[flag.level]) for flag in flags],
        reason="" if record.keep else _reason(record),
        captions=[_caption(caption, data) for caption in record.captions if record.keep],
        notes=_notes(record),
    )


def _reason(record: Record) -> str:
    """Return the reason without its code, which a badge shows; the user's own reason completely."""
    code, _, text = (record.reason or "").partition(":")
    return text.strip() if code in SCAN_REASONS else record.reason or ""


def _size_line(record: Record) -> Iterator[str]:
    if not record.width:
        return
    yield f"{record.width} × {record.height}"
    if record.bucket:
        yield f" → {record.bucket[0]} × {record.bucket[1]}"
    crop_share = crops.cropped_fraction(record)
    if record.bucket and crop_share >= 0.0005:
        yield f", {crop_share:.1%} cropped"
    sources = {crops.USER: "crop by hand", "saliency": "crop by saliency", "face": "crop by face"}
    sources[NO_FACE] = "no face found, crop by saliency"
    if record.bucket and record.crop_source in sources:
        yield f", {sources[record.crop_source]}"
    if record.repeats > 1:
        yield f", {record.repeats} times per epoch"


def _notes(record: Record) -> list[tuple[str, str]]:
    """Return the notes; truncated words are marked in the caption instead."""
    return [(code.replace("_", " "), text) for code, text in split_notes(record) if code not in tokens.NOTES]


def _caption(caption: Caption, data: ReportData) -> CaptionText:
    """Return the text with the trigger marked and unread words apart, and its source."""
    counts = data.token_counts.get(caption.text, ())
    truncated_lengths = [len(count.truncated_text) for count in counts]
    cut = len(caption.text) - min(truncated_lengths, default=0)  # the rest is read by no encoder
    badges = [Badge(caption.source if caption.model is None else f"{caption.source} {caption.model}")]
    # Tokenizers with equal counts, such as the two of SDXL, share a badge.
    by_count = {(c.num_tokens, c.max_tokens, c.truncated_text): c for c in reversed(counts)}
    for count in reversed(by_count.values()):
        unread = f"does not read: {count.truncated_text}" if count.truncated_text else ""
        tooltip = f"{count.tokenizer} {unread or 'reads the whole caption'}"
        text = f"{count.num_tokens}/{count.max_tokens} tokens"
        badges.append(Badge(text, "bad" if unread else None, tooltip))
    read, rest = caption.text[:cut], caption.text[cut:]
    return CaptionText(_mark_trigger(read, data.trigger), _mark_trigger(rest, data.trigger), badges)


def _mark_trigger(text: str, trigger: str | None) -> Words:
    if not trigger or not text:
        return [(text, False)] if text else []
    words = re.split(rf"(?i)(?<!\w)({re.escape(trigger)})(?!\w)", text)
    return [(word, index % 2 == 1) for index, word in enumerate(words) if word]
