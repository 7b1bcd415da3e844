"""Cached features and scores of images, addressed by content.

An evaluation that was stopped, or is repeated with one more checkpoint or prompt, computes only the new
images.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lorakit.core import checksums, storage
from lorakit.core.errors import NumericError
from lorakit.core.progress import Progress
from lorakit.data.prompts import Prompt, prompt_to_row
from lorakit.evaluation.feature_store import Row, open_store
from lorakit.evaluation.metrics.image_encoders import ImageEncoder
from lorakit.imaging import decode
from lorakit.models import clip_score

if TYPE_CHECKING:
    from PIL import Image

Features = NDArray[np.float64]
Encode = Callable[["list[Image.Image]", list[int]], torch.Tensor]
TEXT_LISTS = frozenset({"truncated_texts", "texts_by_sentence"})
"""Keys of a judge's description that list the texts it has read so far; features do not depend on them."""
_WRITE_ROWS, _WRITE_SECONDS = 256, 20.0  # computed rows are written when there are so many, or after so long


class PromptScorer(Protocol):
    """A metric of images and their prompts; NaN for a prompt that it does not apply to."""

    name: str

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """Return one score for each image (N,)."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the settings that the scores depend on, as JSON."""
        ...


class PartScorer(PromptScorer, Protocol):
    """A prompt scorer with a score for each part of a prompt, such as its questions."""

    max_parts: int

    def score_parts(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[list[float]]:
        """Return the scores of each image's parts, at most `max_parts`."""
        ...


@dataclass(frozen=True)
class FrameSource:
    """An image, or the frames of a video, opened on demand; `digest` is the hash of the content."""

    digest: str
    open: Callable[[], Iterable[Image.Image]]


def frame_source(path: Path, video: Path | None = None) -> FrameSource:
    """Return the source of an image file, or of the video that the image shows a frame of."""
    if video:
        return FrameSource(_file_hash(video), lambda: decode.iter_frames(video))
    return FrameSource(_file_hash(path), lambda: [decode.decode_image(path)])


def _file_hash(path: Path) -> str:
    status = path.stat()
    return _hash_of_unchanged(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=100_000)
def _hash_of_unchanged(path: Path, size: int, mtime_ns: int) -> str:
    return checksums.sha256_file(path)


def cached_features(
    image_encoder: ImageEncoder, sources: Sequence[FrameSource], label: str, quiet: bool = False
) -> Features:
    """Return unit vectors (N, D) of images, from the cache for those that were encoded before.

    A video has the mean of its frames' vectors, so that similarities to it are means over the frames.
    """

    def encode(images: list[Image.Image], rows: list[int]) -> torch.Tensor:
        features = image_encoder.image_features(images)
        if not torch.isfinite(features).all():
            raise NumericError(
                "the model returned features with NaN or infinity",
                where=label,
                remedy="look at the images, or download the model again: one of them may be damaged",
            )
        return features

    digests = [source.digest for source in sources]
    return _cached_rows(_settings(image_encoder.describe()), digests, sources, encode, label, quiet)


def normalize_rows(vectors: Features) -> Features:
    """Return vectors of length 1 (N, D); the mean of a video's vectors is shorter."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cached_prompt_scores(
    scorer: PromptScorer,
    sources: Sequence[FrameSource],
    prompts: Sequence[Prompt],
    label: str,
    quiet: bool = False,
) -> Features:
    """Return the scores (N,) of images, for a video the mean over its frames, from the cache if possible."""

    def encode(images: list[Image.Image], rows: list[int]) -> torch.Tensor:
        return torch.tensor(scorer.score(images, [prompts[row] for row in rows]))[:, None]

    digests = [
        f"{source.digest} {_prompt_key(prompt)}" for source, prompt in zip(sources, prompts, strict=True)
    ]
    settings = _settings(scorer.describe())
    return _cached_rows(settings, digests, sources, encode, f"{label}: {scorer.name}", quiet)[:, 0]


def cached_part_scores(
    scorer: PartScorer,
    sources: Sequence[FrameSource],
    prompts: Sequence[Prompt],
    label: str,
    quiet: bool = False,
) -> list[list[float]]:
    """Return the scores of the parts of each image's prompt, for a video their means over its frames."""

    def encode(images: list[Image.Image], rows: list[int]) -> torch.Tensor:
        parts = scorer.score_parts(images, [prompts[row] for row in rows])
        return torch.tensor([row + [math.nan] * (scorer.max_parts - len(row)) for row in parts])

    digests = [
        f"{source.digest} {_prompt_key(prompt)}" for source, prompt in zip(sources, prompts, strict=True)
    ]
    settings = _settings(scorer.describe()) | {"parts": scorer.max_parts}
    table = _cached_rows(settings, digests, sources, encode, f"{label}: {scorer.name}", quiet)
    return [row[np.isfinite(row)].tolist() for row in table]


def _prompt_key(prompt: Prompt) -> str:
    """Return all of a prompt that a score can depend on."""
    row = prompt_to_row(prompt)
    return storage.dump_json({name: row[name] for name in row if name not in ("id", "seeds", "kind")})


def _settings(description: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in description.items() if name not in TEXT_LISTS}


def _cached_rows(
    judge: dict[str, Any],
    digests: Sequence[str],
    sources: Sequence[FrameSource],
    encode: Encode,
    label: str,
    quiet: bool,
) -> Features:
    """Return a row (N, D) for each source; those that the cache lacks are computed and added to it.

    The missing ones of each `clip_score.BATCH` sources are computed together, and added as a whole: after a
    kill the others are computed in the same batches, and so with the same result to the last bit.
    """
    store = open_store(judge)
    known = store.get(digests)
    pending: dict[str, Row] = {}
    written_at = time.monotonic()
    missing = len({digest for digest in digests if digest not in known})
    try:
        with Progress(label, missing, quiet=quiet) as progress:
            for start in range(0, len(sources), clip_score.BATCH):
                batch = range(start, min(start + clip_score.BATCH, len(sources)))
                new = {digests[row]: row for row in batch if digests[row] not in known}
                if not new:
                    continue
                values = _mean_per_source(encode, sources, list(new.values())).float().numpy()
                computed = dict(zip(new, values, strict=True))
                known.update(computed)
                pending.update(computed)
                progress.update(progress.done + len(new))
                if len(pending) >= _WRITE_ROWS or time.monotonic() - written_at > _WRITE_SECONDS:
                    store.add(pending)
                    pending, written_at = {}, time.monotonic()
    finally:
        store.add(pending)
    return np.stack([known[digest] for digest in digests]).astype(np.float64)


def _mean_per_source(encode: Encode, sources: Sequence[FrameSource], rows: Sequence[int]) -> torch.Tensor:
    """Return the outputs (N, D) of `encode`, called with images and their rows, as means over frames."""
    frames = ((index, image) for index, row in enumerate(rows) for image in sources[row].open())
    outputs: list[torch.Tensor] = []
    indices: list[int] = []
    while batch := list(itertools.islice(frames, clip_score.BATCH)):
        images, batch_indices = [image for _, image in batch], [index for index, _ in batch]
        outputs.append(encode(images, [rows[index] for index in batch_indices]).double().cpu())
        indices += batch_indices
    stacked, source_index = torch.cat(outputs), torch.tensor(indices)
    total = stacked.new_zeros(len(rows), *stacked.shape[1:]).index_add_(0, source_index, stacked)
    counts = torch.bincount(source_index, minlength=len(rows))
    return total / counts[:, None]
