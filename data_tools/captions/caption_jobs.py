"""Requests to a captioner, run so that it never waits for an image: decoding overlaps with generation.

A batch that fails is divided until the image that fails alone is found.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data_tools.captioners import Captioner, CaptionFailure, CaptionRequest, CaptionResponse
from data_tools.captions import edits
from data_tools.captions.answers import UnusableAnswer, extract_description
from data_tools.captions.refusals import is_refusal
from data_tools.captions.text import ANSWER_CLEANED, clean_answer
from lorakit.core import rng
from lorakit.core.errors import DataError
from lorakit.imaging import crops, decode
from lorakit.manifest import Record

MAX_CAPTION_LENGTH = 20_000  # characters of a model's answer
DECODING_THREADS = min(4, os.cpu_count() or 1)
CaptionResult = CaptionResponse | CaptionFailure


@dataclass(frozen=True)
class CaptionJob:
    """A request about one image; `key` identifies its answer in the journal."""

    record: Record
    prompt: str
    answer_index: int
    image_hash: str
    key: str

    @property
    def seed(self) -> int:
        """The seed of a sampled answer."""
        return rng.derive_seed(self.answer_index, "caption", self.record.content_hash, self.prompt) % 2**31


JobResult = tuple[CaptionJob, CaptionResult]


def captioner_view(folder: Path, record: Record, max_side: int) -> Image.Image:
    """Return the image for the model: upright, with the crop of training, and at most `max_side` pixels."""
    left, top, right, bottom = crops.training_crop(record)
    scale = min(1.0, max_side / max(right - left, bottom - top))
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    image = decode.read_record_image(folder, record)
    return decode.crop_and_resize(image, (left, top, right, bottom), size)


def run_jobs(
    folder: Path, jobs: Sequence[CaptionJob], captioner: Captioner, max_side: int
) -> Generator[JobResult]:
    """Yield each job with its answer or failure as it arrives; a bounded number of images is in memory.

    Closing the iterator cancels what is left.
    """
    answering = ThreadPoolExecutor(captioner.num_workers)
    loader = _ImageLoader(folder, jobs, max_side)
    in_flight: set[Future[list[JobResult]]] = set()
    has_result = False
    try:
        while True:
            # The first request goes alone: a server that is not there need not be asked by all threads.
            limit = 2 * captioner.num_workers if has_result else 1
            while len(in_flight) < limit and (batch := loader.next_batch(captioner.batch_size)):
                in_flight.add(answering.submit(_answer_batch, batch, captioner))
            if not in_flight:
                return
            done, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
            has_result = True
            for future in done:
                yield from future.result()
    finally:
        captioner.cancel()
        loader.close()
        answering.shutdown(cancel_futures=True)


class _ImageLoader:
    """Decodes the images of the next requests in threads; an image with several requests is decoded once."""

    def __init__(self, folder: Path, jobs: Sequence[CaptionJob], max_side: int) -> None:
        self._folder, self._max_side, self._jobs = folder, max_side, iter(jobs)
        self._pool = ThreadPoolExecutor(DECODING_THREADS)
        self._loading: deque[tuple[CaptionJob, Future[Image.Image | CaptionFailure]]] = deque()

    def next_batch(self, size: int) -> list[tuple[CaptionJob, Image.Image | CaptionFailure]]:
        """Return the next `size` jobs with their images, and start to decode as many after them."""
        self._load_ahead(2 * size + DECODING_THREADS)
        batch = [self._loading.popleft() for _ in range(min(size, len(self._loading)))]
        self._load_ahead(size + DECODING_THREADS)
        return [(job, future.result()) for job, future in batch]

    def close(self) -> None:
        """Cancel what is not decoded yet."""
        self._pool.shutdown(cancel_futures=True)

    def _load_ahead(self, count: int) -> None:
        while len(self._loading) < count and (job := next(self._jobs, None)) is not None:
            last = self._loading[-1] if self._loading else None
            same = last is not None and last[0].record is job.record
            future = last[1] if last and same else self._pool.submit(self._load, job.record)
            self._loading.append((job, future))

    def _load(self, record: Record) -> Image.Image | CaptionFailure:
        try:
            return captioner_view(self._folder, record, self._max_side)
        except DataError as error:
            return CaptionFailure("unreadable", error.message)


def _answer_batch(
    batch: Sequence[tuple[CaptionJob, Image.Image | CaptionFailure]], captioner: Captioner
) -> list[JobResult]:
    """Return the results of the jobs, in their order."""
    answered: dict[str, CaptionResult] = {
        job.key: image for job, image in batch if isinstance(image, CaptionFailure)
    }
    requests = [
        (job, CaptionRequest(image, job.prompt, job.seed))
        for job, image in batch
        if not isinstance(image, CaptionFailure)
    ]
    answered |= _answers(requests, captioner)
    return [(job, answered[job.key]) for job, _ in batch]


def _answers(
    requests: Sequence[tuple[CaptionJob, CaptionRequest]], captioner: Captioner
) -> dict[str, CaptionResult]:
    """Return answers and failures by key; a batch that fails is halved, unless every other would fail too."""
    if not requests:
        return {}
    try:
        responses = captioner.caption([request for _, request in requests])
    except CaptionFailure as failure:
        if len(requests) == 1 or failure.fatal:
            return {job.key: failure for job, _ in requests}
        middle = len(requests) // 2
        return _answers(requests[:middle], captioner) | _answers(requests[middle:], captioner)
    return {
        job.key: validated_response(response, job.prompt)
        for (job, _), response in zip(requests, responses, strict=True)
    }


def validated_response(response: CaptionResponse, prompt: str = "") -> CaptionResult:
    """Return the response as one line if it is a description; of a truncated one, the complete sentences."""
    if len(response.text) > MAX_CAPTION_LENGTH or sum(map(len, response.tags)) > MAX_CAPTION_LENGTH:
        message = f"the answer has {len(response.text)} characters (limit {MAX_CAPTION_LENGTH})"
        return CaptionFailure("invalid_response", message)
    described, removed = response.text, list[str]()
    if not response.tags:
        try:
            described, removed = extract_description(response.text, prompt)
        except UnusableAnswer as error:
            if is_refusal(response.text):
                return CaptionFailure("refused", clean_answer(response.text)[0][:120])
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
    return CaptionResponse(" ".join(text.split()), tags, notes=tuple(notes), usage=response.usage)
