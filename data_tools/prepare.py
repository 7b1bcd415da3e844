"""From a folder of images to a manifest that training can trust: scan, caption, bucket, check, report.

The same command again does only what is new, and without changes writes the same bytes. The user's files are
read, never written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from data_tools import assign_buckets, captioners, check, report, scan, shards
from data_tools.assign_buckets import BucketOptions
from data_tools.captioners import Captioner
from data_tools.captions import collect, generate, tokens
from data_tools.conditioning import attach, controls, masks, segment
from data_tools.conditioning.controls import ControlOptions
from data_tools.conditioning.segment import SegmentOptions
from data_tools.listing import Listing, find
from data_tools.options import PrepareOptions
from data_tools.result import PrepareResult
from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import DataError, DiskError
from lorakit.manifest import Record

__all__ = [
    "PrepareOptions",
    "PrepareResult",
    "bucket_only",
    "caption_only",
    "check_only",
    "control_only",
    "mask_only",
    "merge_shards",
    "prepare",
    "report_only",
    "scan_only",
    "scan_shard",
]


def prepare(folder: str | os.PathLike[str], options: PrepareOptions | None = None) -> PrepareResult:
    """Prepare a dataset folder: manifest.jsonl, metadata.jsonl, report.html and report.json appear in it.

    Raises `ConfigError` for options that cannot work, `DataError` for a folder without usable images, missing
    captions or unreadable text, `DiskError` where nothing can be written.
    """
    chosen = options or PrepareOptions()
    chosen.check()
    listing, found = _listed_files(folder, chosen)
    captioner = captioners.load(chosen.captioner) if chosen.captioner else None
    records = _captioned(_writable(listing), chosen)
    records = assign_buckets.assign(listing.root, records, chosen.bucket(), quiet=chosen.quiet)
    records = _attached(listing, records, found, chosen)
    records = _described(listing, records, captioner, chosen)
    return _save(listing, records, chosen, with_report=chosen.report)


def scan_only(
    folder: str | os.PathLike[str], options: PrepareOptions, *, ray: str | None = None
) -> PrepareResult:
    """Measure the images and write the manifest; captions and buckets stay as they were.

    With `ray`, the address of a cluster or "local", Ray Data does the work.
    """
    options.check()
    listing, found = _listed_files(folder, options)
    _writable(listing)
    if ray is not None:
        records = shards.scan_with_ray(listing, options.scan(), None if ray == "local" else ray)
    else:
        records = scan.scan(listing, options.scan(), journal=True)
    return _save(listing, _attached(listing, records, found, options), options)


def scan_shard(folder: str | os.PathLike[str], options: PrepareOptions, shard: str) -> PrepareResult:
    """Measure one part of the images, `shard` being "2/8"; the manifest is written by `merge_shards`."""
    options.check()
    part = shards.Shard.parse(shard)
    listing, _ = _listed_files(folder, options)
    records = shards.scan_shard(_writable(listing), options.scan(), part)
    return PrepareResult(listing.root, tuple(records), ())


def merge_shards(folder: str | os.PathLike[str], options: PrepareOptions) -> PrepareResult:
    """Write the manifest from the parts of a scan."""
    listing, found = _listed_files(folder, options)
    records = _attached(listing, shards.merge(_writable(listing)), found, options)
    result = _save(listing, records, options)
    shards.forget(listing.root)
    return result


def caption_only(folder: str | os.PathLike[str], options: PrepareOptions) -> PrepareResult:
    """Measure what is new, caption, and write the manifest."""
    options.check()
    listing, _ = _listed_files(folder, options)
    captioner = captioners.load(options.captioner) if options.captioner else None
    records = _captioned(_writable(listing), options)
    return _save(listing, _described(listing, records, captioner, options), options)


def check_only(
    folder: str | os.PathLike[str],
    options: PrepareOptions,
    *,
    against: str | os.PathLike[str] | None = None,
) -> PrepareResult:
    """Find what is wrong without writing anything; missing captions are a finding, not an exception.

    `against` is a folder of held-out images, whose duplicates here are named.
    """
    options.check()
    listing, found = _listed_files(folder, options)
    records = collect.collect(listing, scan.scan(listing, options.scan()), options.captions())
    records = _attached(listing, records, found, options)
    held_out = _held_out(Path(against), options) if against is not None else []
    return _result(listing, tokens.annotate(records, options.base), options, held_out)


def _held_out(folder: Path, options: PrepareOptions) -> list[Record]:
    """The images of another folder, under names that say so."""
    known = scan.prior(folder).values() or scan.scan(find(folder), options.scan())
    return [replace(record, file=f"{folder}/{record.file}") for record in known]


def bucket_only(
    folder: str | os.PathLike[str],
    options: BucketOptions,
    *,
    boxes: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> PrepareResult:
    """Choose shapes again for the images of the manifest; `boxes` is a file of hand-set crops."""
    options.check()
    records = manifest.load(folder)
    if boxes is not None:
        records = assign_buckets.with_boxes(records, assign_buckets.read_boxes(Path(boxes), records))
    chosen = PrepareOptions(quiet=quiet)
    listing, _ = _listed_files(folder, chosen)
    return _save(
        _writable(listing), assign_buckets.assign(listing.root, records, options, quiet=quiet), chosen
    )


def mask_only(
    folder: str | os.PathLike[str], options: SegmentOptions, *, again: bool = False, quiet: bool = True
) -> PrepareResult:
    """Have a model mask what a word names, in the images of the manifest that have no mask of their own."""
    options.check()
    chosen = PrepareOptions(quiet=quiet)
    listing, _ = _listed_files(folder, chosen)
    records = segment.segment(
        _writable(listing).root, manifest.load(folder), options, again=again, quiet=quiet
    )
    return _save(listing, records, chosen)


def control_only(
    folder: str | os.PathLike[str], options: ControlOptions, *, again: bool = False, quiet: bool = True
) -> PrepareResult:
    """Make edges, depth or masks of the images of the manifest that have none of their own."""
    options.check()
    chosen = PrepareOptions(quiet=quiet)
    listing, _ = _listed_files(folder, chosen)
    root = _writable(listing).root
    records = controls.control(root, manifest.load(folder), options, again=again, quiet=quiet)
    return _save(listing, records, chosen)


def report_only(
    folder: str | os.PathLike[str], *, trigger: str | None, base: str | None = None, quiet: bool
) -> PrepareResult:
    """Write the report again from the manifest."""
    chosen = PrepareOptions(trigger=trigger, base=base, quiet=quiet)
    records = manifest.load(folder)
    listing, _ = _listed_files(folder, chosen)
    result = _result(_writable(listing), tokens.annotate(records, base) if base else records, chosen)
    _report(result, chosen)
    return result


class _Beside(NamedTuple):
    """What lies beside the images, by image: (mask file, where it is named), and the pictures given."""

    masks: dict[str, tuple[str, str]]
    given: dict[str, list[attach.Named]]


def _listed_files(folder: str | os.PathLike[str], options: PrepareOptions) -> tuple[Listing, _Beside]:
    """(the folder's files that are trained on, those beside them)."""
    listing, found = masks.set_apart(find(folder, films=options.clips), options.caption_encoding)
    listing, pictures = attach.set_apart(listing, options.caption_encoding)
    return listing, _Beside(found, pictures)


def _attached(
    listing: Listing, records: Sequence[Record], found: _Beside, options: PrepareOptions
) -> list[Record]:
    """The records with their masks and the pictures they come with."""
    masked = masks.attach(listing, records, found.masks, alpha=options.alpha_mask)
    return attach.attach(listing, masked, found.given)


def _captioned(listing: Listing, options: PrepareOptions) -> list[Record]:
    """Measured and captioned records; none usable or none captioned is an error."""
    measured = scan.scan(listing, options.scan(), journal=True)
    records = collect.collect(listing, measured, options.captions())
    _require_images(listing.root, records)
    if not (options.allow_missing_captions or options.captioner):
        collect.require(records, listing.root)
    return records


def _described(
    listing: Listing, records: Sequence[Record], captioner: Captioner | None, options: PrepareOptions
) -> list[Record]:
    """Captioned by the captioner, if any; tokens counted for the base, if any.

    An image that the model fails at is a finding, not an exception: what it said of the others is kept.
    """
    if captioner is not None:
        records = generate.describe(listing.root, records, captioner, options.describe, quiet=options.quiet)
        records = collect.edit_all(records, options.captions())
    return tokens.annotate(records, options.base)


def _writable(listing: Listing) -> Listing:
    if not os.access(listing.root, os.W_OK):
        remedy = "make the folder writable; the manifest belongs beside the images"
        raise DiskError("the dataset folder is read-only", where=str(listing.root), remedy=remedy)
    return listing


def _result(
    listing: Listing,
    records: Sequence[Record],
    options: PrepareOptions,
    held_out: Sequence[Record] = (),
) -> PrepareResult:
    counted = options.base is not None
    found = check.check(listing, records, trigger=options.trigger, counted=counted, held_out=held_out)
    gone = tuple(sorted(_earlier(listing.root) - listing.image_set))
    return PrepareResult(listing.root, tuple(records), tuple(found), gone)


def _save(
    listing: Listing, records: Sequence[Record], options: PrepareOptions, *, with_report: bool = False
) -> PrepareResult:
    """Write the manifest, and the report unless it would say the same again."""
    result, root = _result(listing, records, options), listing.root
    manifest.save(root, records)
    storage.remove_file(root / scan.JOURNAL)
    if options.captioner is not None:
        generate.forget(root)
    if with_report:
        _report(result, options)
    return result


def _report(result: PrepareResult, options: PrepareOptions) -> None:
    report.write(
        result.folder,
        result.records,
        result.findings,
        counts=result.counts(),
        trigger=options.trigger,
        base=options.base,
        quiet=options.quiet,
    )


def _earlier(root: Path) -> set[str]:
    """The files that an earlier manifest lists."""
    if not (root / manifest.MANIFEST).is_file():
        return set()
    return {record.file for record in manifest.stream(root)}


def _require_images(root: Path, records: Sequence[Record]) -> None:
    if any(record.keep for record in records):
        return
    shown = "; ".join(f"{record.file}: {record.reason}" for record in records[:3])
    message = f"none of the {len(records)} images can be used: {shown}"
    raise DataError(
        message, where=str(root), remedy="repair or replace the files, then give the command again"
    )
