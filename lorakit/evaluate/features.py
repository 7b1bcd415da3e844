"""Features and scores of pictures, computed once and kept by content: an evaluation that was stopped, or is
asked for again with one more checkpoint, goes on where it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lorakit import cache, images, score, storage
from lorakit.evaluate.eyes import Eye
from lorakit.progress import Progress
from lorakit.prompts import Prompt

if TYPE_CHECKING:
    from PIL import Image

Features = NDArray[np.float64]
_STORE = "evaluations"
_NONE = -1e30  # stands for "not asked" in the cache, which takes only finite numbers


class Extra(Protocol):
    """A further score of pictures against their prompts; NaN where a prompt does not ask for it."""

    name: str

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]: ...
    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Source:
    """A picture to look at, opened when it is looked at; `digest` addresses what was seen."""

    digest: str
    open: Callable[[], Image.Image]


def source(path: Path) -> Source:
    """A file as a source."""
    return Source(storage.sha256_file(path), lambda: images.decode(path))


def features(eye: Eye, sources: Sequence[Source], label: str, quiet: bool = False) -> Features:
    """Unit vectors (N, D) of pictures, from the cache where they were looked at before."""

    def compute() -> torch.Tensor:
        pieces = []
        with Progress(label, len(sources), quiet=quiet) as progress:
            for start in range(0, len(sources), score.BATCH):
                some = sources[start : start + score.BATCH]
                pieces.append(eye.image_features([one.open() for one in some]))
                progress.update(start + len(some))
        return torch.cat(pieces)

    return _kept(compute, sources, eye.describe(), [], f"features of {label}")


def extra_scores(
    extra: Extra, sources: Sequence[Source], prompts: Sequence[Prompt], label: str, quiet: bool = False
) -> Features:
    """The further scores (N,) of pictures, from the cache where they were scored before."""

    def compute() -> torch.Tensor:
        values: list[float] = []
        with Progress(f"{label}: {extra.name}", len(sources), quiet=quiet) as progress:
            for start in range(0, len(sources), score.BATCH):
                some = slice(start, start + score.BATCH)
                values += extra.score([one.open() for one in sources[some]], prompts[some])
                progress.update(len(values))
        return torch.tensor([_NONE if math.isnan(value) else value for value in values])

    texts = [f"{prompt.prompt}\n{prompt.score_text}" for prompt in prompts]
    found = _kept(compute, sources, extra.describe(), texts, f"{extra.name} of {label}")
    return np.where(found < _NONE / 2, np.nan, found)


def _kept(
    compute: Callable[[], torch.Tensor],
    sources: Sequence[Source],
    about: dict[str, Any],
    texts: list[str],
    what: str,
) -> Features:
    settings = {name: value for name, value in about.items() if name != "truncated"}
    digests = [one.digest for one in sources]
    store, key = cache.Cache(_STORE), cache.key(sources=digests, judge=settings, texts=texts, kind="1")
    if store.get(key) is None:
        store.put(key, {"values": compute().float()}, what)
    values: Features = store.need(key)["values"].double().numpy()
    return values
