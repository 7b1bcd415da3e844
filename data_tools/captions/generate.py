"""Caption images with a model: cropped as for training, resumable, and no failure stops the rest.

Each answer is written to a journal at once, so a stopped run requests only the missing ones. An image without
an answer keeps its other captions and gets a note with the reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_tools.captioners import Captioner, CaptionFailure
from data_tools.captions.caption_counts import CaptioningCounts
from data_tools.captions.caption_jobs import CaptionJob, CaptionResult, JobResult, run_jobs
from data_tools.captions.caption_journal import CaptionJournal
from data_tools.captions.collect import CAPTIONS_REPLACED
from data_tools.captions.text import ANSWER_CLEANED
from data_tools.scan import note_code, replace_notes
from lorakit.core import checksums
from lorakit.core.errors import ConfigError
from lorakit.core.progress import Progress, print_line
from lorakit.imaging import crops
from lorakit.manifest import Caption, Record

MODEL_SOURCE = "model"
WRITE_POLICIES = ("missing", "append", "overwrite")
CAPTION_FAILED = "caption_failed"
NOTES = frozenset({CAPTION_FAILED, CAPTIONS_REPLACED, ANSWER_CLEANED})
USER_SOURCES = ("file", "metadata")  # written by the user
PLACEHOLDER_SOURCES = ("template", "folder")  # replaced by a description of the image
JobRunner = Callable[[Path, Sequence[CaptionJob], Captioner, int], Generator[JobResult]]
"""Yields the results of jobs on images of a folder with at most so many pixels a side: `run_jobs`, or Ray."""


@dataclass(frozen=True)
class CaptioningOptions:
    """Prompts, and the images to caption.

    Each of `prompts` (default: the captioner's own) gives `captions_per_prompt` captions. `write_policy`:
    `missing` skips images that the user has captioned, `append` adds captions to theirs, `overwrite` uses the
    model's captions instead of theirs (the user's files do not change). `max_side` limits the image for the
    model, in pixels. With `regenerate`, known answers are requested again.
    """

    prompts: tuple[str, ...] = ()
    captions_per_prompt: int = 1
    write_policy: str = "missing"
    max_side: int = 1024
    regenerate: bool = False

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work."""
        if self.write_policy not in WRITE_POLICIES:
            remedy = f"use {', '.join(WRITE_POLICIES)}"
            raise ConfigError(
                f"unknown write policy {self.write_policy!r}", where="write_policy", remedy=remedy
            )
        if self.captions_per_prompt < 1 or self.max_side < 32:
            message = "captions_per_prompt must be at least 1, and max_side at least 32"
            raise ConfigError(message, where="captions-per-prompt", remedy="use 1 and 1024")


def caption_images(
    records: Sequence[Record],
    captioner: Captioner,
    options: CaptioningOptions,
    journal: CaptionJournal,
    *,
    runner: JobRunner = run_jobs,
    quiet: bool = True,
) -> tuple[list[Record], CaptioningCounts]:
    """Return the records with the captioner's captions, and the numbers; failures are notes with the reason.

    The images are in the journal's folder.
    """
    options.check()
    jobs_by_file = {record.file: list(_jobs_for_record(record, captioner, options)) for record in records}
    jobs = [job for file_jobs in jobs_by_file.values() for job in file_jobs]
    journaled = {} if options.regenerate else journal.answers()
    # Equal images share a key: they are requested once, and get one answer.
    pending = {job.key: job for job in jobs if job.key not in journaled}
    counts = CaptioningCounts(
        num_known=sum(job.key in journaled for job in jobs) + _num_current(records, captioner, options),
        num_requests=len(pending),
        quiet=quiet,
    )
    if counts.num_known and not quiet:
        print_line(f"captions: {counts.num_known} are there already, {counts.num_requests} are requested")
    results = runner(journal.folder, list(pending.values()), captioner, options.max_side)
    answers = journaled | _collect_results(results, pending, journal, counts)
    captioned = [
        _record_with_answers(record, jobs_by_file[record.file], answers, captioner, options)
        for record in records
    ]
    return captioned, counts


def _collect_results(
    results: Generator[JobResult],
    pending: Mapping[str, CaptionJob],
    journal: CaptionJournal,
    counts: CaptioningCounts,
) -> dict[str, CaptionResult]:
    """Return answers and failures by key, written to the journal; after a fatal one, the rest has its"
    " reason."""
    collected: dict[str, CaptionResult] = {}
    with Progress("captions", len(pending), quiet=counts.quiet) as progress, contextlib.closing(results):
        for job, result in results:
            collected[job.key] = result
            counts.add(result)
            journal.append(job, result)
            progress.update(len(collected))
            if counts.stop_reason:
                break
    if counts.stop_reason:
        counts.add_not_requested(len(pending) - len(collected))
        return collected | {key: counts.stop_reason for key in pending if key not in collected}
    return collected


def _num_current(records: Sequence[Record], captioner: Captioner, options: CaptioningOptions) -> int:
    """Return the number of answers in the manifest that are not requested again."""
    prompts = options.prompts or captioner.prompts
    return sum(
        len(_existing(record, captioner, prompt))
        for record in records
        if _is_captioned(record, options)
        for prompt in prompts
        if _is_current(record, captioner, prompt, options)
    )


def _is_captioned(record: Record, options: CaptioningOptions) -> bool:
    """Return True for an image that the model is to caption."""
    user_captioned = any(caption.source in USER_SOURCES for caption in record.captions)
    return record.keep and bool(record.width) and not (user_captioned and options.write_policy == "missing")


def _existing(record: Record, captioner: Captioner, prompt: str) -> list[Caption]:
    key = (MODEL_SOURCE, captioner.name, prompt)
    return [c for c in record.captions if (c.source, c.model, c.prompt) == key]


def _is_current(record: Record, captioner: Captioner, prompt: str, options: CaptioningOptions) -> bool:
    """Return True if the manifest has the answers to a prompt, about the image as it is cropped now."""
    existing, image_hash = _existing(record, captioner, prompt), crops.crop_hash(record)
    is_current = all(caption.image_hash in (None, image_hash) for caption in existing)
    return not options.regenerate and is_current and len(existing) >= options.captions_per_prompt


def _jobs_for_record(
    record: Record, captioner: Captioner, options: CaptioningOptions
) -> Iterator[CaptionJob]:
    if not _is_captioned(record, options):
        return
    image_hash = crops.crop_hash(record)
    for prompt in options.prompts or captioner.prompts:
        if _is_current(record, captioner, prompt, options):
            continue
        for answer_index in range(options.captions_per_prompt):
            parts = f"{image_hash} {captioner.name} {options.max_side} {answer_index} {prompt}"
            yield CaptionJob(record, prompt, answer_index, image_hash, checksums.sha256_bytes(parts.encode()))


# ---- recording ---------------------------------------------------------------------------------------------


def _record_with_answers(
    record: Record,
    jobs: Sequence[CaptionJob],
    answers: Mapping[str, CaptionResult],
    captioner: Captioner,
    options: CaptioningOptions,
) -> Record:
    if not jobs:
        return record
    new_captions: list[Caption] = []
    tags: tuple[str, ...] = ()
    failures: list[str] = []
    cleaned: list[str] = []
    for job in jobs:
        answer = answers[job.key]
        if isinstance(answer, CaptionFailure):
            failures.append(f"{CAPTION_FAILED}: {captioner.name}: {answer.reason}")
        else:
            caption = Caption(
                answer.text, MODEL_SOURCE, captioner.name, job.prompt, image_hash=job.image_hash
            )
            new_captions.append(caption)
            tags = tags or answer.tags
            cleaned += answer.notes
    replaced = any(note_code(note) == CAPTIONS_REPLACED for note in record.notes)
    replaced = replaced or bool(new_captions and options.write_policy == "overwrite")
    text = f"{CAPTIONS_REPLACED}: a model's captions are used instead of the caption file's"
    notes = [text] if replaced else []
    with_notes = replace_notes(record, NOTES, [*notes, *dict.fromkeys([*cleaned, *failures])])
    if not new_captions:
        return with_notes
    prompts = {caption.prompt for caption in new_captions}
    kept = [
        caption
        for caption in record.captions
        if caption.source not in PLACEHOLDER_SOURCES
        and not (caption.source in USER_SOURCES and replaced)
        and not (caption.model == captioner.name and caption.prompt in prompts)
    ]
    # Of captions with equal texts, the first one counts.
    by_text = {caption.text: caption for caption in reversed([*kept, *new_captions])}
    captions = tuple(caption for caption in [*kept, *new_captions] if by_text[caption.text] is caption)
    return replace(with_notes, captions=captions, tags=record.tags or tags)
