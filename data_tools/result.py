"""What a preparation found: for scripts as numbers, for people as a few lines."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools import assign_buckets, findings, scan
from data_tools.findings import Finding, escape_for_terminal
from lorakit.manifest import Record


@dataclass(frozen=True)
class PrepareResult:
    """What a preparation found. `records` are as in the manifest, refused images included."""

    folder: Path
    records: tuple[Record, ...]
    findings: tuple[Finding, ...]
    gone: tuple[str, ...] = ()

    @property
    def kept(self) -> list[Record]:
        """The records that training uses."""
        return [record for record in self.records if record.keep]

    def counts(self) -> dict[str, Any]:
        """Numbers for scripts: images, kept, quarantined by reason, captions by source, buckets, findings."""
        refused = Counter(scan.note_code(r.reason) for r in self.records if not r.keep)
        sources = Counter(caption.source for r in self.kept for caption in r.captions)
        shapes = {f"{w}x{h}": n for (w, h), n in assign_buckets.count_per_bucket(self.records).items()}
        given = Counter(one.kind for r in self.kept for one in r.given)
        return {
            "images": len(self.records),
            "kept": len(self.kept),
            "quarantined": dict(sorted(refused.items())),
            "captions": dict(sorted(sources.items())),
            "buckets": shapes,
            "masks": sum(record.mask is not None for record in self.kept),
            **({"given": dict(sorted(given.items()))} if given else {}),
            "findings": findings.count_by_level(self.findings),
        }

    def summary(self) -> str:
        """What a person wants to read after the command."""
        counts = self.counts()
        refused = [record for record in self.records if not record.keep]
        images = findings.pluralize(counts["images"], "image")
        lines = [f"{self.folder}: {images}, {counts['kept']} kept, {len(refused)} set aside"]
        lines += [
            f"  set aside  {escape_for_terminal(record.file)}: {record.reason}" for record in refused[:10]
        ]
        lines += [f"  ... and {len(refused) - 10} more, see report.html"] if len(refused) > 10 else []
        lines += [
            f"  gone       {escape_for_terminal(file)}: was in the earlier manifest"
            for file in self.gone[:10]
        ]
        lines.append(f"  captions   {_listed(counts['captions'])}")
        lines.append(f"  buckets    {_listed(counts['buckets'])}")
        lines += [f"  given      {_listed(counts['given'])}"] if "given" in counts else []
        levels = [findings.pluralize(number, level) for level, number in counts["findings"].items() if number]
        lines.append(f"  findings   {', '.join(levels) or 'none'}")
        unseen = ("bad_name", "unreadable_folder")  # files that no record stands for
        told = [f for f in self.findings if f.level == "warning" or f.code in unseen]
        lines += [f"  {finding}" for finding in told[:10]]
        return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} x {number}" for name, number in counts.items() if number) or "none"
