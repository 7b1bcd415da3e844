"""Measure every image of a folder: hashes, size, how it was decoded, and the reason if it cannot be used.

A bad file never stops the scan: it gets a record with `keep: false` and a reason. The record of an unchanged
file is taken from the earlier manifest, and the file is not read if its size and times are as before
(`lorakit.core.file_hashes`); an interrupted scan continues from its journal.
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

from data_tools import image_quality, process_pool
from data_tools.captions.embedded_text import EMBEDDED_TEXT, embedded_text_notes
from data_tools.listing import Listing, file_stem
from lorakit import manifest
from lorakit.core import platform, storage
from lorakit.core.errors import ConfigError, DataError, LorakitError, first_line
from lorakit.core.platform import FileStatus
from lorakit.core.progress import Progress
from lorakit.imaging import crops, decode, signatures, video
from lorakit.imaging.color import Color
from lorakit.imaging.decode import ImageError
from lorakit.manifest import Record

SCAN_JOURNAL = ".lorakit-scan.jsonl"
MIN_FILES_FOR_POOL = 64  # new images; for fewer, starting processes takes longer than the work
DECODER_FAILED = "decoder_failed"
CRASHED_REASON = "decoder_crashed: decoding ended the process, or memory ran out (convert it to PNG)"
BIG_FILE_BYTES = 64 << 20  # bytes
BIG_IMAGE_PIXELS = 24_000_000  # above these two limits, one worker at a time holds such a file
_CODES = (
    "animated below_resolution camera_raw changed corrupt dangling_symlink decoder_crashed decoder_failed"
    " empty extreme_aspect_ratio file_too_large html_or_xml json_file lfs_pointer missing multipage"
    " no_decoder not_a_file not_an_image shared_caption_file svg symlink_outside too_many_pixels too_small"
    " truncated unknown_format unreadable unsupported_bit_depth unsupported_format video_file"
)
_NOTE_CODES = (
    "bit_depth blurry broken_exif broken_icc clipped_tones cmyk color_encoding_converted exif_rotated"
    " first_frame hdr_tone_mapped icc_converted letterbox primary_image single_color transparency"
    " wrong_extension xmp_orientation"
    # Of an earlier image in the file.
    " conditioning_not_generated mask_covers_all mask_prompt_not_found pose_not_found"
)
# Reasons that the scan sets and may remove again; any other reason is the user's decision and stays.
SCAN_REASONS = frozenset(_CODES.split())
# Reasons of files of other kinds, which are not images that could be repaired.
_OTHER_KINDS = "camera_raw no_decoder not_an_image svg unknown_format unsupported_format video_file"
NEVER_USABLE = frozenset(_OTHER_KINDS.split())
NOTES = frozenset({*_NOTE_CODES.split(), EMBEDDED_TEXT})
_FORMAT_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".heics", ".hif"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpf", ".jpx"),
    "JXL": (".jxl",),
    "QOI": (".qoi",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm"),
}


@dataclass(frozen=True)
class ScanOptions:
    """Options of decoding, and limits of size: sides in pixels, `max_aspect_ratio` long side over short."""

    background: Color = decode.WHITE
    max_pixels: int = decode.MAX_PIXELS
    first_frame: bool = False
    min_side: int = 16
    max_aspect_ratio: float = 8.0
    workers: int | None = None  # processes; None: one for each processor
    rescan: bool = False  # measure unchanged files again, too
    verify: bool = False  # read every file to find changes, also where size and times are as before
    quiet: bool = True

    def check(self) -> None:
        """Raise `ConfigError` for limits that cannot work, before any file is read."""
        if not 1 <= self.max_aspect_ratio < math.inf:
            message = f"max_aspect_ratio must be a number from 1, not {self.max_aspect_ratio:g}"
            raise ConfigError(message, where="max-aspect-ratio", remedy="use 8: sides of up to 8 to 1")


class ScanJob(NamedTuple):
    """A file to measure, and its record in the earlier manifest."""

    file: str
    previous: Record | None


def scan_images(listing: Listing, options: ScanOptions, *, journal: bool = False) -> list[Record]:
    """Return one record for each image of the listing, in its order.

    With `journal`, a stopped scan continues where it was.
    """
    path = listing.folder / SCAN_JOURNAL
    done = {} if options.rescan else read_scan_journal(path)
    # With `rescan`, too: captions and the user's decisions stay.
    known = listing.earlier.records | done
    keep_journal = journal and len(listing.images) >= MIN_FILES_FOR_POOL
    if journal:
        listing.earlier.hashes.start_reading()
    records = []
    for record in scan_files(listing, listing.images, options, known):
        records.append(record)
        if keep_journal and record != known.get(record.file):
            storage.append_jsonl(path, manifest.record_to_json(record))
    if journal:
        storage.remove_file(path)
    return reject_name_collisions(listing, records)


def scan_files(
    listing: Listing, files: Sequence[str], options: ScanOptions, known: Mapping[str, Record]
) -> Iterator[Record]:
    """Yield the records of `files` in their order, measured in processes if there are many."""
    hashes = listing.earlier.hashes
    statuses: dict[str, FileStatus | None] = {}  # of the files to read, from before they are read
    unread: dict[str, Record] = {}
    for file in files:
        status, previous = _file_status(listing.root / file), known.get(file)
        digest = None if options.rescan or options.verify else hashes.known(file, status)
        if previous is not None and digest is not None and _is_unchanged(previous, digest, options):
            unread[file] = previous
        else:
            statuses[file] = status
    count = min(options.workers or os.cpu_count() or 1, max(1, len(statuses) // 8))
    new = len(statuses) if options.rescan else sum(file not in known for file in statuses)
    if new + len(statuses) // 16 < MIN_FILES_FOR_POOL:  # files of the earlier manifest are only hashed
        count = 1
    function = functools.partial(scan_file, str(listing.root), options)
    jobs = (ScanJob(file, known.get(file)) for file in statuses)
    measured = process_pool.OrderedProcessPool(function, _crashed_record, count).run(jobs)
    with Progress("images", len(files), quiet=options.quiet) as progress:
        for number, file in enumerate(files, 1):
            if file in unread:
                yield _apply_size_limits(unread[file], options)
            else:
                record = next(measured)
                hashes.add(file, statuses[file], record.sha256)
                yield record
            progress.update(number)


def _file_status(path: Path) -> FileStatus | None:
    try:
        return platform.file_status(path)
    except OSError:
        return None  # reading the file reports the error


def read_scan_journal(path: Path) -> dict[str, Record]:
    """Return the records of an interrupted scan by file; a line that a crash cut off is left out."""
    records = {}
    if path.is_file():
        with open(path, "rb") as file:
            for line in file:
                with contextlib.suppress(DataError):
                    record = manifest.parse_record(line, str(path))
                    records[record.file] = record
    return records


def note_code(line: str | None) -> str:
    """Return the code of a reason or note `code: text`."""
    return (line or "").partition(":")[0]


def replace_notes(record: Record, owned_codes: Iterable[str], new_notes: Sequence[str]) -> Record:
    """Return the record with the notes of `owned_codes` replaced by `new_notes`; other notes stay."""
    codes = frozenset(owned_codes)
    kept = tuple(note for note in record.notes if note_code(note) not in codes)
    return manifest.change_record(record, notes=kept + tuple(new_notes))


def resolve_inside(root: Path, file: str) -> Path:
    """Return the file's path; a link that leads nowhere or out of the dataset folder is an `ImageError`."""
    path = root / file
    if os.path.islink(path):
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


# ---- one file ----------------------------------------------------------------------------------------------


def scan_file(root: str, options: ScanOptions, job: ScanJob) -> Record:
    """Measure one file. Runs in a worker process, on this machine or another."""
    digest = ""
    try:
        path = resolve_inside(Path(root), job.file)
        with process_pool.exclusive(_file_size(path) > BIG_FILE_BYTES):
            data = decode.read_file(path)
            digest = hashlib.sha256(data).hexdigest()
            if (
                job.previous is not None
                and not options.rescan
                and _is_unchanged(job.previous, digest, options)
            ):
                return _apply_size_limits(job.previous, options)
            return _apply_size_limits(_decode_and_measure(data, digest, options, job), options)
    except ImageError as error:
        return _rejected_record(job, digest, error.reason)
    except LorakitError:
        raise  # a missing library or a wrong option, the same for every file
    except Exception as error:  # of one file, whatever its decoder raised: the others are measured
        detail = f"{type(error).__name__}: {first_line(error)}"
        return _rejected_record(job, digest, f"{DECODER_FAILED}: {detail} (convert it to PNG)")


def _decode_and_measure(data: bytes, digest: str, options: ScanOptions, job: ScanJob) -> Record:
    """Decode the file once, and measure everything on that."""
    inspected_video = None
    if video.is_video(job.file) and not signatures.is_image_header(data[:16]):
        inspected_video = video.inspect_video(data, job.file, options.max_pixels)
        data = video.frame_to_ppm(inspected_video.first_frame)
    source = decode.open_source(
        data,
        where=job.file,
        background=options.background,
        max_pixels=options.max_pixels,
        first_frame=options.first_frame,
    )
    with process_pool.exclusive(source.image.width * source.image.height > BIG_IMAGE_PIXELS):
        measured = decode.inspect_image(source)
    base_record = job.previous or Record(job.file, digest, "", 0, 0)
    record = replace(
        base_record,
        sha256=digest,
        content_hash=inspected_video.content_hash if inspected_video else measured.content_hash,
        video=inspected_video.video if inspected_video else None,
        width=measured.size[0],
        height=measured.size[1],
        **_kept_crop_fields(base_record, measured.size),
        phash=image_quality.phash(measured.thumbnail),
        background=decode.color_name(options.background) if measured.transparent else None,
        first_frame=measured.is_multi_frame,
    )
    extension_note = [] if inspected_video else _extension_note(job.file, measured.format)
    notes = [*extension_note, *measured.notes, *image_quality.quality_notes(measured.thumbnail)]
    notes += embedded_text_notes(data)
    return replace_notes(record, NOTES, notes)


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # reading the file reports the error


def _kept_crop_fields(previous: Record, size: tuple[int, int]) -> dict[str, Any]:
    """Return the crop fields of a new file: a crop set by hand stays if the size is the same."""
    if crops.has_user_crop(previous) and previous.size == size:
        return {"bucket": None, "crop_source": crops.USER}
    return {"bucket": None, "crop": None, "crop_source": None, "focal_point": None}


def _is_unchanged(previous: Record, digest: str, options: ScanOptions) -> bool:
    """Return True if the file is the same and would be decoded in the same way."""
    background = decode.color_name(options.background)
    return (
        previous.sha256 == digest
        and previous.content_hash != ""
        and previous.background in (None, background)
        and (options.first_frame or not previous.first_frame)
        and previous.width * previous.height <= options.max_pixels
    )


def _apply_size_limits(record: Record, options: ScanOptions) -> Record:
    """Exclude the image if its size is outside the limits; a `keep: false` of the user stays."""
    if not record.keep and note_code(record.reason) not in SCAN_REASONS:
        return record
    width, height = record.size
    reason = None
    if min(width, height) < options.min_side:
        reason = f"too_small: {width}x{height}, the shorter side is below {options.min_side} (--min-side)"
    elif max(width, height) > options.max_aspect_ratio * min(width, height):
        limit = f"{options.max_aspect_ratio:g} to 1 (--max-aspect-ratio)"
        reason = f"extreme_aspect_ratio: {width}x{height} is beyond {limit}"
    return manifest.change_record(record, keep=reason is None, reason=reason)


def _rejected_record(job: ScanJob, digest: str, reason: str) -> Record:
    """Return a record for a file that cannot be decoded; captions and the user's own reason are kept."""
    base_record = job.previous or Record(job.file, "", "", 0, 0)
    if (
        job.previous is not None
        and not job.previous.keep
        and note_code(job.previous.reason) not in SCAN_REASONS
    ):
        reason = job.previous.reason or reason
    blank = replace(base_record, sha256=digest, content_hash="", width=0, height=0, keep=False, reason=reason)
    blank = replace(blank, crop=None, bucket=None, phash=None, background=None, first_frame=False)
    blank = replace(blank, crop_source=None, focal_point=None, video=None)
    return replace_notes(blank, NOTES, [])


def _crashed_record(job: ScanJob) -> Record:
    """Return a record for a file that ended the process that read it."""
    return _rejected_record(job, "", CRASHED_REASON)


def _extension_note(file: str, format_name: str) -> list[str]:
    suffix = PurePosixPath(file).suffix.lower()
    expected = _FORMAT_SUFFIXES.get(format_name, ())
    usual = any(suffix in suffixes for suffixes in _FORMAT_SUFFIXES.values())
    if (expected and suffix not in expected) or (not expected and usual):
        return [f"wrong_extension: the content is {format_name}"]
    return []


def reject_name_collisions(listing: Listing, records: Sequence[Record]) -> list[Record]:
    """Exclude images that would share one caption file (`a.jpg` and `a.png` beside `a.txt`).

    A raw file or a document beside the image that was made from it takes no caption file from it.
    """
    by_stem: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if note_code(record.reason) not in NEVER_USABLE:
            by_stem[file_stem(record.file)].append(record.file)
    shared = set(map(file_stem, listing.sidecars))
    checked = []
    for record in records:
        stem = file_stem(record.file)
        if stem in shared and record.keep and len(by_stem[stem]) > 1:
            others = ", ".join(file for file in by_stem[stem] if file != record.file)
            reason = f"shared_caption_file: its caption file is also that of {others} (rename one of them)"
            record = replace(record, keep=False, reason=reason)
        checked.append(record)
    return checked
