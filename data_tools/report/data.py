"""The contents of the dataset report as plain values, for report.html and report.json."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data_tools import bucket_costs as costs
from data_tools.assign_buckets import BucketOptions
from data_tools.captions import lint, tokens
from data_tools.finding_text import describe
from data_tools.findings import LEVELS, Finding, Level
from data_tools.scan import note_code
from lorakit.core.version import __version__
from lorakit.imaging import crops
from lorakit.manifest import Record

REPORT_BATCH_SIZE = 4  # batch size for which incomplete batches are counted
CURRENT_BUCKETS = "current"


@dataclass(frozen=True)
class Flag:
    """A finding about a file, without its message."""

    level: Level
    code: str


@dataclass(frozen=True)
class ReportData:
    """The data of one report on the dataset in `folder`, its name for commands.

    `token_counts` has one count for each tokenizer, by caption text.
    """

    records: Sequence[Record]
    findings: Sequence[Finding]
    counts: Mapping[str, Any]
    folder: str = "DIR"
    trigger: str | None = None
    base: str | None = None
    bucket_costs: Sequence[costs.BucketCost] = ()
    token_counts: Mapping[str, Sequence[tokens.TokenCount]] = field(default_factory=dict)

    @property
    def kept(self) -> list[Record]:
        """The records to train on."""
        return [record for record in self.records if record.keep]

    @property
    def images_per_epoch(self) -> int:
        """The number of images in an epoch, repeats counted."""
        return sum(record.repeats for record in self.kept)

    def flags_by_file(self) -> dict[str, list[Flag]]:
        """Return the level and code of all findings by file, worst first."""
        flags: dict[str, list[Flag]] = defaultdict(list)
        for finding in sorted(self.findings, key=lambda finding: LEVELS.index(finding.level)):
            for file in finding.files:
                flag = Flag(finding.level, finding.code)
                if flag not in flags[file]:
                    flags[file].append(flag)
        return flags

    def frequent_phrases(self) -> list[tuple[str, int]]:
        """Return the most frequent phrases of captions that are not a template, and their counts."""
        return lint.frequent_phrases(
            [r for r in self.kept if r.captions and r.captions[0].source != "template"]
        )


def collect_report_data(
    records: Sequence[Record],
    findings: Sequence[Finding],
    counts: Mapping[str, Any],
    *,
    folder: str,
    trigger: str | None = None,
    base: str | None = None,
) -> ReportData:
    """Compute everything that the report shows."""
    texts = {caption.text for record in records if record.keep for caption in record.captions}
    tokenizers = tokens.load_tokenizers(base) if base else ()
    token_counts = {
        text: [tokenizer.count(text) for tokenizer in tokenizers] for text in sorted(texts) if tokenizers
    }
    costs_of_modes = _bucket_costs(records)
    return ReportData(records, findings, counts, folder, trigger, base, costs_of_modes, token_counts)


def to_json(data: ReportData) -> dict[str, Any]:
    """Return the content of report.json."""
    flags = data.flags_by_file()
    return {
        "lorakit_version": __version__,
        "counts": dict(data.counts),
        "trigger": data.trigger,
        "base": data.base,
        "images_per_epoch": data.images_per_epoch,
        "bucket_costs": [asdict(cost) for cost in data.bucket_costs],
        "phrases": [{"phrase": phrase, "num_captions": number} for phrase, number in data.frequent_phrases()],
        "findings": [_finding(finding, data.folder) for finding in data.findings],
        "images": [_image(record, data, flags.get(record.file, [])) for record in data.records],
    }


def _finding(finding: Finding, folder: str) -> dict[str, Any]:
    """Return a finding with the part of the dataset that it concerns and what to do."""
    text = describe(finding, folder)
    return {**finding.to_json(), "area": text.area, "action": text.action.replace("`", "")}


def _image(record: Record, data: ReportData, flags: Sequence[Flag]) -> dict[str, Any]:
    captions = []
    for caption in record.captions:
        row: dict[str, Any] = {"text": caption.text, "source": caption.source, "model": caption.model}
        if caption.text in data.token_counts:
            row["tokens"] = [asdict(count) for count in data.token_counts[caption.text]]
        captions.append({key: value for key, value in row.items() if value is not None})
    return {
        "file": record.file,
        "keep": record.keep,
        "reason": record.reason,
        "width": record.width,
        "height": record.height,
        "bucket": record.bucket,
        "crop": record.crop,
        "crop_source": record.crop_source,
        "crop_fraction": round(crops.cropped_fraction(record), 4),
        "captions": captions,
        "repeats": record.repeats,
        "mask": record.mask,
        "mask_content_hash": record.mask_content_hash,
        **(
            {"conditioning_images": [one.file for one in record.conditioning_images]}
            if record.conditioning_images
            else {}
        ),
        "finding_codes": [flag.code for flag in flags],
        "notes": list(record.notes),
        "content_hash": record.content_hash,
    }


def severity_key(record: Record, flags: Mapping[str, Sequence[Flag]]) -> tuple[Any, ...]:
    """Return a sorting key: excluded images first, then by the worst finding, then by name."""
    levels = [LEVELS.index(flag.level) for flag in flags.get(record.file, [])]
    return record.keep, min(levels, default=len(LEVELS)), record.file


def split_notes(record: Record) -> list[tuple[str, str]]:
    """Return (code, text) for each of the record's notes."""
    return [(note_code(note), note.partition(":")[2].strip()) for note in record.notes]


def _bucket_costs(records: Sequence[Record]) -> list[costs.BucketCost]:
    """Return the costs of the current buckets, then of every mode at the same resolution and size_multiple.

    Both are derived from the current buckets.
    """
    kept = [record for record in records if record.keep]
    sizes = [record.bucket for record in kept if record.bucket]
    if not sizes:
        return []
    size_multiple = next(
        divisor for divisor in (16, 8, 4, 2, 1) if not any(side % divisor for size in sizes for side in size)
    )
    side = max(width * height for width, height in sizes) ** 0.5
    options = BucketOptions(
        resolution=max(size_multiple, round(side / size_multiple) * size_multiple),
        size_multiple=size_multiple,
        batch_size=REPORT_BATCH_SIZE,
    )
    return [
        costs.bucket_cost(kept, CURRENT_BUCKETS, options.resolution, REPORT_BATCH_SIZE),
        *costs.compare_bucket_modes(kept, options),
    ]
