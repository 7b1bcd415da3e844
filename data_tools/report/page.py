"""The page and its JSON twin, put together and written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from data_tools.findings import Finding
from data_tools.report import cards, facts, problems, shapes
from data_tools.report.gallery import Thumbnails
from lorakit.core import storage
from lorakit.imaging import crops
from lorakit.manifest import Record
from lorakit.reports import Html, html_page, tag

HTML_FILE, JSON_FILE = "report.html", "report.json"


def write_report(
    root: Path,
    records: Sequence[Record],
    findings: Sequence[Finding],
    *,
    counts: Mapping[str, Any],
    trigger: str | None = None,
    base: str | None = None,
    quiet: bool = True,
) -> bool:
    """Write report.json and report.html; False when both already say exactly this."""
    gathered = facts.collect_report_data(records, findings, counts, trigger=trigger, base=base)
    value = facts.to_json(gathered)
    twin, html = root / JSON_FILE, root / HTML_FILE
    if html.is_file() and twin.is_file() and _file_equals(twin, value):
        return False
    storage.write_text(html, render_report(root, gathered, quiet=quiet))
    with storage.open_atomic(twin) as file:
        file.writelines(_json_chunks(value))
    return True


def _json_chunks(value: Any) -> Iterator[bytes]:
    """`storage.dump_json` piece by piece: whole, it takes half a gigabyte for 100,000 images."""
    chunks = json.JSONEncoder(ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False).iterencode(value)
    while piece := "".join(islice(chunks, 10_000)):
        yield piece.encode("utf-8")
    yield b"\n"


def _file_equals(path: Path, value: Any) -> bool:
    """Whether a file holds exactly this value."""
    with open(path, "rb") as file:
        return all(file.read(len(piece)) == piece for piece in _json_chunks(value)) and not file.read(1)


def render_report(root: Path, data: facts.ReportData, *, quiet: bool = True) -> str:
    """The whole page: problems first."""
    gallery = Thumbnails(root, data.records)
    body = [
        problems.summary_line(data),
        _key_figures(data),
        problems.findings_section(data, gallery),
        problems.duplicates_section(data, gallery),
        shapes.buckets_section(data),
        shapes.captions_section(data),
        cards.image_cards(data, gallery, JSON_FILE, quiet=quiet),
    ]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    title = f"Dataset {root.resolve().name}"
    return html_page(title, [part for part in body if part], subtitle=_subtitle(data), style=style)


def _subtitle(data: facts.ReportData) -> str:
    aside = len(data.records) - len(data.kept)
    about = f", trigger {data.trigger}" if data.trigger else ""
    return f"{len(data.records)} images, {len(data.kept)} for training, {aside} set aside{about}"


def _key_figures(data: facts.ReportData) -> Html:
    """The figures that one wants to know first."""
    kept, aside = data.kept, len(data.records) - len(data.kept)
    placed = [record for record in kept if record.bucket]
    tiles = [(str(len(kept)), "images to train on")]
    tiles += [(str(aside), "set aside")] if aside else []
    if data.epoch != len(kept):
        tiles.append((str(data.epoch), "shown in an epoch, repeats counted"))
    if placed:
        lost = sum(crops.cropped_fraction(record) for record in placed) / len(placed)
        tiles.append((str(len({record.bucket for record in placed})), "shapes"))
        tiles.append((f"{lost:.1%}", "cropped off, on average"))
    captions = sum(len(record.captions) for record in kept)
    tiles.append((str(captions), "captions" if captions != 1 else "caption"))
    masked = sum(record.mask is not None for record in kept)
    tiles += [(str(masked), "with a mask")] if masked else []
    return tag(
        "div", *(tag("div", tag("b", value), tag("span", label)) for value, label in tiles), class_="tiles"
    )
