"""A card for each image: the image as training uses it, its captions, and its findings.

The filter uses radio buttons and CSS, no script.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from data_tools.captions import tokens
from data_tools.crop_focus import NO_FACE
from data_tools.report.data import Flag, ReportData, severity_key, split_notes
from data_tools.report.thumbnails import Thumbnails
from data_tools.scan import SCAN_REASONS
from lorakit.core.progress import track_progress
from lorakit.imaging import crops
from lorakit.manifest import Caption, Record
from lorakit.reports import Html, badge, escape, join, section, tag

MAX_IMAGES = 400  # on the page; report.json has all
_FILTERS = (
    ("all", "all"),
    ("flagged", "with findings"),
    ("excluded", "excluded"),
    ("masked", "masked"),
    ("user-crop", "cropped by hand"),
)


def image_cards(data: ReportData, thumbnails: Thumbnails, json_name: str, *, quiet: bool) -> Html:
    """Return the section with all images, worst first."""
    flags = data.flags_by_file()
    ordered = sorted(data.records, key=lambda record: severity_key(record, flags))
    first = ordered[:MAX_IMAGES]
    cards, classes = [], []
    for record in track_progress(first, "report", len(first), quiet=quiet):
        image_flags = flags.get(record.file, [])
        classes.append(_filter_classes(record, image_flags))
        cards.append(_card(record, image_flags, data, thumbnails, classes[-1]))
    parts = [_filter(classes), tag("div", *cards, class_="image-cards")]
    if len(ordered) > len(first):
        text = f"The first {len(first)} of {len(ordered)} images, worst first; all are in {json_name}."
        parts.insert(0, tag("p", text))
    return section("Images", *parts)


def _filter_classes(record: Record, flags: Sequence[Flag]) -> list[str]:
    classes = ["image-card"]
    classes += ["excluded"] if not record.keep else []
    classes += ["flagged"] if any(flag.level != "note" for flag in flags) else []
    classes += ["masked"] if record.mask else []
    classes += ["user-crop"] if record.crop_source == crops.USER else []
    return classes


def _filter(classes: Sequence[Sequence[str]]) -> Html:
    """Return radio buttons for the classes in use; the style sheet hides the other cards."""
    numbers = {name: sum(name in card for card in classes) for name, _ in _FILTERS} | {"all": len(classes)}
    present = [(name, label) for name, label in _FILTERS if numbers[name]]
    if len(present) < 2:
        return Html("")
    buttons = []
    for name, label in present:
        checked = {"checked": "checked"} if name == "all" else {}
        radio = tag("input", type="radio", name="show", id=f"show-{name}", **checked)
        buttons.append(tag("label", radio, f"{label} ", tag("b", numbers[name])))
    return tag("div", *buttons, class_="filter", role="group", aria_label="images to show")


def _card(
    record: Record, flags: Sequence[Flag], data: ReportData, thumbnails: Thumbnails, classes: Sequence[str]
) -> Html:
    path = PurePosixPath(record.file)
    folder = f"{path.parent}/" if str(path.parent) != "." else ""
    body = [
        tag("h3", tag("small", folder) if folder else Html(""), path.name),
        tag("p", *_size_line(record), class_="facts"),
        tag("p", *_badges(flags), class_="flags") if flags else Html(""),
        *([tag("p", _reason(record), class_="reason")] if not record.keep else []),
        *(_caption(caption, data) for caption in record.captions if record.keep),
        *_note_list(record),
    ]
    frame = tag("div", thumbnails.thumbnail(record.file), class_="frame")
    return tag(
        "article",
        frame,
        tag("div", *body, class_="body"),
        class_=" ".join(classes),
        id=thumbnails.anchors[record.file],
    )


def _reason(record: Record) -> str:
    """Return the reason without its code, which a badge shows; the user's own reason completely."""
    code, _, text = (record.reason or "").partition(":")
    return text.strip() if code in SCAN_REASONS else record.reason or ""


def _size_line(record: Record) -> Iterator[Html]:
    if not record.width:
        return
    text = f"{record.width} × {record.height}"
    if record.bucket:
        text += f" → {record.bucket[0]} × {record.bucket[1]}"
    yield escape(text)
    crop_share = crops.cropped_fraction(record)
    if record.bucket and crop_share >= 0.0005:
        yield escape(f", {crop_share:.1%} cropped")
    sources = {crops.USER: "crop by hand", "saliency": "crop by saliency", "face": "crop by face"}
    sources[NO_FACE] = "no face found, crop by saliency"
    if record.bucket and record.crop_source in sources:
        yield escape(f", {sources[record.crop_source]}")
    if record.repeats > 1:
        yield escape(f", {record.repeats} times per epoch")


def _badges(flags: Sequence[Flag]) -> Iterator[Html]:
    for flag in flags:
        badge_class = {"error": "badge bad", "warning": "badge warn", "note": "badge"}[flag.level]
        yield tag("span", flag.code.replace("_", " "), class_=badge_class)
        yield Html(" ")


def _note_list(record: Record) -> Iterator[Html]:
    """Return the notes, folded; truncated words are marked in the caption instead."""
    notes = [(code, text) for code, text in split_notes(record) if code not in tokens.NOTES]
    if notes:
        rows = [tag("li", tag("b", code.replace("_", " ")), f" {text}") for code, text in notes]
        yield tag(
            "details", tag("summary", f"{len(notes)} notes" if len(notes) > 1 else "1 note"), tag("ul", *rows)
        )


def _caption(caption: Caption, data: ReportData) -> Html:
    """Return the text with the trigger marked and unread words struck through, and its source."""
    counts = data.token_counts.get(caption.text, ())
    truncated_lengths = [len(count.truncated_text) for count in counts]
    cut = len(caption.text) - min(truncated_lengths, default=0)  # the rest is read by no encoder
    parts = [_highlight_trigger(caption.text[:cut], data.trigger)]
    if cut < len(caption.text):
        parts.append(
            tag("s", _highlight_trigger(caption.text[cut:], data.trigger), title="no text encoder reads this")
        )
    source = caption.source if caption.model is None else f"{caption.source} {caption.model}"
    badges = [badge(source)]
    # Tokenizers with equal counts, such as the two of SDXL, share a badge.
    by_count = {(c.num_tokens, c.max_tokens, c.truncated_text): c for c in reversed(counts)}
    for count in reversed(by_count.values()):
        badge_class = "badge bad" if count.truncated_text else "badge"
        tooltip = "reads the whole caption"
        if count.truncated_text:
            tooltip = f"does not read: {count.truncated_text}"
        text = f"{count.num_tokens}/{count.max_tokens} tokens"
        badges.append(tag("span", text, class_=badge_class, title=f"{count.tokenizer} {tooltip}"))
    return tag("div", tag("q", *parts), tag("div", join(badges, " "), class_="origin"), class_="caption")


def _highlight_trigger(text: str, trigger: str | None) -> Html:
    if not trigger:
        return escape(text)
    words = re.split(rf"(?i)(?<!\w)({re.escape(trigger)})(?!\w)", text)
    return join(tag("mark", word) if index % 2 else escape(word) for index, word in enumerate(words))
