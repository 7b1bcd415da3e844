"""Build and write report.html and report.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from data_tools.findings import Finding
from data_tools.report import data as report_data
from data_tools.report import findings as findings_sections
from data_tools.report import image_cards, statistics
from data_tools.report.data import ReportData
from data_tools.report.thumbnails import Thumbnails
from lorakit.core import storage
from lorakit.core.checksums import sha256_bytes, sha256_file
from lorakit.core.version import __version__
from lorakit.imaging import crops
from lorakit.manifest import Record
from lorakit.reports import render_page

TEMPLATE = Path(__file__).with_name("templates") / "dataset.html"
HTML_FILE, JSON_FILE = "report.html", "report.json"


def write_report(
    root: Path,
    records: Sequence[Record],
    findings: Sequence[Finding],
    *,
    counts: Mapping[str, Any],
    trigger: str | None = None,
    base: str | None = None,
    records_hash: str | None = None,
    quiet: bool = True,
) -> bool:
    """Write report.json and report.html; return False if both exist with exactly this content.

    With `records_hash`, of the manifest with these records, the page ends with a mark of what it was made
    from, so that an equal report is recognized without its content being computed.
    """
    html_path, json_path = root / HTML_FILE, root / JSON_FILE
    source = None
    if records_hash is not None and base is None:  # the tokenizers of a base model may change
        source = _source_hash(root, records_hash, findings, counts, trigger)
        if _has_mark(html_path, json_path, source):
            return False
    data = report_data.collect_report_data(
        records, findings, counts, folder=root.resolve().name, trigger=trigger, base=base
    )
    value = report_data.to_json(data)
    if source is None and html_path.is_file() and json_path.is_file() and _file_equals(json_path, value):
        return False
    html = render_report(root, data, quiet=quiet)
    with storage.open_atomic(json_path) as file:
        file.writelines(_json_chunks(value))
    storage.write_text(html_path, html + ("" if source is None else _mark(source, json_path)))
    return True


def _source_hash(
    root: Path,
    records_hash: str,
    findings: Sequence[Finding],
    counts: Mapping[str, Any],
    trigger: str | None,
) -> str:
    """Return a hash of everything that a report without a base model is made from."""
    inputs = [__version__, root.resolve().name, records_hash, sorted(counts.items()), trigger]
    template = sha256_bytes(TEMPLATE.read_bytes())
    return sha256_bytes("\n".join(map(repr, [*inputs, template, *findings])).encode("utf-8", "replace"))


def _mark(source: str, json_path: Path) -> str:
    """Return the end of a page that was made from `source` beside this report.json."""
    return f"<!-- made from {source}, with report.json {sha256_file(json_path)} -->\n"


def _has_mark(html_path: Path, json_path: Path, source: str) -> bool:
    if not (html_path.is_file() and json_path.is_file()):
        return False
    mark = _mark(source, json_path).encode()
    with open(html_path, "rb") as file:
        file.seek(max(0, html_path.stat().st_size - len(mark)))
        return file.read() == mark


def _json_chunks(value: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield JSON in pieces, each image and each finding on its own line.

    For 100,000 images the whole text would take half a gigabyte, and spaces for each level ten times as long.
    """
    encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, allow_nan=False).encode
    opening = "{"
    for key, part in sorted(value.items()):
        yield f"{opening}\n{encode(key)}: ".encode()
        opening = ","
        if not isinstance(part, list) or not part:
            yield encode(part).encode("utf-8")
            continue
        lines, end = map(encode, part), "["
        while batch := list(islice(lines, 1000)):
            yield (f"{end}\n" + ",\n".join(batch)).encode("utf-8")
            end = ","
        yield b"\n]"
    yield b"\n}\n"


def _file_equals(path: Path, value: Any) -> bool:
    """Return True if a file contains exactly this value."""
    with open(path, "rb") as file:
        return all(file.read(len(piece)) == piece for piece in _json_chunks(value)) and not file.read(1)


def render_report(root: Path, data: ReportData, *, quiet: bool = True) -> str:
    """Return the whole page, findings first."""
    thumbnails = Thumbnails(root, data.records)
    return render_page(
        TEMPLATE,
        title=f"Dataset {data.folder}",
        subtitle=_subtitle(data),
        summary=findings_sections.summarize(data),
        figures=_key_figures(data),
        findings=findings_sections.finding_groups(data, thumbnails),
        clusters=findings_sections.duplicate_clusters(data, thumbnails),
        num_hidden_clusters=findings_sections.num_hidden_clusters(data),
        buckets=statistics.bucket_statistics(data),
        captions=statistics.caption_statistics(data),
        base=data.base,
        images=image_cards.image_cards(data, thumbnails, quiet=quiet),
        json_name=JSON_FILE,
    )


def _subtitle(data: ReportData) -> str:
    excluded = len(data.records) - len(data.kept)
    about = f", trigger {data.trigger}" if data.trigger else ""
    return f"{len(data.records)} images, {len(data.kept)} for training, {excluded} excluded{about}"


def _key_figures(data: ReportData) -> list[tuple[str, str]]:
    """Return the most important numbers and their names."""
    kept, excluded = data.kept, len(data.records) - len(data.kept)
    bucketed = [record for record in kept if record.bucket]
    tiles = [(str(len(kept)), "images to train on")]
    tiles += [(str(excluded), "excluded")] if excluded else []
    if data.images_per_epoch != len(kept):
        tiles.append((str(data.images_per_epoch), "images in an epoch, with repeats"))
    if bucketed:
        mean_crop = sum(crops.cropped_fraction(record) for record in bucketed) / len(bucketed)
        tiles.append((str(len({record.bucket for record in bucketed})), "buckets"))
        tiles.append((f"{mean_crop:.1%}", "cropped off, on average"))
    captions = sum(len(record.captions) for record in kept)
    tiles.append((str(captions), "captions" if captions != 1 else "caption"))
    masked = sum(record.mask is not None for record in kept)
    tiles += [(str(masked), "with a mask")] if masked else []
    return tiles
