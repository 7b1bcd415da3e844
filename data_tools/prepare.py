"""Prepare a dataset folder for training: scan, caption, bucket, check, report.

A repeated command does only what is new, and without changes writes the same bytes. The user's files are
read, never written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data_tools import assign_buckets, captioners, check, out_folder, report, scan, scan_shards
from data_tools.assign_buckets import BucketOptions
from data_tools.captioners import Captioner
from data_tools.captions import collect, generate, metadata, tokens
from data_tools.captions.caption_counts import CaptioningCounts
from data_tools.captions.caption_jobs import run_jobs
from data_tools.captions.caption_journal import CaptionJournal, shard_journal
from data_tools.captions.ray_captions import RayRunner
from data_tools.conditioning import attach, controls, masks, segment
from data_tools.conditioning.controls import ControlOptions
from data_tools.conditioning.segment import SegmentOptions
from data_tools.dataset import Dataset
from data_tools.earlier import EarlierDataset
from data_tools.listing import Listing, list_dataset
from data_tools.options import PrepareOptions
from lorakit import manifest
from lorakit.core import storage
from lorakit.core.checksums import sha256_file
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.shards import Shard
from lorakit.imaging import crops
from lorakit.manifest import Record

__all__ = [
    "Dataset",
    "PrepareOptions",
    "bucket_dataset",
    "caption_dataset",
    "caption_dataset_shard",
    "check_dataset_folder",
    "generate_dataset_controls",
    "mask_dataset",
    "merge_scan_shards",
    "prepare_dataset",
    "rebuild_dataset_report",
    "scan_dataset",
    "scan_dataset_shard",
]


def prepare_dataset(folder: str | os.PathLike[str], options: PrepareOptions | None = None) -> Dataset:
    """Prepare a dataset folder: write manifest.jsonl, metadata.jsonl, report.html and report.json into it.

    Raises `ConfigError` for options that cannot work, `DataError` for a folder without usable images, missing
    captions or unreadable text, `DiskError` if the folder cannot be written.
    """
    options = options or PrepareOptions()
    options.check()
    files = _list_files(folder, options)
    listing = _require_writable(files.listing)
    captioner = captioners.load_captioner(options.captioner) if options.captioner else None
    records = _scan_and_caption(listing, options)
    records = assign_buckets.bucket_records(
        listing.folder, records, options.bucket_options(), quiet=options.quiet
    )
    records = _attach_files(files, records, options)
    records, counts = _run_captioner(listing, records, captioner, options)
    return replace(_save(listing, records, options, with_report=options.report), captioning=counts)


def scan_dataset(
    folder: str | os.PathLike[str], options: PrepareOptions, *, ray_address: str | None = None
) -> Dataset:
    """Measure the images and write the manifest; captions and buckets do not change.

    With `ray_address`, the address of a cluster or "local", Ray Data does the work.
    """
    options.check()
    files = _list_files(folder, options)
    _require_writable(files.listing)
    if ray_address is not None:
        records = scan_shards.scan_with_ray(files.listing, options.scan_options(), ray_address)
    else:
        records = scan.scan_images(files.listing, options.scan_options(), journal=True)
    return _save(files.listing, _attach_files(files, records, options), options)


def scan_dataset_shard(folder: str | os.PathLike[str], options: PrepareOptions, shard: str) -> Dataset:
    """Measure one shard of the images, such as "2/8"; `merge_scan_shards` writes the manifest."""
    options.check()
    parsed_shard = Shard.parse(shard)
    listing = _require_writable(_list_files(folder, options).listing)
    records = scan_shards.scan_shard(listing, options.scan_options(), parsed_shard)
    return Dataset(listing.folder, tuple(records), ())


def merge_scan_shards(folder: str | os.PathLike[str], options: PrepareOptions) -> Dataset:
    """Write the manifest from the shards of a scan, and remove their files."""
    files = _list_files(folder, options)
    records = scan_shards.join_scan_shards(_require_writable(files.listing))
    result = _save(files.listing, _attach_files(files, records, options), options)
    scan_shards.remove_scan_shards(files.listing.folder)
    return result


def caption_dataset(
    folder: str | os.PathLike[str], options: PrepareOptions, *, ray_address: str | None = None
) -> Dataset:
    """Measure new images, caption, and write the manifest.

    With `ray_address`, the address of a cluster or "local", Ray Data runs the model on every GPU. Answers of
    shards are used.
    """
    options.check()
    runner = _ray_runner(options, ray_address)
    listing = _list_files(folder, options).listing
    captioner = captioners.load_captioner(options.captioner) if options.captioner else None
    records = _scan_and_caption(_require_writable(listing), options)
    records, counts = _run_captioner(listing, records, captioner, options, runner)
    return replace(_save(listing, records, options), captioning=counts)


def caption_dataset_shard(folder: str | os.PathLike[str], options: PrepareOptions, shard: str) -> Dataset:
    """Caption one shard of the images, such as "2/8", with a model; `caption_dataset` writes the manifest."""
    options.check()
    if options.captioner is None:
        remedy = "give --model or --server; captions of files need no shards"
        raise ConfigError("a shard needs a captioner", where="shard", remedy=remedy)
    part = Shard.parse(shard)
    listing = _require_writable(_list_files(folder, options).listing)
    captioner = captioners.load_captioner(options.captioner)
    earlier = listing.earlier.records
    measured = list(scan.scan_files(listing, part.part(listing.images), options.scan_options(), earlier))
    records = collect.collect_captions(listing, measured, options.caption_options())
    journal = CaptionJournal(listing.folder, shard_journal(part.number, part.count))
    records, counts = generate.caption_images(
        records, captioner, options.captioning, journal, quiet=options.quiet
    )
    return Dataset(listing.folder, tuple(records), (), captioning=counts)


def _ray_runner(options: PrepareOptions, address: str | None) -> generate.JobRunner:
    if address is None:
        return run_jobs
    if options.captioner is None:
        raise ConfigError("--ray needs a captioner", where="ray", remedy="give --model, or leave --ray out")
    return RayRunner(options.captioner, address)


def check_dataset_folder(
    folder: str | os.PathLike[str],
    options: PrepareOptions,
    *,
    held_out: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Run all checks without writing anything; missing captions are a finding, not an exception.

    `held_out` is a folder of held-out images: images that are in both are reported.
    """
    options.check()
    files = _list_files(folder, options)
    records = scan.scan_images(files.listing, options.scan_options())
    records = collect.collect_captions(files.listing, records, options.caption_options())
    if not any(record.bucket for record in records if record.keep):  # a folder that is not prepared
        bucket_options = replace(options.bucket_options(), crop=crops.CENTER)
        records = assign_buckets.bucket_records(files.listing.folder, records, bucket_options)
    records = tokens.annotate_token_counts(_attach_files(files, records, options), options.base)
    held_out_records = _held_out_records(Path(held_out), options) if held_out is not None else []
    return _result(files.listing, records, options, held_out_records)


def _held_out_records(folder: Path, options: PrepareOptions) -> list[Record]:
    """Return the images of another folder, whose names start with that folder."""
    records = EarlierDataset(folder).records.values() or scan.scan_images(
        list_dataset(folder), options.scan_options()
    )
    return [replace(record, file=f"{folder}/{record.file}") for record in records]


def bucket_dataset(
    folder: str | os.PathLike[str],
    options: BucketOptions,
    *,
    crops_file: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> Dataset:
    """Choose buckets and crops again for the images of the manifest; `crops_file` has crops set by hand."""
    options.check()
    records = manifest.load_manifest(folder)
    if crops_file is not None:
        boxes = assign_buckets.read_crop_boxes(Path(crops_file), records)
        records = assign_buckets.apply_crop_boxes(records, boxes)
    prepare_options = PrepareOptions(quiet=quiet)
    listing = _require_writable(_list_files(folder, prepare_options).listing)
    records = assign_buckets.bucket_records(listing.folder, records, options, quiet=quiet)
    return _save(listing, records, prepare_options)


def mask_dataset(
    folder: str | os.PathLike[str], options: SegmentOptions, *, regenerate: bool = False, quiet: bool = True
) -> Dataset:
    """Mask with a model what a word names, in the images of the manifest that have no mask of the user's."""
    options.check()
    prepare_options = PrepareOptions(quiet=quiet)
    listing = _require_writable(_list_files(folder, prepare_options).listing)
    records = segment.segment_images(
        listing.folder, manifest.load_manifest(folder), options,
        regenerate=regenerate, quiet=quiet, save=partial(manifest.save_manifest, listing.folder),
    )  # fmt: skip
    return _save(listing, records, prepare_options)


def generate_dataset_controls(
    folder: str | os.PathLike[str], options: ControlOptions, *, regenerate: bool = False, quiet: bool = True
) -> Dataset:
    """Make edges, depth maps or masks for the images of the manifest that have none of the user's."""
    options.check()
    prepare_options = PrepareOptions(quiet=quiet)
    listing = _require_writable(_list_files(folder, prepare_options).listing)
    records = controls.generate_conditioning(
        listing.folder, manifest.load_manifest(folder), options,
        regenerate=regenerate, quiet=quiet, save=partial(manifest.save_manifest, listing.folder),
    )  # fmt: skip
    return _save(listing, records, prepare_options)


def rebuild_dataset_report(
    folder: str | os.PathLike[str], *, trigger: str | None, base: str | None = None, quiet: bool
) -> Dataset:
    """Write the report again from the manifest."""
    options = PrepareOptions(trigger=trigger, base=base, quiet=quiet)
    records = manifest.load_manifest(folder)
    if base is not None:
        records = tokens.annotate_token_counts(records, base)
    result = _result(_require_writable(_list_files(folder, options).listing), records, options)
    _report(result, options)
    return result


@dataclass(frozen=True)
class _DatasetFiles:
    """The files of a folder: the images to train on, and the masks and conditioning files of each image."""

    listing: Listing
    mask_files: dict[str, masks.MaskFile]
    conditioning: dict[str, list[attach.ConditioningFile]]


def _list_files(folder: str | os.PathLike[str], options: PrepareOptions) -> _DatasetFiles:
    listing = list_dataset(folder, include_videos=options.videos)
    listing = metadata.with_tables(listing, options.caption_encoding, options.caption_columns)
    listing, mask_files = masks.separate_mask_files(listing)
    listing, conditioning = attach.separate_conditioning_files(listing)
    return _DatasetFiles(listing, mask_files, conditioning)


def _attach_files(files: _DatasetFiles, records: Sequence[Record], options: PrepareOptions) -> list[Record]:
    """Return the records with their masks and conditioning images."""
    masked = masks.attach_masks(files.listing, records, files.mask_files, alpha=options.alpha_mask)
    return attach.attach_conditioning(files.listing, masked, files.conditioning)


def _scan_and_caption(listing: Listing, options: PrepareOptions) -> list[Record]:
    """Measure and caption the images; if none can be used or captions are missing, raise `DataError`."""
    measured = scan.scan_images(listing, options.scan_options(), journal=True)
    records = collect.collect_captions(listing, measured, options.caption_options())
    _require_images(listing.folder, records)
    if not (options.allow_missing_captions or options.captioner):
        collect.require_captions(records, listing)
    return records


def _run_captioner(
    listing: Listing,
    records: Sequence[Record],
    captioner: Captioner | None,
    options: PrepareOptions,
    runner: generate.JobRunner = run_jobs,
) -> tuple[list[Record], CaptioningCounts | None]:
    """Caption with the captioner, if any, and count tokens for the base, if any.

    An image at which the model fails is a finding, not an exception: the other captions are kept.
    """
    counts = None
    if captioner is not None:
        journal = CaptionJournal(listing.folder)
        records, counts = generate.caption_images(
            records, captioner, options.captioning, journal, runner=runner, quiet=options.quiet
        )
        records = collect.apply_edits_to_records(records, options.caption_options())
    return tokens.annotate_token_counts(records, options.base), counts


def _require_writable(listing: Listing) -> Listing:
    out_folder.require_writable(listing.folder)
    return listing


def _result(
    listing: Listing,
    records: Sequence[Record],
    options: PrepareOptions,
    held_out: Sequence[Record] = (),
) -> Dataset:
    findings = check.check_dataset(
        listing,
        records,
        trigger=options.trigger,
        tokens_counted=options.base is not None,
        held_out=held_out,
    )
    removed_files = tuple(sorted(listing.earlier.records.keys() - listing.image_set))
    return Dataset(listing.folder, tuple(records), tuple(findings), removed_files)


def _save(
    listing: Listing, records: Sequence[Record], options: PrepareOptions, *, with_report: bool = False
) -> Dataset:
    """Write the manifest, and the report if requested; remove the journals."""
    result, folder = _result(listing, records, options), listing.folder
    manifest.save_manifest(folder, records, wrote_metadata=listing.earlier.wrote_metadata)
    listing.earlier.hashes.save(file for record in records for file in _files_of(record))
    storage.remove_file(folder / scan.SCAN_JOURNAL)
    if options.captioner is not None:
        CaptionJournal(folder).remove()
    if with_report:
        _report(result, options)
    return result


def _files_of(record: Record) -> list[str]:
    return [record.file, *(image.file for image in record.conditioning_images)]


def _report(result: Dataset, options: PrepareOptions) -> None:
    report.write_report(
        result.folder,
        result.records,
        result.findings,
        counts=result.counts(),
        trigger=options.trigger,
        base=options.base,
        records_hash=sha256_file(result.folder / manifest.MANIFEST_FILE),
        quiet=options.quiet,
    )


def _require_images(root: Path, records: Sequence[Record]) -> None:
    if any(record.keep for record in records):
        return
    examples = "; ".join(f"{record.file}: {record.reason}" for record in records[:3])
    message = f"none of the {len(records)} images can be used: {examples}"
    raise DataError(
        message, where=str(root), remedy="repair or replace the files, then run the command again"
    )
