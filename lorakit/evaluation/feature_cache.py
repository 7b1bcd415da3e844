"""Cached features and scores of images, addressed by content.

An evaluation that was stopped, or is repeated with one more checkpoint, computes only what is missing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lorakit.core import checksums
from lorakit.core.progress import Progress
from lorakit.data import tensor_cache
from lorakit.data.prompts import Prompt
from lorakit.evaluation.metrics.image_encoders import ImageEncoder
from lorakit.imaging import decode
from lorakit.models import clip_score

if TYPE_CHECKING:
    from PIL import Image

Features = NDArray[np.float64]
_CACHE_NAME = "evaluations"
_NOT_APPLICABLE = -1e30  # NaN in the cache, which takes only finite numbers


class PromptScorer(Protocol):
    """A metric of images and their prompts; NaN for a prompt that it does not apply to."""

    name: str

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """Return one score for each image (N,)."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the settings that the scores depend on, as JSON."""
        ...


@dataclass(frozen=True)
class FrameSource:
    """An image, or the frames of a video, opened on demand; `digest` is the hash of the content."""

    digest: str
    open: Callable[[], Iterable[Image.Image]]


def frame_source(path: Path, video: Path | None = None) -> FrameSource:
    """Return the source of an image file, or of the video that the image shows a frame of."""
    if video:
        return FrameSource(checksums.sha256_file(video), lambda: decode.iter_frames(video))
    return FrameSource(checksums.sha256_file(path), lambda: [decode.decode_image(path)])


def cached_features(
    image_encoder: ImageEncoder, sources: Sequence[FrameSource], label: str, quiet: bool = False
) -> Features:
    """Return unit vectors (N, D) of images, from the cache if they were encoded before.

    A video has the mean of its frames' vectors, so that similarities to it are means over the frames.
    """

    def compute() -> torch.Tensor:
        return _mean_per_source(
            lambda images, rows: image_encoder.image_features(images), sources, label, quiet
        )

    return _cached(compute, sources, image_encoder.describe(), [], f"features of {label}")


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

    def score_batch(images: list[Image.Image], rows: list[int]) -> torch.Tensor:
        return torch.tensor(scorer.score(images, [prompts[row] for row in rows]))

    def compute() -> torch.Tensor:
        scores = _mean_per_source(score_batch, sources, f"{label}: {scorer.name}", quiet)
        return scores.nan_to_num(nan=_NOT_APPLICABLE)

    texts = [f"{prompt.prompt}\n{prompt.score_text}" for prompt in prompts]
    scores = _cached(compute, sources, scorer.describe(), texts, f"{scorer.name} of {label}")
    return np.where(scores < _NOT_APPLICABLE / 2, np.nan, scores)


def _mean_per_source(
    encode: Callable[[list[Image.Image], list[int]], torch.Tensor],
    sources: Sequence[FrameSource],
    label: str,
    quiet: bool,
) -> torch.Tensor:
    """Return the outputs (N, ...) of `encode`, called with B images and their rows, as means over frames."""
    frames = ((row, image) for row, source in enumerate(sources) for image in source.open())
    outputs: list[torch.Tensor] = []
    rows: list[int] = []
    with Progress(label, len(sources), quiet=quiet) as progress:
        while batch := list(itertools.islice(frames, clip_score.BATCH)):
            batch_rows = [row for row, _ in batch]
            outputs.append(encode([image for _, image in batch], batch_rows).double().cpu())
            rows += batch_rows
            progress.update(rows[-1] + 1)
    stacked, source_index = torch.cat(outputs), torch.tensor(rows)
    total = stacked.new_zeros(len(sources), *stacked.shape[1:]).index_add_(0, source_index, stacked)
    counts = torch.bincount(source_index, minlength=len(sources))
    return total / counts.reshape(-1, *[1] * (stacked.ndim - 1))


def _cached(
    compute: Callable[[], torch.Tensor],
    sources: Sequence[FrameSource],
    description: dict[str, Any],
    texts: list[str],
    label: str,
) -> Features:
    settings = {name: value for name, value in description.items() if name != "truncated_texts"}
    digests = [source.digest for source in sources]
    cache = tensor_cache.TensorCache(_CACHE_NAME)
    key = tensor_cache.cache_key(sources=digests, judge=settings, texts=texts, version="1")
    if cache.get(key) is None:
        cache.put(key, {"values": compute().float()}, label)
    values: Features = cache.require(key)["values"].double().numpy()
    return values
