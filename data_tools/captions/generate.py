"""Have a model caption the images: cropped as they will be trained, resumable, and no failure stops the rest.

Every answer goes into a journal at once, so a stopped run asks only what is still open. An image whose asking
fails keeps what captions it has and gets a note with the reason.
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
from data_tools.captions.collect import CAPTIONS_REPLACED
from data_tools.captions.lint import is_refusal
from data_tools.scan import note_code, replace_notes
from lorakit.core import rng, storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.progress import Progress
from lorakit.imaging import crops, decode
from lorakit.manifest import Caption, Record

JOURNAL = ".lorakit-captions.jsonl"
MODEL_SOURCE = "model"
CAPTION_FAILED = "caption_failed"
NOTES = frozenset({CAPTION_FAILED, CAPTIONS_REPLACED})
USER_SOURCES = ("sidecar", "metadata")  # by a person
PLACEHOLDER_SOURCES = ("template", "folder")  # until something describes the picture
_MAX_IDENTICAL_FAILURES = (
    20  # images that fail alike, and none that does not, after which the others are not asked
)
CaptionResult = CaptionResponse | CaptionFailure


@dataclass(frozen=True)
class CaptioningOptions:
    """`prompts` (default: the captioner's own) give a variant each, `variants` as many answers to each.

    `which`: `missing` leaves images alone that a person has captioned, `add` gives them further variants,
    `overwrite` puts the model's captions in place of theirs (their files stay as they are). `side` is the
    longest side, in pixels, that the model is shown. `again` asks where the answer is known, too.
    """

    prompts: tuple[str, ...] = ()
    variants: int = 1
    which: str = "missing"
    side: int = 1024
    again: bool = False

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work."""
        if self.which not in ("missing", "add", "overwrite"):
            remedy = "use missing, add or overwrite"
            raise ConfigError(f"unknown choice {self.which!r}", where="which", remedy=remedy)
        if self.variants < 1 or self.side < 32:
            raise ConfigError(
                "variants must be at least 1 and side 32", where="variants", remedy="use 1 and 1024"
            )


@dataclass(frozen=True)
class _CaptionJob:
    """What is asked about one image; `key` is where the answer is kept."""

    record: Record
    prompt: str
    variant: int
    seen: str
    key: str

    @property
    def seed(self) -> int:
        return rng.derive_seed(self.variant, "caption", self.record.pixels, self.prompt) % 2**31


def caption_images(
    root: Path,
    records: Sequence[Record],
    captioner: Captioner,
    options: CaptioningOptions,
    *,
    quiet: bool = True,
) -> list[Record]:
    """The records with the captioner's words; those it failed at carry a note."""
    options.check()
    questions = {record.file: list(_jobs_for_record(record, captioner, options)) for record in records}
    known = {} if options.again else _journal_answers(root)
    # Equal pictures are one question, and get one answer.
    asked = {q.key: q for group in questions.values() for q in group if q.key not in known}
    fresh = _run_jobs(root, list(asked.values()), captioner, options, quiet)
    answers = known | fresh
    return [
        _record_with_answers(record, questions[record.file], answers, captioner, options)
        for record in records
    ]


def remove_caption_journal(root: Path) -> None:
    """Remove the journal, once the manifest holds what it says."""
    storage.remove_file(root / JOURNAL)


def captioner_view(root: Path, record: Record, side: int) -> Image.Image:
    """What the model is shown: the upright picture's part that training keeps, at most `side` pixels long."""
    left, top, right, bottom = crops.training_crop(record)
    scale = min(1.0, side / max(right - left, bottom - top))
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    picture = decode.read_record_image(root, record)
    return decode.crop_and_resize(picture, (left, top, right, bottom), size)


def _jobs_for_record(
    record: Record, captioner: Captioner, options: CaptioningOptions
) -> Iterator[_CaptionJob]:
    if not record.keep or not record.width:
        return
    by_hand = any(caption.source in USER_SOURCES for caption in record.captions)
    if by_hand and options.which == "missing":
        return
    seen = crops.crop_hash(record)
    for prompt in options.prompts or captioner.prompts:
        has = [
            c
            for c in record.captions
            if (c.source, c.model, c.prompt) == (MODEL_SOURCE, captioner.name, prompt)
        ]
        fresh = not options.again and has and all(caption.seen in (None, seen) for caption in has)
        if fresh and len(has) >= options.variants:
            continue
        for variant in range(options.variants):
            parts = f"{seen} {captioner.name} {options.side} {variant} {prompt}"
            yield _CaptionJob(record, prompt, variant, seen, storage.sha256_bytes(parts.encode()))


# ---- asking ------------------------------------------------------------------------------------------------


def _journal_answers(root: Path) -> dict[str, CaptionResponse]:
    """The answers of an interrupted run; failures are asked again."""
    path = root / JOURNAL
    if not path.is_file():
        return {}
    rows = storage.read_jsonl(path, torn_tail=True)
    return {
        row["key"]: CaptionResponse(row["text"], tuple(row["tags"]))
        for row in rows
        if row.keys() >= {"key", "text", "tags"}
    }


def _run_jobs(
    root: Path,
    questions: Sequence[_CaptionJob],
    captioner: Captioner,
    options: CaptioningOptions,
    quiet: bool,
) -> dict[str, CaptionResult]:
    """Answers and failures by key, from `workers` threads with a bounded number of pictures in memory."""
    results: dict[str, CaptionResult] = {}
    failed = _FailureTracker()
    waiting = iter(questions)
    flying: set[Future[list[tuple[_CaptionJob, CaptionResult]]]] = set()
    pool = ThreadPoolExecutor(captioner.workers)
    try:
        with Progress("captions", len(questions), quiet=quiet) as progress:
            while True:
                while len(flying) < 2 * captioner.workers and (
                    chunk := list(islice(waiting, captioner.batch))
                ):
                    flying.add(pool.submit(_run_batch, root, chunk, captioner, options))
                if not flying:
                    return results
                done, flying = wait(flying, return_when=FIRST_COMPLETED)
                for question, result in (pair for future in done for pair in future.result()):
                    results[question.key] = result
                    failed.count(result)
                    _append_to_journal(root, question, result)
                progress.update(len(results))
                if reason := failed.verdict:
                    return results | {q.key: reason for q in questions if q.key not in results}
    finally:
        captioner.stop()
        pool.shutdown(cancel_futures=True)


class _FailureTracker:
    """Whether there is any sense in asking on."""

    def __init__(self) -> None:
        self.verdict: CaptionFailure | None = None
        self._alike = 0
        self._code: str | None = None

    def count(self, result: CaptionResult) -> None:
        """Take one more result into account."""
        if isinstance(result, CaptionFailure) and result.hopeless:
            self.verdict = result
        if (
            isinstance(result, CaptionResponse)
            or result.code == "unreadable"
            or self._code not in (None, result.code)
        ):
            self._code, self._alike = "", 0
        elif self._code != "":
            self._code, self._alike = result.code, self._alike + 1
            self.verdict = self.verdict or (result if self._alike >= _MAX_IDENTICAL_FAILURES else None)


def _run_batch(
    root: Path, chunk: list[_CaptionJob], captioner: Captioner, options: CaptioningOptions
) -> list[tuple[_CaptionJob, CaptionResult]]:
    """Answers in the order of the questions; when a batch fails, each is asked alone."""
    asks: list[CaptionRequest] = []
    found: dict[str, CaptionResult] = {}
    for question in chunk:
        try:
            asks.append(
                CaptionRequest(
                    captioner_view(root, question.record, options.side), question.prompt, question.seed
                )
            )
        except DataError as error:
            found[question.key] = CaptionFailure("unreadable", error.message)
    open_ = [question for question in chunk if question.key not in found]
    for group, pictures in _batches_then_singles(open_, asks):
        if all(question.key in found for question in group):
            continue
        try:
            answers = captioner.describe(pictures)
            found |= {q.key: _validated(answer) for q, answer in zip(group, answers, strict=True)}
        except CaptionFailure as failure:
            if len(group) == 1 or failure.hopeless:
                found |= {question.key: failure for question in group}
    return [(question, found[question.key]) for question in chunk]


def _batches_then_singles(
    questions: list[_CaptionJob], asks: list[CaptionRequest]
) -> Iterator[tuple[list[_CaptionJob], list[CaptionRequest]]]:
    """All at once, then one by one."""
    if questions:
        yield questions, asks
    if len(questions) > 1:
        yield from (([question], [ask]) for question, ask in zip(questions, asks, strict=True))


def _validated(answer: CaptionResponse) -> CaptionResult:
    """The answer if it describes anything: of one that was cut off, its whole sentences."""
    text = edits.whole_sentences(answer.text) if answer.cut else answer.text
    if not answer.text:
        return CaptionFailure("empty", "the model said nothing")
    if is_refusal(text or answer.text):
        return CaptionFailure("refused", answer.text[:120])
    if not text:
        return CaptionFailure("cut_off", "the answer was cut off within its first sentence (raise --tokens)")
    return replace(answer, text=" ".join(text.split()), cut=False)


def _append_to_journal(root: Path, question: _CaptionJob, result: CaptionResult) -> None:
    row: dict[str, Any] = {"key": question.key, "file": question.record.file}
    if isinstance(result, CaptionResponse):
        row |= {"text": result.text, "tags": list(result.tags)}
    else:
        row |= {"failure": result.reason}
    storage.append_jsonl(root / JOURNAL, row)


# ---- recording ---------------------------------------------------------------------------------------------


def _record_with_answers(
    record: Record,
    questions: Sequence[_CaptionJob],
    answers: Mapping[str, CaptionResult],
    captioner: Captioner,
    options: CaptioningOptions,
) -> Record:
    if not questions:
        return record
    made: list[Caption] = []
    tags: tuple[str, ...] = ()
    failures: list[str] = []
    for question in questions:
        answer = answers[question.key]
        if isinstance(answer, CaptionFailure):
            failures.append(f"{CAPTION_FAILED}: {captioner.name}: {answer.reason}")
        else:
            made.append(
                Caption(answer.text, MODEL_SOURCE, captioner.name, question.prompt, seen=question.seen)
            )
            tags = tags or answer.tags
    replaced = any(note_code(note) == CAPTIONS_REPLACED for note in record.notes)
    replaced = replaced or bool(made and options.which == "overwrite")
    notes = [f"{CAPTIONS_REPLACED}: a model's words count instead of the caption file's"] if replaced else []
    noted = replace_notes(record, NOTES, [*notes, *dict.fromkeys(failures)])
    if not made:
        return noted
    prompts = {caption.prompt for caption in made}
    kept = [
        caption
        for caption in record.captions
        if caption.source not in PLACEHOLDER_SOURCES
        and not (caption.source in USER_SOURCES and replaced)
        and not (caption.model == captioner.name and caption.prompt in prompts)
    ]
    texts = {caption.text: caption for caption in reversed([*kept, *made])}  # the same words count once
    captions = tuple(caption for caption in [*kept, *made] if texts[caption.text] is caption)
    return replace(noted, captions=captions, tags=record.tags or tags)
