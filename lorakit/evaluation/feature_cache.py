"""Features and scores of pictures, computed once and kept by content: an evaluation that was stopped, or is
asked for again with one more checkpoint, goes on where it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lorakit.core import storage
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
_NOT_APPLICABLE = -1e30  # stands for "not asked" in the cache, which takes only finite numbers


class PromptScorer(Protocol):
    """A further score of pictures against their prompts; NaN where a prompt does not ask for it."""

    name: str

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]: ...
    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class FrameSource:
    """A picture to look at, or a clip's frames, opened when they are looked at; `digest` addresses what was
    seen."""

    digest: str
    open: Callable[[], Iterable[Image.Image]]


def frame_source(path: Path, clip: Path | None = None) -> FrameSource:
    """A picture's file as a source, or the file of the clip that it stands for."""
    if clip:
        return FrameSource(storage.sha256_file(clip), lambda: decode.iter_frames(clip))
    return FrameSource(storage.sha256_file(path), lambda: [decode.decode_image(path)])


def cached_features(
    eye: ImageEncoder, sources: Sequence[FrameSource], label: str, quiet: bool = False
) -> Features:
    """Unit vectors (N, D) of pictures, from the cache where they were looked at before; of a clip, the mean
    of its frames' vectors, so that similarities to it are means over the frames."""

    def compute() -> torch.Tensor:
        return _mean_per_source(lambda some, rows: eye.image_features(some), sources, label, quiet)

    return _cached(compute, sources, eye.describe(), [], f"features of {label}")


def normalize_rows(vectors: Features) -> Features:
    """Directions (N, D): the mean of a clip's vectors is shorter than one of them."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cached_prompt_scores(
    extra: PromptScorer,
    sources: Sequence[FrameSource],
    prompts: Sequence[Prompt],
    label: str,
    quiet: bool = False,
) -> Features:
    """The further scores (N,) of pictures, of clips the mean of their frames', from the cache where they were
    scored before."""

    def see(some: list[Image.Image], rows: list[int]) -> torch.Tensor:
        return torch.tensor(extra.score(some, [prompts[row] for row in rows]))

    def compute() -> torch.Tensor:
        return _mean_per_source(see, sources, f"{label}: {extra.name}", quiet).nan_to_num(nan=_NOT_APPLICABLE)

    texts = [f"{prompt.prompt}\n{prompt.score_text}" for prompt in prompts]
    found = _cached(compute, sources, extra.describe(), texts, f"{extra.name} of {label}")
    return np.where(found < _NOT_APPLICABLE / 2, np.nan, found)


def _mean_per_source(
    see: Callable[[list[Image.Image], list[int]], torch.Tensor],
    sources: Sequence[FrameSource],
    label: str,
    quiet: bool,
) -> torch.Tensor:
    """What `see` makes of (pictures, their rows), (B, ...), averaged over the pictures of each source."""
    looks = ((row, picture) for row, one in enumerate(sources) for picture in one.open())
    found: list[torch.Tensor] = []
    rows: list[int] = []
    with Progress(label, len(sources), quiet=quiet) as progress:
        while some := list(itertools.islice(looks, clip_score.BATCH)):
            these = [row for row, _ in some]
            found.append(see([picture for _, picture in some], these).double().cpu())
            rows += these
            progress.update(rows[-1] + 1)
    seen, place = torch.cat(found), torch.tensor(rows)
    total = seen.new_zeros(len(sources), *seen.shape[1:]).index_add_(0, place, seen)
    counts = torch.bincount(place, minlength=len(sources))
    return total / counts.reshape(-1, *[1] * (seen.ndim - 1))


def _cached(
    compute: Callable[[], torch.Tensor],
    sources: Sequence[FrameSource],
    about: dict[str, Any],
    texts: list[str],
    what: str,
) -> Features:
    settings = {name: value for name, value in about.items() if name != "truncated"}
    digests = [one.digest for one in sources]
    store, key = (
        tensor_cache.TensorCache(_CACHE_NAME),
        tensor_cache.cache_key(sources=digests, judge=settings, texts=texts, kind="1"),
    )
    if store.get(key) is None:
        store.put(key, {"values": compute().float()}, what)
    values: Features = store.need(key)["values"].double().numpy()
    return values
