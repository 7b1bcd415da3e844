"""Measure every image of a folder: hashes, size, what decoding it took, and why it cannot be used if so.

A bad file never stops the scan: it gets a record with `keep: false` and a reason. What an earlier manifest
says of an unchanged file is used again; an interrupted scan goes on from its journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

from data_tools import quality
from data_tools.listing import Listing
from lorakit import images, manifest, storage
from lorakit.color import Color
from lorakit.errors import DataError
from lorakit.images import ImageError
from lorakit.manifest import Record
from lorakit.progress import Progress

JOURNAL = ".lorakit-scan.jsonl"
POOL_FROM = 64  # below that many new images, starting processes takes longer than the work
# Reasons that the scan gives and may take back; any other reason is the user's decision and stays.
REASONS = frozenset(
    {
        "animated",
        "changed",
        "corrupt",
        "dangling_symlink",
        "empty",
        "json",
        "lfs_pointer",
        "markup",
        "missing",
    }
    | {
        "multipage",
        "name_collision",
        "no_decoder",
        "not_a_file",
        "raw",
        "symlink_outside",
        "svg",
        "too_large",
    }
    | {"too_many_pixels", "too_narrow", "too_small", "truncated", "unknown_format", "unreadable"}
    | {"unsupported_depth"}
)
NOTES = frozenset(
    {
        "alpha",
        "blurry",
        "border",
        "broken_exif",
        "broken_icc",
        "clipped",
        "cmyk",
        "depth",
        "first_frame",
        "icc",
    }
    | {"rotated", "suffix"}
)
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

    background: Color = images.WHITE
    max_pixels: int = images.MAX_PIXELS
    first_frame: bool = False
    min_side: int = 16
    max_aspect: float = 8.0
    workers: int | None = None  # processes; None: as many as there are processors
    fresh: bool = False  # measure again what an earlier manifest already says
    quiet: bool = True


@dataclass(frozen=True)
class _Job:
    root: str
    file: str
    options: ScanOptions
    prior: Record | None


def scan(listing: Listing, options: ScanOptions, *, journal: bool = False) -> list[Record]:
    """One record for every image of the listing, in its order; with `journal`, a stopped scan goes on."""
    prior = {} if options.fresh else _prior(listing.root)
    path = listing.root / JOURNAL
    done = {} if options.fresh else _read_journal(path)
    known = prior | done
    jobs = [_Job(str(listing.root), file, options, known.get(file)) for file in listing.images]
    records = []
    with Progress("images", len(jobs), quiet=options.quiet) as progress:
        for record in _measure_all(jobs, options):
            records.append(record)
            if journal and len(jobs) >= POOL_FROM and record.file not in done:
                storage.append_jsonl(path, manifest.row(record))
            progress.update(len(records))
    if journal:
        storage.remove_file(path)
    return _refuse_collisions(listing, records)


def code_of(line: str | None) -> str:
    """The code of a `code: text` reason or note."""
    return (line or "").partition(":")[0]


def replace_notes(record: Record, owned: Iterable[str], new: Sequence[str]) -> Record:
    """The record with the notes of the `owned` codes replaced by `new`; other notes stay."""
    codes = frozenset(owned)
    kept = tuple(note for note in record.notes if code_of(note) not in codes)
    return replace(record, notes=kept + tuple(new))


def _prior(root: Path) -> dict[str, Record]:
    if not (root / manifest.MANIFEST).is_file():
        return {}
    return {record.file: record for record in manifest.load(root)}


def _read_journal(path: Path) -> dict[str, Record]:
    """Records of an interrupted scan; a line that a crash cut off is measured again."""
    records = {}
    if path.is_file():
        for line in path.read_bytes().split(b"\n"):
            with contextlib.suppress(DataError):
                record = manifest.parse(line, str(path))
                records[record.file] = record
    return records


# ---- the work on one file ----------------------------------------------------------------------------------


def _measure(job: _Job) -> Record:
    """Measure one file; runs in a worker process."""
    prior, options = job.prior, job.options
    try:
        path = locate(Path(job.root), job.file)
        data = images.read_file(path)
    except ImageError as error:
        return _refused(job, "", error.reason)
    digest = hashlib.sha256(data).hexdigest()
    if prior is not None and _reusable(prior, digest, options):
        return _judge(prior, options)
    try:
        decoded = images.decode_bytes(
            data,
            where=job.file,
            background=options.background,
            max_pixels=options.max_pixels,
            first_frame=options.first_frame,
        )
    except ImageError as error:
        return _refused(job, digest, error.reason)
    picture = decoded.image
    carried = prior or Record(job.file, digest, "", 0, 0)
    record = replace(
        carried,
        sha256=digest,
        pixels=images.pixel_hash(picture),
        width=picture.width,
        height=picture.height,
        crop=None,
        bucket=None,
        phash=quality.phash(picture),
        background=images.color_name(options.background) if decoded.transparent else None,
        first_frame=decoded.first_of_many,
    )
    found = [*_suffix_note(job.file, decoded.format), *decoded.notes, *quality.notes(picture)]
    return _judge(replace_notes(record, NOTES, found), options)


def locate(root: Path, file: str) -> Path:
    """The file's path, once it is certain that it does not lead out of the dataset folder."""
    path = root / file
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise ImageError("dangling_symlink", "the link leads nowhere", where=str(path)) from error
        if not target.is_relative_to(root.resolve()):
            message = "the link leads out of the dataset folder"
            raise ImageError(
                "symlink_outside", message, where=str(path), remedy="copy the file into the folder"
            )
    return path


def _reusable(prior: Record, digest: str, options: ScanOptions) -> bool:
    """Whether the file is the same and would be decoded the same way."""
    background = images.color_name(options.background)
    return (
        prior.sha256 == digest
        and prior.pixels != ""
        and prior.background in (None, background)
        and (options.first_frame or not prior.first_frame)
        and prior.width * prior.height <= options.max_pixels
    )


def _judge(record: Record, options: ScanOptions) -> Record:
    """Keep or refuse by size; a `keep: false` that the user gave stays."""
    if not record.keep and code_of(record.reason) not in REASONS:
        return record
    width, height = record.size
    reason = None
    if min(width, height) < options.min_side:
        reason = f"too_small: {width}x{height}, the shorter side is below {options.min_side} (--min-side)"
    elif max(width, height) > options.max_aspect * min(width, height):
        reason = f"too_narrow: {width}x{height} is beyond {options.max_aspect:g} to 1 (--max-aspect)"
    return replace(record, keep=reason is None, reason=reason)


def _refused(job: _Job, digest: str, reason: str) -> Record:
    """A record for a file that gives no picture; captions and the user's own decision are carried along."""
    carried = job.prior or Record(job.file, "", "", 0, 0)
    if job.prior is not None and not job.prior.keep and code_of(job.prior.reason) not in REASONS:
        reason = job.prior.reason or reason
    blank = replace(carried, sha256=digest, pixels="", width=0, height=0, keep=False, reason=reason)
    blank = replace(blank, crop=None, bucket=None, phash=None, background=None, first_frame=False)
    return replace_notes(blank, NOTES, [])


def _suffix_note(file: str, format_name: str) -> list[str]:
    suffix = PurePosixPath(file).suffix.lower()
    expected = _FORMAT_SUFFIXES.get(format_name, ())
    usual = any(suffix in suffixes for suffixes in _FORMAT_SUFFIXES.values())
    if (expected and suffix not in expected) or (not expected and usual):
        return [f"suffix: the content is {format_name}, whatever the name says"]
    return []


# ---- all files ---------------------------------------------------------------------------------------------


def _measure_all(jobs: Sequence[_Job], options: ScanOptions) -> Iterator[Record]:
    """Measure in processes when there is enough to do, in order; without them if they cannot be started."""
    workers = min(options.workers or os.cpu_count() or 1, max(1, len(jobs) // 8))
    new = sum(job.prior is None for job in jobs)
    done = 0
    if workers > 1 and new >= POOL_FROM:
        # "spawn" works under any threads that the caller may run; a calling script without a __main__ guard
        # breaks the pool, and then the work goes on here.
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _ignore_interrupt)
        try:
            for record in pool.map(_measure, jobs, chunksize=8):
                yield record
                done += 1
            return
        except BrokenProcessPool:
            pass
        finally:
            pool.shutdown(cancel_futures=True)
    for job in jobs[done:]:
        yield _measure(job)


def _ignore_interrupt() -> None:
    """Ctrl-C reaches the whole group; only the parent answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _refuse_collisions(listing: Listing, records: Sequence[Record]) -> list[Record]:
    """Refuse images that would share one caption file (`a.jpg` and `a.png` beside `a.txt`)."""
    by_stem: dict[PurePosixPath, list[str]] = defaultdict(list)
    for record in records:
        by_stem[PurePosixPath(record.file).with_suffix("")].append(record.file)
    shared = {PurePosixPath(name).with_suffix("") for name in listing.sidecars}
    judged = []
    for record in records:
        stem = PurePosixPath(record.file).with_suffix("")
        others = [file for file in by_stem[stem] if file != record.file]
        if others and stem in shared and record.keep:
            reason = f"name_collision: shares its caption file with {', '.join(others)} (rename one of them)"
            record = replace(record, keep=False, reason=reason)
        judged.append(record)
    return judged
