"""Caption images with a model: cropped as for training, resumable, and no failure stops the rest.

Each answer is written to a journal at once, so a stopped run requests only the missing ones. An image without
an answer keeps its other captions and gets a note with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from data_tools.captioners import Captioner, CaptionFailure, CaptionRequest, CaptionResponse
from data_tools.captions import edits
from data_tools.captions.answers import UnusableAnswer, extract_description
from data_tools.captions.collect import CAPTIONS_REPLACED
from data_tools.captions.refusals import is_refusal
from data_tools.captions.text import ANSWER_CLEANED, clean_answer
from data_tools.scan import note_code, replace_notes
from lorakit.core import checksums, rng, storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.progress import Progress
from lorakit.imaging import crops, decode
from lorakit.manifest import Caption, Record

JOURNAL = ".lorakit-captions.jsonl"
MODEL_SOURCE = "model"
MAX_CAPTION_LENGTH = 20_000  # characters of a model's answer
WRITE_POLICIES = ("missing", "append", "overwrite")
CAPTION_FAILED = "caption_failed"
NOTES = frozenset({CAPTION_FAILED, CAPTIONS_REPLACED, ANSWER_CLEANED})
USER_SOURCES = ("file", "metadata")  # written by the user
PLACEHOLDER_SOURCES = ("template", "folder")  # replaced by a description of the image
_MAX_IDENTICAL_FAILURES = 20  # with nothing else in between: the rest is not requested
CaptionResult = CaptionResponse | CaptionFailure


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


@dataclass(frozen=True)
class _CaptionJob:
    """A request about one image; `key` identifies its answer in the journal."""

    record: Record
    prompt: str
    answer_index: int
    image_hash: str
    key: str

    @property
    def seed(self) -> int:
        return rng.derive_seed(self.answer_index, "caption", self.record.content_hash, self.prompt) % 2**31


def caption_images(
    root: Path,
    records: Sequence[Record],
    captioner: Captioner,
    options: CaptioningOptions,
    *,
    quiet: bool = True,
) -> list[Record]:
    """Return the records with the captioner's captions; where it failed, a note says why."""
    options.check()
    jobs_by_file = {record.file: list(_jobs_for_record(record, captioner, options)) for record in records}
    journaled = {} if options.regenerate else _journal_answers(root)
    # Equal images share a key: they are requested once, and get one answer.
    pending = {job.key: job for jobs in jobs_by_file.values() for job in jobs if job.key not in journaled}
    new_answers = _run_jobs(root, list(pending.values()), captioner, options, quiet)
    answers = journaled | new_answers
    return [
        _record_with_answers(record, jobs_by_file[record.file], answers, captioner, options)
        for record in records
    ]


def remove_caption_journal(root: Path) -> None:
    """Remove the journal, after its answers are in the manifest."""
    storage.remove_file(root / JOURNAL)


def captioner_view(root: Path, record: Record, max_side: int) -> Image.Image:
    """Return the image for the model: upright, with the crop of training, and at most `max_side` pixels."""
    left, top, right, bottom = crops.training_crop(record)
    scale = min(1.0, max_side / max(right - left, bottom - top))
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    image = decode.read_record_image(root, record)
    return decode.crop_and_resize(image, (left, top, right, bottom), size)


def _jobs_for_record(
    record: Record, captioner: Captioner, options: CaptioningOptions
) -> Iterator[_CaptionJob]:
    if not record.keep or not record.width:
        return
    user_captioned = any(caption.source in USER_SOURCES for caption in record.captions)
    if user_captioned and options.write_policy == "missing":
        return
    image_hash = crops.crop_hash(record)
    for prompt in options.prompts or captioner.prompts:
        existing = [
            c
            for c in record.captions
            if (c.source, c.model, c.prompt) == (MODEL_SOURCE, captioner.name, prompt)
        ]
        is_current = all(caption.image_hash in (None, image_hash) for caption in existing)
        up_to_date = not options.regenerate and existing and is_current
        if up_to_date and len(existing) >= options.captions_per_prompt:
            continue
        for answer_index in range(options.captions_per_prompt):
            parts = f"{image_hash} {captioner.name} {options.max_side} {answer_index} {prompt}"
            yield _CaptionJob(
                record, prompt, answer_index, image_hash, checksums.sha256_bytes(parts.encode())
            )


# ---- requests ----------------------------------------------------------------------------------------------


def _journal_answers(root: Path) -> dict[str, CaptionResponse]:
    """Return the answers of an interrupted run by key; failed requests are repeated."""
    path = root / JOURNAL
    if not path.is_file():
        return {}
    rows = storage.read_jsonl(path, torn_tail=True)
    return {
        row["key"]: CaptionResponse(row["text"], tuple(row["tags"]), notes=tuple(row["notes"]))
        for row in rows
        if row.keys() >= {"key", "text", "tags", "notes"}
    }


def _run_jobs(
    root: Path,
    jobs: Sequence[_CaptionJob],
    captioner: Captioner,
    options: CaptioningOptions,
    quiet: bool,
) -> dict[str, CaptionResult]:
    """Return answers and failures by key; `num_workers` threads hold a bounded number of images in memory."""
    results: dict[str, CaptionResult] = {}
    tracker = _FailureTracker()
    pending = iter(jobs)
    in_flight: set[Future[list[tuple[_CaptionJob, CaptionResult]]]] = set()
    pool = ThreadPoolExecutor(captioner.num_workers)
    try:
        with Progress("captions", len(jobs), quiet=quiet) as progress:
            while True:
                # The first request goes alone: a server that is not there need not be asked by all threads.
                limit = 2 * captioner.num_workers if results else 1
                while len(in_flight) < limit and (chunk := list(islice(pending, captioner.batch_size))):
                    in_flight.add(pool.submit(_run_batch, root, chunk, captioner, options))
                if not in_flight:
                    return results
                done, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
                for job, result in (pair for future in done for pair in future.result()):
                    results[job.key] = result
                    tracker.add(result)
                    _append_to_journal(root, job, result)
                progress.update(len(results))
                if reason := tracker.stop_reason:
                    return results | {job.key: reason for job in jobs if job.key not in results}
    finally:
        captioner.cancel()
        pool.shutdown(cancel_futures=True)


class _FailureTracker:
    """Decides when to stop: after a fatal failure, or if every image fails in the same way."""

    def __init__(self) -> None:
        self.stop_reason: CaptionFailure | None = None
        self._consecutive_failures = 0
        self._code: str | None = None
        self._num_results = 0

    def _is_dead(self, failure: CaptionFailure) -> bool:
        """Return True if the very first request did not reach the server."""
        return self._num_results == 0 and failure.code == "unreachable"

    def add(self, result: CaptionResult) -> None:
        """Count one more result."""
        if isinstance(result, CaptionFailure) and (result.fatal or self._is_dead(result)):
            self.stop_reason = result
        self._num_results += 1
        if (
            isinstance(result, CaptionResponse)
            or result.code == "unreadable"
            or self._code not in (None, result.code)
        ):
            self._code, self._consecutive_failures = "", 0
        elif self._code != "":
            self._code, self._consecutive_failures = result.code, self._consecutive_failures + 1
            if self.stop_reason is None and self._consecutive_failures >= _MAX_IDENTICAL_FAILURES:
                self.stop_reason = result


def _run_batch(
    root: Path, jobs: list[_CaptionJob], captioner: Captioner, options: CaptioningOptions
) -> list[tuple[_CaptionJob, CaptionResult]]:
    """Return the results in the order of the jobs; if a batch fails, each job is requested alone."""
    requests: list[CaptionRequest] = []
    results: dict[str, CaptionResult] = {}
    for job in jobs:
        try:
            image = captioner_view(root, job.record, options.max_side)
            requests.append(CaptionRequest(image, job.prompt, job.seed))
        except DataError as error:
            results[job.key] = CaptionFailure("unreadable", error.message)
    remaining = [job for job in jobs if job.key not in results]
    for batch, batch_requests in _batches_then_singles(remaining, requests):
        if all(job.key in results for job in batch):
            continue
        try:
            responses = captioner.caption(batch_requests)
            results |= {job.key: _validated(response) for job, response in zip(batch, responses, strict=True)}
        except CaptionFailure as failure:
            if len(batch) == 1 or failure.fatal:
                results |= {job.key: failure for job in batch}
    return [(job, results[job.key]) for job in jobs]


def _batches_then_singles(
    jobs: list[_CaptionJob], requests: list[CaptionRequest]
) -> Iterator[tuple[list[_CaptionJob], list[CaptionRequest]]]:
    """Yield all jobs with their requests as one batch, then each alone."""
    if jobs:
        yield jobs, requests
    if len(jobs) > 1:
        yield from (([job], [request]) for job, request in zip(jobs, requests, strict=True))


def _validated(response: CaptionResponse) -> CaptionResult:
    """Return the response as one line if it is a description; of a truncated one, the complete sentences."""
    if len(response.text) > MAX_CAPTION_LENGTH or sum(map(len, response.tags)) > MAX_CAPTION_LENGTH:
        message = f"the answer has {len(response.text)} characters (limit {MAX_CAPTION_LENGTH})"
        return CaptionFailure("invalid_response", message)
    try:
        described, removed = extract_description(response.text)
    except UnusableAnswer as error:
        return CaptionFailure(error.code, error.message)
    answer, notes = clean_answer(described)
    if removed:
        notes.append(f"{ANSWER_CLEANED}: {', '.join(removed)} removed from the model's answer")
    text = edits.whole_sentences(answer) if response.truncated else answer
    if not answer:
        return CaptionFailure("empty_response", "the model returned no text")
    if is_refusal(text or answer):
        return CaptionFailure("refused", answer[:120])
    if not text:
        message = "the answer was truncated within its first sentence (raise --max-tokens)"
        return CaptionFailure("truncated_response", message)
    tags = tuple(clean_answer(tag)[0] for tag in response.tags)
    return CaptionResponse(" ".join(text.split()), tags, notes=tuple(notes))


def _append_to_journal(root: Path, job: _CaptionJob, result: CaptionResult) -> None:
    row: dict[str, Any] = {"key": job.key, "file": job.record.file}
    if isinstance(result, CaptionResponse):
        row |= {"text": result.text, "tags": list(result.tags), "notes": list(result.notes)}
    else:
        row |= {"error": result.reason}
    storage.append_jsonl(root / JOURNAL, row)


# ---- recording ---------------------------------------------------------------------------------------------


def _record_with_answers(
    record: Record,
    jobs: Sequence[_CaptionJob],
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
