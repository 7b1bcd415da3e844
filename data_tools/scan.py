"""Measure every image of a folder: hashes, size, what decoding it took, and why it cannot be used if so.

A bad file never stops the scan: it gets a record with `keep: false` and a reason. What an earlier manifest
says of an unchanged file is used again; an interrupted scan goes on from its journal.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data_tools import quality, workers
from data_tools.listing import Listing
from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.progress import Progress
from lorakit.imaging import crops, decode, signatures, video
from lorakit.imaging.color import Color
from lorakit.imaging.decode import ImageError
from lorakit.manifest import Record

SCAN_JOURNAL = ".lorakit-scan.jsonl"
MIN_FILES_FOR_POOL = 64  # below that many new images, starting processes takes longer than the work
CRASHED_REASON = "crashed: decoding it ended the process, or memory ran out (convert it to PNG)"
BIG_FILE_BYTES = 64 << 20  # bytes
BIG_IMAGE_PIXELS = 24_000_000  # pixels; beyond these, one worker at a time holds such a file
_CODES = (
    "animated below_tiers changed corrupt crashed dangling_symlink empty json lfs_pointer markup missing"
    " multipage name_collision no_decoder not_a_file raw symlink_outside svg too_large too_many_pixels"
    " too_narrow too_small truncated unknown_format unreadable unsupported_depth"
)
_NOTE_CODES = (
    "alpha blurry border broken_exif broken_icc clipped cmyk depth first_frame flat icc rotated suffix"
)
# Reasons that the scan gives and may take back; any other reason is the user's decision and stays.
SCAN_REASONS = frozenset(_CODES.split())
NOTES = frozenset(_NOTE_CODES.split())
_FORMAT_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
}


@dataclass(frozen=True)
class ScanOptions:
    """How images are decoded and which are refused; sides in pixels, `max_aspect` long over short."""

    background: Color = decode.WHITE
    max_pixels: int = decode.MAX_PIXELS
    first_frame: bool = False
    min_side: int = 16
    max_aspect: float = 8.0
    workers: int | None = None  # processes; None: as many as there are processors
    fresh: bool = False  # measure again what an earlier manifest already says
    quiet: bool = True

    def check(self) -> None:
        """Raise `ConfigError` for limits that cannot work, before any file is read."""
        if not 1 <= self.max_aspect < math.inf:
            message = f"max_aspect must be a number from 1, not {self.max_aspect:g}"
            raise ConfigError(message, where="max-aspect", remedy="use 8, for up to 8 to 1")


class ScanJob(NamedTuple):
    """One file to measure, and what is known of it already."""

    file: str
    prior: Record | None


def scan_images(listing: Listing, options: ScanOptions, *, journal: bool = False) -> list[Record]:
    """One record for every image of the listing, in its order; with `journal`, a stopped scan goes on."""
    path = listing.root / SCAN_JOURNAL
    done = {} if options.fresh else read_scan_journal(path)
    known = (
        read_previous_records(listing.root) | done
    )  # with `fresh` too: what the user decided or had captioned stays
    keep_journal = journal and len(listing.images) >= MIN_FILES_FOR_POOL
    records = []
    for record in scan_files(listing, listing.images, options, known):
        records.append(record)
        if keep_journal and record.file not in done:
            storage.append_jsonl(path, manifest.record_to_json(record))
    if journal:
        storage.remove_file(path)
    return reject_name_collisions(listing, records)


def scan_files(
    listing: Listing, files: Sequence[str], options: ScanOptions, known: Mapping[str, Record]
) -> Iterator[Record]:
    """The records of `files` in their order, measured in processes when there is enough to do."""
    count = min(options.workers or os.cpu_count() or 1, max(1, len(files) // 8))
    new = len(files) if options.fresh else sum(file not in known for file in files)
    if new + len(files) // 16 < MIN_FILES_FOR_POOL:  # what is known is only hashed again
        count = 1
    function = functools.partial(scan_file, str(listing.root), options)
    jobs = (ScanJob(file, known.get(file)) for file in files)
    with Progress("images", len(files), quiet=options.quiet) as progress:
        for number, record in enumerate(
            workers.OrderedProcessPool(function, _crashed_record, count).run(jobs), 1
        ):
            yield record
            progress.update(number)


def read_previous_records(root: Path) -> dict[str, Record]:
    """The records of an earlier manifest by file."""
    if not (root / manifest.MANIFEST_FILE).is_file():
        return {}
    return {record.file: record for record in manifest.load_manifest(root)}


def read_scan_journal(path: Path) -> dict[str, Record]:
    """Records of an interrupted scan; a line that a crash cut off is measured again."""
    records = {}
    if path.is_file():
        with open(path, "rb") as file:
            for line in file:
                with contextlib.suppress(DataError):
                    record = manifest.parse_record(line, str(path))
                    records[record.file] = record
    return records


def note_code(line: str | None) -> str:
    """The code of a `code: text` reason or note."""
    return (line or "").partition(":")[0]


def replace_notes(record: Record, owned: Iterable[str], new: Sequence[str]) -> Record:
    """The record with the notes of the `owned` codes replaced by `new`; other notes stay."""
    codes = frozenset(owned)
    kept = tuple(note for note in record.notes if note_code(note) not in codes)
    return replace(record, notes=kept + tuple(new))


def resolve_inside(root: Path, file: str) -> Path:
    """The file's path, once it is certain that it does not lead out of the dataset folder."""
    path = root / file
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            message = "the link leads nowhere"
            raise ImageError(
                "dangling_symlink", message, where=str(path), remedy="copy the file here, or delete the link"
            ) from error
        if not target.is_relative_to(root.resolve()):
            message = "the link leads out of the dataset folder"
            raise ImageError(
                "symlink_outside", message, where=str(path), remedy="copy the file into the folder"
            )
    return path


# ---- the work on one file ----------------------------------------------------------------------------------


def scan_file(root: str, options: ScanOptions, job: ScanJob) -> Record:
    """Measure one file; runs in a worker process, on this machine or another."""
    digest = ""
    try:
        path = resolve_inside(Path(root), job.file)
        with workers.exclusive(_file_size(path) > BIG_FILE_BYTES):
            data = decode.read_file(path)
            digest = hashlib.sha256(data).hexdigest()
            if job.prior is not None and not options.fresh and _is_unchanged(job.prior, digest, options):
                return _apply_size_limits(job.prior, options)
            return _apply_size_limits(_decode_and_measure(data, digest, options, job), options)
    except ImageError as error:
        return _rejected_record(job, digest, error.reason)


def _decode_and_measure(data: bytes, digest: str, options: ScanOptions, job: ScanJob) -> Record:
    """Decode once and take everything from that."""
    clip = None
    if video.is_video(job.file) and not signatures.is_image_header(data[:16]):
        clip = video.inspect_video(data, job.file, options.max_pixels)
        data = video.frame_to_ppm(clip.first)
    source = decode.open_source(
        data,
        where=job.file,
        background=options.background,
        max_pixels=options.max_pixels,
        first_frame=options.first_frame,
    )
    with workers.exclusive(source.image.width * source.image.height > BIG_IMAGE_PIXELS):
        seen = decode.inspect_image(source)
    carried = job.prior or Record(job.file, digest, "", 0, 0)
    record = replace(
        carried,
        sha256=digest,
        pixels=clip.pixels if clip else seen.pixels,
        clip=clip.clip if clip else None,
        width=seen.size[0],
        height=seen.size[1],
        **_kept_crop_fields(carried, seen.size),
        phash=quality.phash(seen.small),
        background=decode.color_name(options.background) if seen.transparent else None,
        first_frame=seen.first_of_many,
    )
    suffix = [] if clip else _suffix_note(job.file, seen.format)
    found = [*suffix, *seen.notes, *quality.quality_notes(seen.small)]
    return replace_notes(record, NOTES, found)


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # reading it will say why


def _kept_crop_fields(earlier: Record, size: tuple[int, int]) -> dict[str, Any]:
    """What a new picture under an old name keeps: the crop that a person set, when it has the same size."""
    if crops.has_user_crop(earlier) and earlier.size == size:
        return {"bucket": None, "crop_by": crops.USER}
    return {"bucket": None, "crop": None, "crop_by": None, "focus": None}


def _is_unchanged(prior: Record, digest: str, options: ScanOptions) -> bool:
    """Whether the file is the same and would be decoded the same way."""
    background = decode.color_name(options.background)
    return (
        prior.sha256 == digest
        and prior.pixels != ""
        and prior.background in (None, background)
        and (options.first_frame or not prior.first_frame)
        and prior.width * prior.height <= options.max_pixels
    )


def _apply_size_limits(record: Record, options: ScanOptions) -> Record:
    """Keep or refuse by size; a `keep: false` that the user gave stays."""
    if not record.keep and note_code(record.reason) not in SCAN_REASONS:
        return record
    width, height = record.size
    reason = None
    if min(width, height) < options.min_side:
        reason = f"too_small: {width}x{height}, the shorter side is below {options.min_side} (--min-side)"
    elif max(width, height) > options.max_aspect * min(width, height):
        reason = f"too_narrow: {width}x{height} is beyond {options.max_aspect:g} to 1 (--max-aspect)"
    return replace(record, keep=reason is None, reason=reason)


def _rejected_record(job: ScanJob, digest: str, reason: str) -> Record:
    """A record for a file that gives no picture; captions and the user's own decision are carried along."""
    carried = job.prior or Record(job.file, "", "", 0, 0)
    if job.prior is not None and not job.prior.keep and note_code(job.prior.reason) not in SCAN_REASONS:
        reason = job.prior.reason or reason
    blank = replace(carried, sha256=digest, pixels="", width=0, height=0, keep=False, reason=reason)
    blank = replace(blank, crop=None, bucket=None, phash=None, background=None, first_frame=False)
    blank = replace(blank, crop_by=None, focus=None, clip=None)
    return replace_notes(blank, NOTES, [])


def _crashed_record(job: ScanJob) -> Record:
    """A record for a file that killed the process that read it."""
    return _rejected_record(job, "", CRASHED_REASON)


def _suffix_note(file: str, format_name: str) -> list[str]:
    suffix = PurePosixPath(file).suffix.lower()
    expected = _FORMAT_SUFFIXES.get(format_name, ())
    usual = any(suffix in suffixes for suffixes in _FORMAT_SUFFIXES.values())
    if (expected and suffix not in expected) or (not expected and usual):
        return [f"suffix: the content is {format_name}, whatever the name says"]
    return []


def reject_name_collisions(listing: Listing, records: Sequence[Record]) -> list[Record]:
    """Refuse images that would share one caption file (`a.jpg` and `a.png` beside `a.txt`)."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    for record in records:
        by_stem[_stem(record.file)].append(record.file)
    shared = {_stem(name) for name in listing.sidecars}
    judged = []
    for record in records:
        stem = _stem(record.file)
        if stem in shared and record.keep and len(by_stem[stem]) > 1:
            others = ", ".join(file for file in by_stem[stem] if file != record.file)
            reason = f"name_collision: shares its caption file with {others} (rename one of them)"
            record = replace(record, keep=False, reason=reason)
        judged.append(record)
    return judged


def _stem(file: str) -> str:
    return str(PurePosixPath(file).with_suffix(""))
