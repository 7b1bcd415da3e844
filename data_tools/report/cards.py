"""One card an image: what training sees of it, its caption, and what was found about it.

No script: the filter is a row of radio buttons and CSS.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from data_tools.captions import tokens
from data_tools.report.facts import ReportData, severity_key, split_notes
from data_tools.report.gallery import Thumbnails
from data_tools.scan import SCAN_REASONS
from lorakit.core.progress import track_progress
from lorakit.imaging import crops
from lorakit.manifest import Caption, Record
from lorakit.reports import Html, badge, escape, join, section, tag

MAX_IMAGES = 400  # images shown; the others are in the JSON twin
_FILTERS = (
    ("all", "all"),
    ("flagged", "with findings"),
    ("aside", "set aside"),
    ("masked", "masked"),
    ("hand", "cropped by hand"),
)
FindingFlags = Sequence[tuple[str, str]]


def image_cards(facts: ReportData, gallery: Thumbnails, json_name: str, *, quiet: bool) -> Html:
    """The section of all images, worst first."""
    flags = facts.flags()
    ordered = sorted(facts.records, key=lambda record: severity_key(record, flags))
    shown = ordered[:MAX_IMAGES]
    made, kinds = [], []
    for record in track_progress(shown, "report", len(shown), quiet=quiet):
        own = flags.get(record.file, [])
        kinds.append(_filter_classes(record, own))
        made.append(_card(record, own, facts, gallery, kinds[-1]))
    parts = [_filter(kinds), tag("div", *made, class_="pictures")]
    if len(ordered) > len(shown):
        text = f"The first {len(shown)} of {len(ordered)} images, worst first; all are in {json_name}."
        parts.insert(0, tag("p", text))
    return section("Images", *parts)


def _filter_classes(record: Record, flags: FindingFlags) -> list[str]:
    found = ["picture"]
    found += ["aside"] if not record.keep else []
    found += ["flagged"] if any(level != "note" for level, _ in flags) else []
    found += ["masked"] if record.mask else []
    found += ["hand"] if record.crop_by == crops.USER else []
    return found


def _filter(kinds: Sequence[Sequence[str]]) -> Html:
    """Radio buttons for the kinds that there are; the style hides the other cards."""
    numbers = {name: sum(name in kind for kind in kinds) for name, _ in _FILTERS} | {"all": len(kinds)}
    present = [(name, label) for name, label in _FILTERS if numbers[name]]
    if len(present) < 2:
        return Html("")
    buttons = []
    for name, label in present:
        checked = {"checked": "checked"} if name == "all" else {}
        radio = tag("input", type="radio", name="show", id=f"show-{name}", **checked)
        buttons.append(tag("label", radio, f"{label} ", tag("b", numbers[name])))
    return tag("div", *buttons, class_="filter", role="group", aria_label="which images to show")


def _card(
    record: Record, flags: FindingFlags, facts: ReportData, gallery: Thumbnails, kinds: Sequence[str]
) -> Html:
    path = PurePosixPath(record.file)
    folder = f"{path.parent}/" if str(path.parent) != "." else ""
    body = [
        tag("h3", tag("small", folder) if folder else Html(""), path.name),
        tag("p", *_size_line(record), class_="facts"),
        tag("p", *_badges(flags), class_="flags") if flags else Html(""),
        *([tag("p", _reason(record), class_="reason")] if not record.keep else []),
        *(_caption(caption, facts) for caption in record.captions if record.keep),
        *_note_list(record),
    ]
    picture = tag("div", gallery.shot(record.file), class_="frame")
    return tag(
        "article",
        picture,
        tag("div", *body, class_="body"),
        class_=" ".join(kinds),
        id=gallery.anchors[record.file],
    )


def _reason(record: Record) -> str:
    """Without the code, which a badge shows already; a person's own words whole."""
    code, _, text = (record.reason or "").partition(":")
    return text.strip() if code in SCAN_REASONS else record.reason or ""


def _size_line(record: Record) -> Iterator[Html]:
    if not record.width:
        return
    text = f"{record.width} × {record.height}"
    if record.bucket:
        text += f" → {record.bucket[0]} × {record.bucket[1]}"
    yield escape(text)
    lost = crops.cropped_fraction(record)
    if record.bucket and lost >= 0.0005:
        yield escape(f", {lost:.1%} cropped")
    by = {crops.USER: "by hand", "saliency": "by saliency", "face": "by face", "no_face": "no face"}
    if record.bucket and record.crop_by in by:
        yield escape(f", {by[record.crop_by]}")
    if record.repeats > 1:
        yield escape(f", {record.repeats} times an epoch")


def _badges(flags: FindingFlags) -> Iterator[Html]:
    for level, code in flags:
        kind = {"error": "badge bad", "warning": "badge warn", "note": "badge"}[level]
        yield tag("span", code.replace("_", " "), class_=kind)
        yield Html(" ")


def _note_list(record: Record) -> Iterator[Html]:
    """The notes' own words, behind a fold; what a caption loses is shown in the caption."""
    notes = [(code, text) for code, text in split_notes(record) if code not in tokens.NOTES]
    if notes:
        rows = [tag("li", tag("b", code.replace("_", " ")), f" {text}") for code, text in notes]
        yield tag(
            "details", tag("summary", f"{len(notes)} notes" if len(notes) > 1 else "1 note"), tag("ul", *rows)
        )


def _caption(caption: Caption, facts: ReportData) -> Html:
    """The text with the trigger marked and what no encoder reads struck, and where it is from."""
    counts = facts.counted.get(caption.text, ())
    rests = [len(count.lost) for count in counts]
    cut = len(caption.text) - (min(rests) if rests else 0)  # the words that no encoder reads
    parts = [_highlight_trigger(caption.text[:cut], facts.trigger)]
    if cut < len(caption.text):
        parts.append(
            tag(
                "s", _highlight_trigger(caption.text[cut:], facts.trigger), title="no text encoder reads this"
            )
        )
    source = caption.source if caption.model is None else f"{caption.source} {caption.model}"
    small = [badge(source)]
    alike = {(count.tokens, count.limit, count.lost): count for count in reversed(counts)}
    for count in reversed(alike.values()):  # the two CLIPs of a base count alike: said once
        kind = "badge bad" if count.lost else "badge"
        said = f"{count.tokenizer} loses: {count.lost}" if count.lost else f"{count.tokenizer} reads it all"
        small.append(tag("span", f"{count.tokens}/{count.limit} tokens", class_=kind, title=said))
    return tag("div", tag("q", *parts), tag("div", join(small, " "), class_="origin"), class_="caption")


def _highlight_trigger(text: str, trigger: str | None) -> Html:
    if not trigger:
        return escape(text)
    words = re.split(rf"(?i)(?<!\w)({re.escape(trigger)})(?!\w)", text)
    return join(tag("mark", word) if index % 2 else escape(word) for index, word in enumerate(words))
