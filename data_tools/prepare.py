"""From a folder of images to a manifest that training can trust: scan, caption, bucket, check, report.

The same command again does only what is new, and without changes writes the same bytes. The user's files are
read, never written.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools import bucket, captions, check, findings, report, scan
from data_tools.bucket import BucketOptions
from data_tools.captions import CaptionOptions
from data_tools.findings import Finding
from data_tools.listing import Listing, find
from data_tools.scan import ScanOptions
from lorakit import images, manifest, storage
from lorakit.color import Color
from lorakit.errors import DataError, DiskError
from lorakit.manifest import Record


@dataclass(frozen=True)
class PrepareOptions:
    """All options of `lorakit data prepare`; see `ScanOptions`, `CaptionOptions` and `BucketOptions`."""

    resolution: int = 1024
    step: int = 16
    batch: int = 1
    mode: str = "auto"
    class_noun: str | None = None
    trigger: str | None = None
    folder_names: bool = False
    overwrite_captions: bool = False
    allow_missing_captions: bool = False
    caption_encoding: str = "utf-8"
    background: Color = images.WHITE
    first_frame: bool = False
    max_pixels: int = images.MAX_PIXELS
    min_side: int = 16
    max_aspect: float = 8.0
    workers: int | None = None
    fresh: bool = False
    report: bool = True
    quiet: bool = False  # no progress; prepare itself prints nothing else

    def scan(self) -> ScanOptions:
        """The part that concerns decoding."""
        return ScanOptions(
            background=self.background,
            max_pixels=self.max_pixels,
            first_frame=self.first_frame,
            min_side=self.min_side,
            max_aspect=self.max_aspect,
            workers=self.workers,
            fresh=self.fresh,
            quiet=self.quiet,
        )

    def captions(self) -> CaptionOptions:
        """The part that concerns captions."""
        return CaptionOptions(
            class_noun=self.class_noun,
            trigger=self.trigger,
            folder_names=self.folder_names,
            overwrite=self.overwrite_captions,
            allow_missing=self.allow_missing_captions,
            encoding=self.caption_encoding,
        )

    def bucket(self) -> BucketOptions:
        """The part that concerns shapes."""
        return BucketOptions(self.resolution, self.step, self.batch, self.mode)


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
        refused = Counter(scan.code_of(r.reason) for r in self.records if not r.keep)
        sources = Counter(caption.source for r in self.kept for caption in r.captions)
        shapes = {f"{w}x{h}": n for (w, h), n in bucket.count(self.records).items()}
        return {
            "images": len(self.records),
            "kept": len(self.kept),
            "quarantined": dict(sorted(refused.items())),
            "captions": dict(sorted(sources.items())),
            "buckets": shapes,
            "findings": findings.count(self.findings),
        }

    def summary(self) -> str:
        """What a person wants to read after the command."""
        counts = self.counts()
        refused = [record for record in self.records if not record.keep]
        lines = [f"{self.folder}: {counts['images']} images, {counts['kept']} kept, {len(refused)} set aside"]
        lines += [f"  set aside  {record.file}: {record.reason}" for record in refused[:10]]
        lines += [f"  ... and {len(refused) - 10} more, see report.html"] if len(refused) > 10 else []
        lines += [f"  gone       {file}: was in the earlier manifest" for file in self.gone[:10]]
        lines.append(f"  captions   {_listed(counts['captions'])}")
        lines.append(f"  buckets    {_listed(counts['buckets'])}")
        lines.append(f"  findings   {_listed(counts['findings'])}")
        lines += [f"  {finding}" for finding in self.findings if finding.level == "warning"][:10]
        return "\n".join(lines)


def prepare(folder: str | os.PathLike[str], options: PrepareOptions | None = None) -> PrepareResult:
    """Prepare a dataset folder: manifest.jsonl, metadata.jsonl, report.html and report.json appear in it.

    Raises `ConfigError` for options that cannot work, `DataError` for a folder without usable images, missing
    captions or unreadable text, `DiskError` where nothing can be written.
    """
    chosen = options or PrepareOptions()
    chosen.bucket().check()
    listing = _writable(find(folder))
    records = _captioned(listing, chosen, journal=True)
    records = bucket.assign(records, chosen.bucket())
    return _save(listing, records, trigger=chosen.trigger, with_report=chosen.report, quiet=chosen.quiet)


def scan_only(folder: str | os.PathLike[str], options: PrepareOptions) -> PrepareResult:
    """Measure the images and write the manifest; captions and buckets stay as they were."""
    listing = _writable(find(folder))
    return _save(listing, scan.scan(listing, options.scan(), journal=True))


def caption_only(folder: str | os.PathLike[str], options: PrepareOptions) -> PrepareResult:
    """Measure what is new, caption, and write the manifest."""
    listing = _writable(find(folder))
    return _save(listing, _captioned(listing, options, journal=True), trigger=options.trigger)


def check_only(folder: str | os.PathLike[str], options: PrepareOptions) -> PrepareResult:
    """Find what is wrong without writing anything; missing captions are a finding, not an exception."""
    listing = find(folder)
    records = captions.collect(listing, scan.scan(listing, options.scan()), options.captions())
    return _result(listing, records, options.trigger)


def bucket_only(folder: str | os.PathLike[str], options: BucketOptions) -> PrepareResult:
    """Choose shapes again for the images of the manifest."""
    options.check()
    records = manifest.load(folder)
    return _save(_writable(find(folder)), bucket.assign(records, options))


def report_only(folder: str | os.PathLike[str], *, trigger: str | None, quiet: bool) -> PrepareResult:
    """Write the report again from the manifest."""
    records = manifest.load(folder)
    listing = _writable(find(folder))
    result = _result(listing, records, trigger)
    report.write(listing.root, records, result.findings, counts=result.counts(), trigger=trigger, quiet=quiet)
    return result


def _captioned(listing: Listing, options: PrepareOptions, *, journal: bool) -> list[Record]:
    """Measured and captioned records; none usable or none captioned is an error."""
    measured = scan.scan(listing, options.scan(), journal=journal)
    records = captions.collect(listing, measured, options.captions())
    _require_images(listing.root, records)
    if not options.allow_missing_captions:
        captions.require(records, listing.root)
    return records


def _writable(listing: Listing) -> Listing:
    if not os.access(listing.root, os.W_OK):
        remedy = "make the folder writable; the manifest belongs beside the images"
        raise DiskError("the dataset folder is read-only", where=str(listing.root), remedy=remedy)
    return listing


def _result(listing: Listing, records: Sequence[Record], trigger: str | None) -> PrepareResult:
    found = check.check(listing, records, trigger=trigger)
    gone = tuple(sorted(_earlier(listing.root) - listing.image_set))
    return PrepareResult(listing.root, tuple(records), tuple(found), gone)


def _save(
    listing: Listing,
    records: Sequence[Record],
    *,
    trigger: str | None = None,
    with_report: bool = False,
    quiet: bool = True,
) -> PrepareResult:
    """Write the manifest, and the report unless it would say the same again."""
    result, root = _result(listing, records, trigger), listing.root
    manifest.save(root, records)
    storage.remove_file(root / scan.JOURNAL)
    if with_report:
        report.write(root, records, result.findings, counts=result.counts(), trigger=trigger, quiet=quiet)
    return result


def _earlier(root: Path) -> set[str]:
    """The files that an earlier manifest lists."""
    if not (root / manifest.MANIFEST).is_file():
        return set()
    return {record.file for record in manifest.load(root)}


def _require_images(root: Path, records: Sequence[Record]) -> None:
    if any(record.keep for record in records):
        return
    shown = "; ".join(f"{record.file}: {record.reason}" for record in records[:3])
    message = f"none of the {len(records)} images can be used: {shown}"
    raise DataError(
        message, where=str(root), remedy="repair or replace the files, then give the command again"
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} x {number}" for name, number in counts.items() if number) or "none"
