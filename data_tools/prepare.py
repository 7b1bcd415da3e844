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
from data_tools.listing import Listing, list_dataset
from data_tools.options import PrepareOptions
from data_tools.result import PrepareResult
from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import DataError, DiskError
from lorakit.manifest import Record

__all__ = [
    "PrepareOptions",
    "PrepareResult",
    "bucket_dataset",
    "caption_dataset",
    "check_dataset_folder",
    "generate_dataset_controls",
    "mask_dataset",
    "merge_scan_shards",
    "prepare_dataset",
    "rebuild_dataset_report",
    "scan_dataset",
    "scan_dataset_shard",
]


def prepare_dataset(folder: str | os.PathLike[str], options: PrepareOptions | None = None) -> PrepareResult:
    """Prepare a dataset folder: manifest.jsonl, metadata.jsonl, report.html and report.json appear in it.

    Raises `ConfigError` for options that cannot work, `DataError` for a folder without usable images, missing
    captions or unreadable text, `DiskError` where nothing can be written.
    """
    chosen = options or PrepareOptions()
    chosen.check()
    listing, found = _list_and_separate(folder, chosen)
    captioner = captioners.load_captioner(chosen.captioner) if chosen.captioner else None
    records = _scan_and_caption(_require_writable(listing), chosen)
    records = assign_buckets.bucket_records(listing.root, records, chosen.bucket(), quiet=chosen.quiet)
    records = _attach_sidecars(listing, records, found, chosen)
    records = _run_captioner(listing, records, captioner, chosen)
    return _save(listing, records, chosen, with_report=chosen.report)


def scan_dataset(
    folder: str | os.PathLike[str], options: PrepareOptions, *, ray: str | None = None
) -> PrepareResult:
    """Measure the images and write the manifest; captions and buckets stay as they were.

    With `ray`, the address of a cluster or "local", Ray Data does the work.
    """
    options.check()
    listing, found = _list_and_separate(folder, options)
    _require_writable(listing)
    if ray is not None:
        records = shards.scan_with_ray(listing, options.scan(), None if ray == "local" else ray)
    else:
        records = scan.scan_images(listing, options.scan(), journal=True)
    return _save(listing, _attach_sidecars(listing, records, found, options), options)


def scan_dataset_shard(folder: str | os.PathLike[str], options: PrepareOptions, shard: str) -> PrepareResult:
    """Measure one part of the images, `shard` being "2/8"; the manifest is written by `merge_shards`."""
    options.check()
    part = shards.Shard.parse(shard)
    listing, _ = _list_and_separate(folder, options)
    records = shards.scan_shard(_require_writable(listing), options.scan(), part)
    return PrepareResult(listing.root, tuple(records), ())


def merge_scan_shards(folder: str | os.PathLike[str], options: PrepareOptions) -> PrepareResult:
    """Write the manifest from the parts of a scan."""
    listing, found = _list_and_separate(folder, options)
    records = _attach_sidecars(listing, shards.join_scan_shards(_require_writable(listing)), found, options)
    result = _save(listing, records, options)
    shards.remove_scan_shards(listing.root)
    return result


def caption_dataset(folder: str | os.PathLike[str], options: PrepareOptions) -> PrepareResult:
    """Measure what is new, caption, and write the manifest."""
    options.check()
    listing, _ = _list_and_separate(folder, options)
    captioner = captioners.load_captioner(options.captioner) if options.captioner else None
    records = _scan_and_caption(_require_writable(listing), options)
    return _save(listing, _run_captioner(listing, records, captioner, options), options)


def check_dataset_folder(
    folder: str | os.PathLike[str],
    options: PrepareOptions,
    *,
    against: str | os.PathLike[str] | None = None,
) -> PrepareResult:
    """Find what is wrong without writing anything; missing captions are a finding, not an exception.

    `against` is a folder of held-out images, whose duplicates here are named.
    """
    options.check()
    listing, found = _list_and_separate(folder, options)
    records = collect.collect_captions(listing, scan.scan_images(listing, options.scan()), options.captions())
    records = _attach_sidecars(listing, records, found, options)
    held_out = _held_out(Path(against), options) if against is not None else []
    return _result(listing, tokens.annotate_token_counts(records, options.base), options, held_out)


def _held_out(folder: Path, options: PrepareOptions) -> list[Record]:
    """The images of another folder, under names that say so."""
    known = scan.read_previous_records(folder).values() or scan.scan_images(
        list_dataset(folder), options.scan()
    )
    return [replace(record, file=f"{folder}/{record.file}") for record in known]


def bucket_dataset(
    folder: str | os.PathLike[str],
    options: BucketOptions,
    *,
    boxes: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> PrepareResult:
    """Choose shapes again for the images of the manifest; `boxes` is a file of hand-set crops."""
    options.check()
    records = manifest.load_manifest(folder)
    if boxes is not None:
        records = assign_buckets.apply_crop_boxes(
            records, assign_buckets.read_crop_boxes(Path(boxes), records)
        )
    chosen = PrepareOptions(quiet=quiet)
    listing, _ = _list_and_separate(folder, chosen)
    return _save(
        _require_writable(listing),
        assign_buckets.bucket_records(listing.root, records, options, quiet=quiet),
        chosen,
    )


def mask_dataset(
    folder: str | os.PathLike[str], options: SegmentOptions, *, again: bool = False, quiet: bool = True
) -> PrepareResult:
    """Have a model mask what a word names, in the images of the manifest that have no mask of their own."""
    options.check()
    chosen = PrepareOptions(quiet=quiet)
    listing, _ = _list_and_separate(folder, chosen)
    records = segment.segment_images(
        _require_writable(listing).root, manifest.load_manifest(folder), options, again=again, quiet=quiet
    )
    return _save(listing, records, chosen)


def generate_dataset_controls(
    folder: str | os.PathLike[str], options: ControlOptions, *, again: bool = False, quiet: bool = True
) -> PrepareResult:
    """Make edges, depth or masks of the images of the manifest that have none of their own."""
    options.check()
    chosen = PrepareOptions(quiet=quiet)
    listing, _ = _list_and_separate(folder, chosen)
    root = _require_writable(listing).root
    records = controls.generate_conditioning(
        root, manifest.load_manifest(folder), options, again=again, quiet=quiet
    )
    return _save(listing, records, chosen)


def rebuild_dataset_report(
    folder: str | os.PathLike[str], *, trigger: str | None, base: str | None = None, quiet: bool
) -> PrepareResult:
    """Write the report again from the manifest."""
    chosen = PrepareOptions(trigger=trigger, base=base, quiet=quiet)
    records = manifest.load_manifest(folder)
    listing, _ = _list_and_separate(folder, chosen)
    result = _result(
        _require_writable(listing), tokens.annotate_token_counts(records, base) if base else records, chosen
    )
    _report(result, chosen)
    return result


class _SidecarFiles(NamedTuple):
    """What lies beside the images, by image: (mask file, where it is named), and the pictures given."""

    masks: dict[str, tuple[str, str]]
    given: dict[str, list[attach.ConditioningFile]]


def _list_and_separate(
    folder: str | os.PathLike[str], options: PrepareOptions
) -> tuple[Listing, _SidecarFiles]:
    """(the folder's files that are trained on, those beside them)."""
    listing, found = masks.separate_mask_files(
        list_dataset(folder, films=options.clips), options.caption_encoding
    )
    listing, pictures = attach.separate_conditioning_files(listing, options.caption_encoding)
    return listing, _SidecarFiles(found, pictures)


def _attach_sidecars(
    listing: Listing, records: Sequence[Record], found: _SidecarFiles, options: PrepareOptions
) -> list[Record]:
    """The records with their masks and the pictures they come with."""
    masked = masks.attach_masks(listing, records, found.masks, alpha=options.alpha_mask)
    return attach.attach_conditioning(listing, masked, found.given)


def _scan_and_caption(listing: Listing, options: PrepareOptions) -> list[Record]:
    """Measured and captioned records; none usable or none captioned is an error."""
    measured = scan.scan_images(listing, options.scan(), journal=True)
    records = collect.collect_captions(listing, measured, options.captions())
    _require_images(listing.root, records)
    if not (options.allow_missing_captions or options.captioner):
        collect.require_captions(records, listing.root)
    return records


def _run_captioner(
    listing: Listing, records: Sequence[Record], captioner: Captioner | None, options: PrepareOptions
) -> list[Record]:
    """Captioned by the captioner, if any; tokens counted for the base, if any.

    An image that the model fails at is a finding, not an exception: what it said of the others is kept.
    """
    if captioner is not None:
        records = generate.caption_images(
            listing.root, records, captioner, options.describe, quiet=options.quiet
        )
        records = collect.apply_edits_to_records(records, options.captions())
    return tokens.annotate_token_counts(records, options.base)


def _require_writable(listing: Listing) -> Listing:
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
    found = check.check_dataset(listing, records, trigger=options.trigger, counted=counted, held_out=held_out)
    gone = tuple(sorted(_previous_files(listing.root) - listing.image_set))
    return PrepareResult(listing.root, tuple(records), tuple(found), gone)


def _save(
    listing: Listing, records: Sequence[Record], options: PrepareOptions, *, with_report: bool = False
) -> PrepareResult:
    """Write the manifest, and the report unless it would say the same again."""
    result, root = _result(listing, records, options), listing.root
    manifest.save_manifest(root, records)
    storage.remove_file(root / scan.SCAN_JOURNAL)
    if options.captioner is not None:
        generate.remove_caption_journal(root)
    if with_report:
        _report(result, options)
    return result


def _report(result: PrepareResult, options: PrepareOptions) -> None:
    report.write_report(
        result.folder,
        result.records,
        result.findings,
        counts=result.counts(),
        trigger=options.trigger,
        base=options.base,
        quiet=options.quiet,
    )


def _previous_files(root: Path) -> set[str]:
    """The files that an earlier manifest lists."""
    if not (root / manifest.MANIFEST_FILE).is_file():
        return set()
    return {record.file for record in manifest.iter_manifest(root)}


def _require_images(root: Path, records: Sequence[Record]) -> None:
    if any(record.keep for record in records):
        return
    shown = "; ".join(f"{record.file}: {record.reason}" for record in records[:3])
    message = f"none of the {len(records)} images can be used: {shown}"
    raise DataError(
        message, where=str(root), remedy="repair or replace the files, then give the command again"
    )
