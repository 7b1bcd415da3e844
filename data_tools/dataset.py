"""The result of a preparation: numbers for scripts, a few lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools import assign_buckets, findings, scan
from data_tools.captions.caption_counts import CaptioningCounts
from data_tools.findings import Finding
from lorakit.core.visible_text import escape_name
from lorakit.manifest import Record


@dataclass(frozen=True)
class Dataset:
    """Records as in the manifest (excluded images included), findings, and files that are no longer there."""

    folder: Path
    records: tuple[Record, ...]
    findings: tuple[Finding, ...]
    removed_files: tuple[str, ...] = ()
    captioning: CaptioningCounts | None = None
    """Requests, answers and tokens of the captioner, if there was one."""

    @property
    def kept(self) -> list[Record]:
        """The records that training uses."""
        return [record for record in self.records if record.keep]

    def counts(self) -> dict[str, Any]:
        """Return numbers for scripts: images, kept, excluded by code, captions by source, buckets, ..."""
        excluded = Counter(scan.note_code(r.reason) for r in self.records if not r.keep)
        sources = Counter(caption.source for r in self.kept for caption in r.captions)
        buckets = {f"{w}x{h}": n for (w, h), n in assign_buckets.count_per_bucket(self.records).items()}
        conditioning = Counter(image.type for r in self.kept for image in r.conditioning_images)
        return {
            "images": len(self.records),
            "kept": len(self.kept),
            "excluded": dict(sorted(excluded.items())),
            "captions": dict(sorted(sources.items())),
            "buckets": buckets,
            "masks": sum(record.mask is not None for record in self.kept),
            **({"conditioning_images": dict(sorted(conditioning.items()))} if conditioning else {}),
            **({"captioner": self.captioning.to_json()} if self.captioning else {}),
            "findings": findings.count_by_level(self.findings),
        }

    def summary(self) -> str:
        """Return a summary for people: counts, excluded files, and the findings that need attention."""
        counts = self.counts()
        excluded = [record for record in self.records if not record.keep]
        images = findings.pluralize(counts["images"], "image")
        lines = [f"{self.folder}: {images}, {counts['kept']} kept, {len(excluded)} excluded"]
        lines += [f"  excluded   {escape_name(record.file)}: {record.reason}" for record in excluded[:10]]
        lines += [f"  ... and {len(excluded) - 10} more, see report.html"] if len(excluded) > 10 else []
        lines += [
            f"  removed    {escape_name(file)}: was in the earlier manifest"
            for file in self.removed_files[:10]
        ]
        lines.append(f"  captions   {_listed(counts['captions'])}")
        if self.captioning:
            lines.append(f"  captioner  {self.captioning.summary()}")
        lines.append(f"  buckets    {_listed(counts['buckets'])}")
        if "conditioning_images" in counts:
            lines.append(f"  conditioning images {_listed(counts['conditioning_images'])}")
        levels = [findings.pluralize(number, level) for level, number in counts["findings"].items() if number]
        lines.append(f"  findings   {', '.join(levels) or 'none'}")
        named = {record.file for record in excluded}
        printed = [f for f in self.findings if f.level == "warning" or _is_about_others(f, named)]
        lines += [f"  {finding}" for finding in printed[:10]]
        lines += [f"  ... and {len(printed) - 10} more, see report.html"] if len(printed) > 10 else []
        return "\n".join(lines)


def _is_about_others(finding: Finding, named: Collection[str]) -> bool:
    """Return True for an error that concerns more than the files that are named already."""
    return finding.level == "error" and not (finding.files and set(finding.files) <= set(named))


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} x {number}" for name, number in counts.items() if number) or "none"
