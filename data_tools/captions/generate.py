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

from data_tools.captioners import Answer, Ask, Captioner, CaptionFailure
from data_tools.captions import edits
from data_tools.captions.collect import REPLACED
from data_tools.captions.lint import is_refusal
from data_tools.scan import code_of, replace_notes
from lorakit.core import rng, storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.progress import Progress
from lorakit.imaging import crops, decode
from lorakit.manifest import Caption, Record

JOURNAL = ".lorakit-captions.jsonl"
SOURCE = "model"
FAILED = "caption_failed"
NOTES = frozenset({FAILED, REPLACED})
WRITTEN = ("sidecar", "metadata")  # by a person
STAND_INS = ("template", "folder")  # until something describes the picture
_GIVE_UP = 20  # images that fail alike, and none that does not, after which the others are not asked
Result = Answer | CaptionFailure


@dataclass(frozen=True)
class DescribeOptions:
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
class _Question:
    """What is asked about one image; `key` is where the answer is kept."""

    record: Record
    prompt: str
    variant: int
    seen: str
    key: str

    @property
    def seed(self) -> int:
        return rng.key(self.variant, "caption", self.record.pixels, self.prompt) % 2**31


def describe(
    root: Path,
    records: Sequence[Record],
    captioner: Captioner,
    options: DescribeOptions,
    *,
    quiet: bool = True,
) -> list[Record]:
    """The records with the captioner's words; those it failed at carry a note."""
    options.check()
    questions = {record.file: list(_questions(record, captioner, options)) for record in records}
    known = {} if options.again else _known(root)
    # Equal pictures are one question, and get one answer.
    asked = {q.key: q for group in questions.values() for q in group if q.key not in known}
    fresh = _ask_all(root, list(asked.values()), captioner, options, quiet)
    answers = known | fresh
    return [_answered(record, questions[record.file], answers, captioner, options) for record in records]


def forget(root: Path) -> None:
    """Remove the journal, once the manifest holds what it says."""
    storage.remove_file(root / JOURNAL)


def shown(root: Path, record: Record, side: int) -> Image.Image:
    """What the model is shown: the upright picture's part that training keeps, at most `side` pixels long."""
    left, top, right, bottom = crops.kept_box(record)
    scale = min(1.0, side / max(right - left, bottom - top))
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    picture = decode.read(root, record)
    return decode.fit(picture, (left, top, right, bottom), size)


def _questions(record: Record, captioner: Captioner, options: DescribeOptions) -> Iterator[_Question]:
    if not record.keep or not record.width:
        return
    by_hand = any(caption.source in WRITTEN for caption in record.captions)
    if by_hand and options.which == "missing":
        return
    seen = crops.shown_hash(record)
    for prompt in options.prompts or captioner.prompts:
        has = [
            c for c in record.captions if (c.source, c.model, c.prompt) == (SOURCE, captioner.name, prompt)
        ]
        fresh = not options.again and has and all(caption.seen in (None, seen) for caption in has)
        if fresh and len(has) >= options.variants:
            continue
        for variant in range(options.variants):
            parts = f"{seen} {captioner.name} {options.side} {variant} {prompt}"
            yield _Question(record, prompt, variant, seen, storage.sha256_bytes(parts.encode()))


# ---- asking ------------------------------------------------------------------------------------------------


def _known(root: Path) -> dict[str, Answer]:
    """The answers of an interrupted run; failures are asked again."""
    path = root / JOURNAL
    if not path.is_file():
        return {}
    rows = storage.read_jsonl(path, torn_tail=True)
    return {
        row["key"]: Answer(row["text"], tuple(row["tags"]))
        for row in rows
        if row.keys() >= {"key", "text", "tags"}
    }


def _ask_all(
    root: Path, questions: Sequence[_Question], captioner: Captioner, options: DescribeOptions, quiet: bool
) -> dict[str, Result]:
    """Answers and failures by key, from `workers` threads with a bounded number of pictures in memory."""
    results: dict[str, Result] = {}
    failed = _Failed()
    waiting = iter(questions)
    flying: set[Future[list[tuple[_Question, Result]]]] = set()
    pool = ThreadPoolExecutor(captioner.workers)
    try:
        with Progress("captions", len(questions), quiet=quiet) as progress:
            while True:
                while len(flying) < 2 * captioner.workers and (
                    chunk := list(islice(waiting, captioner.batch))
                ):
                    flying.add(pool.submit(_ask, root, chunk, captioner, options))
                if not flying:
                    return results
                done, flying = wait(flying, return_when=FIRST_COMPLETED)
                for question, result in (pair for future in done for pair in future.result()):
                    results[question.key] = result
                    failed.count(result)
                    _note(root, question, result)
                progress.update(len(results))
                if reason := failed.verdict:
                    return results | {q.key: reason for q in questions if q.key not in results}
    finally:
        captioner.stop()
        pool.shutdown(cancel_futures=True)


class _Failed:
    """Whether there is any sense in asking on."""

    def __init__(self) -> None:
        self.verdict: CaptionFailure | None = None
        self._alike = 0
        self._code: str | None = None

    def count(self, result: Result) -> None:
        """Take one more result into account."""
        if isinstance(result, CaptionFailure) and result.hopeless:
            self.verdict = result
        if isinstance(result, Answer) or result.code == "unreadable" or self._code not in (None, result.code):
            self._code, self._alike = "", 0
        elif self._code != "":
            self._code, self._alike = result.code, self._alike + 1
            self.verdict = self.verdict or (result if self._alike >= _GIVE_UP else None)


def _ask(
    root: Path, chunk: list[_Question], captioner: Captioner, options: DescribeOptions
) -> list[tuple[_Question, Result]]:
    """Answers in the order of the questions; when a batch fails, each is asked alone."""
    asks: list[Ask] = []
    found: dict[str, Result] = {}
    for question in chunk:
        try:
            asks.append(Ask(shown(root, question.record, options.side), question.prompt, question.seed))
        except DataError as error:
            found[question.key] = CaptionFailure("unreadable", error.message)
    open_ = [question for question in chunk if question.key not in found]
    for group, pictures in _attempts(open_, asks):
        if all(question.key in found for question in group):
            continue
        try:
            answers = captioner.describe(pictures)
            found |= {q.key: _checked(answer) for q, answer in zip(group, answers, strict=True)}
        except CaptionFailure as failure:
            if len(group) == 1 or failure.hopeless:
                found |= {question.key: failure for question in group}
    return [(question, found[question.key]) for question in chunk]


def _attempts(questions: list[_Question], asks: list[Ask]) -> Iterator[tuple[list[_Question], list[Ask]]]:
    """All at once, then one by one."""
    if questions:
        yield questions, asks
    if len(questions) > 1:
        yield from (([question], [ask]) for question, ask in zip(questions, asks, strict=True))


def _checked(answer: Answer) -> Result:
    """The answer if it describes anything: of one that was cut off, its whole sentences."""
    text = edits.whole_sentences(answer.text) if answer.cut else answer.text
    if not answer.text:
        return CaptionFailure("empty", "the model said nothing")
    if is_refusal(text or answer.text):
        return CaptionFailure("refused", answer.text[:120])
    if not text:
        return CaptionFailure("cut_off", "the answer was cut off within its first sentence (raise --tokens)")
    return replace(answer, text=" ".join(text.split()), cut=False)


def _note(root: Path, question: _Question, result: Result) -> None:
    row: dict[str, Any] = {"key": question.key, "file": question.record.file}
    if isinstance(result, Answer):
        row |= {"text": result.text, "tags": list(result.tags)}
    else:
        row |= {"failure": result.reason}
    storage.append_jsonl(root / JOURNAL, row)


# ---- recording ---------------------------------------------------------------------------------------------


def _answered(
    record: Record,
    questions: Sequence[_Question],
    answers: Mapping[str, Result],
    captioner: Captioner,
    options: DescribeOptions,
) -> Record:
    if not questions:
        return record
    made: list[Caption] = []
    tags: tuple[str, ...] = ()
    failures: list[str] = []
    for question in questions:
        answer = answers[question.key]
        if isinstance(answer, CaptionFailure):
            failures.append(f"{FAILED}: {captioner.name}: {answer.reason}")
        else:
            made.append(Caption(answer.text, SOURCE, captioner.name, question.prompt, seen=question.seen))
            tags = tags or answer.tags
    replaced = any(code_of(note) == REPLACED for note in record.notes)
    replaced = replaced or bool(made and options.which == "overwrite")
    notes = [f"{REPLACED}: a model's words count instead of the caption file's"] if replaced else []
    noted = replace_notes(record, NOTES, [*notes, *dict.fromkeys(failures)])
    if not made:
        return noted
    prompts = {caption.prompt for caption in made}
    kept = [
        caption
        for caption in record.captions
        if caption.source not in STAND_INS
        and not (caption.source in WRITTEN and replaced)
        and not (caption.model == captioner.name and caption.prompt in prompts)
    ]
    texts = {caption.text: caption for caption in reversed([*kept, *made])}  # the same words count once
    captions = tuple(caption for caption in [*kept, *made] if texts[caption.text] is caption)
    return replace(noted, captions=captions, tags=record.tags or tags)
