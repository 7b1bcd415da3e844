"""What the report says, as plain values: the same for the page and for its JSON twin."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data_tools import bucket_costs
from data_tools.assign_buckets import BucketOptions
from data_tools.captions import lint, tokens
from data_tools.findings import LEVELS, Finding
from data_tools.scan import note_code
from lorakit import __version__
from lorakit.imaging import crops
from lorakit.manifest import Record

REPORT_BATCH_SIZE = 4  # whose incomplete batches are counted
CURRENT_BUCKETS = "in use"


@dataclass(frozen=True)
class ReportData:
    """The data of one report. `counted` are token counts by caption text, one for each tokenizer."""

    records: Sequence[Record]
    findings: Sequence[Finding]
    counts: Mapping[str, Any]
    trigger: str | None = None
    base: str | None = None
    prices: Sequence[bucket_costs.BucketCost] = ()
    counted: Mapping[str, Sequence[tokens.TokenCount]] = field(default_factory=dict)

    @property
    def kept(self) -> list[Record]:
        """The records that are trained on."""
        return [record for record in self.records if record.keep]

    @property
    def epoch(self) -> int:
        """Images that an epoch shows, repeats counted."""
        return sum(record.repeats for record in self.kept)

    def flags(self) -> dict[str, list[tuple[str, str]]]:
        """(level, code) of everything found about a file, worst first, by file."""
        found: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for finding in sorted(self.findings, key=lambda finding: LEVELS.index(finding.level)):
            for file in finding.files:
                if (finding.level, finding.code) not in found[file]:
                    found[file].append((finding.level, finding.code))
        return found

    def phrases(self) -> list[tuple[str, int]]:
        """The most frequent phrases of the captions that were written for their image."""
        return lint.frequent_phrases(
            [r for r in self.kept if r.captions and r.captions[0].source != "template"]
        )


def collect_report_data(
    records: Sequence[Record],
    findings: Sequence[Finding],
    counts: Mapping[str, Any],
    *,
    trigger: str | None = None,
    base: str | None = None,
) -> ReportData:
    """Everything that the report shows, computed once."""
    texts = {caption.text for record in records if record.keep for caption in record.captions}
    readers = tokens.load_tokenizers(base) if base else ()
    counted = {text: [reader.count(text) for reader in readers] for text in sorted(texts)} if readers else {}
    return ReportData(records, findings, counts, trigger, base, _bucket_costs(records), counted)


def to_json(facts: ReportData) -> dict[str, Any]:
    """The report as JSON; equal data give equal bytes."""
    flags = facts.flags()
    return {
        "lorakit": __version__,
        "counts": dict(facts.counts),
        "trigger": facts.trigger,
        "base": facts.base,
        "epoch": facts.epoch,
        "prices": [asdict(price) for price in facts.prices],
        "phrases": [{"phrase": phrase, "captions": number} for phrase, number in facts.phrases()],
        "findings": [finding.to_json() for finding in facts.findings],
        "images": [_image(record, facts, flags.get(record.file, [])) for record in facts.records],
    }


def _image(record: Record, facts: ReportData, flags: Sequence[tuple[str, str]]) -> dict[str, Any]:
    captions = []
    for caption in record.captions:
        row: dict[str, Any] = {"text": caption.text, "source": caption.source, "model": caption.model}
        if caption.text in facts.counted:
            row["tokens"] = [asdict(count) for count in facts.counted[caption.text]]
        captions.append({key: value for key, value in row.items() if value is not None})
    return {
        "file": record.file,
        "keep": record.keep,
        "reason": record.reason,
        "size": list(record.size),
        "bucket": record.bucket,
        "crop": record.crop,
        "crop_by": record.crop_by,
        "cropped": round(crops.cropped_fraction(record), 4),
        "captions": captions,
        "repeats": record.repeats,
        "mask": record.mask,
        "mask_pixels": record.mask_pixels,
        **({"given": [one.file for one in record.given]} if record.given else {}),
        "flags": [code for _, code in flags],
        "notes": list(record.notes),
        "pixels": record.pixels,
    }


def severity_key(record: Record, flags: Mapping[str, Sequence[tuple[str, str]]]) -> tuple[Any, ...]:
    """Sorting key: what is set aside, then what has the gravest flags, then by name."""
    levels = [LEVELS.index(level) for level, _ in flags.get(record.file, []) if level in LEVELS]
    return record.keep, min(levels, default=len(LEVELS)), record.file


def split_notes(record: Record) -> list[tuple[str, str]]:
    """(code, text) of the record's notes."""
    return [(note_code(note), note.partition(":")[2].strip()) for note in record.notes]


def _bucket_costs(records: Sequence[Record]) -> list[bucket_costs.BucketCost]:
    """What the buckets at hand cost, then what every mode would: at the same resolution and step, which are
    read off the buckets."""
    kept = [record for record in records if record.keep]
    sizes = [record.bucket for record in kept if record.bucket]
    if not sizes:
        return []
    step = next(step for step in (16, 8, 4, 2, 1) if not any(side % step for size in sizes for side in size))
    side = max(width * height for width, height in sizes) ** 0.5
    options = BucketOptions(
        resolution=max(step, round(side / step) * step), step=step, batch=REPORT_BATCH_SIZE
    )
    return [
        bucket_costs.bucket_cost(kept, CURRENT_BUCKETS, options.resolution, REPORT_BATCH_SIZE),
        *bucket_costs.compare_bucket_modes(kept, options),
    ]
