"""The number of steps of some epochs: lorakit counts steps, other trainers also epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.config.suggest_key import EPOCH_FORMULA
from lorakit.core import storage
from lorakit.core.errors import LorakitError


def explain_epochs(epochs: Any, tree: Mapping[str, Any]) -> str:
    """Return how many steps `epochs` are for the dataset of a recipe, or the formula.

    `tree` is the recipe as plain values, which need not be valid.
    """
    images = _count_images(tree.get("dataset"))
    train = tree.get("train")
    sizes = [
        _number(train.get(key, 1)) if isinstance(train, Mapping) else 1
        for key in ("batch_size", "accumulate")
    ]
    count = _number(epochs)
    if not images or not count or not all(sizes):
        return EPOCH_FORMULA
    steps = math.ceil(count * images / (sizes[0] * sizes[1]))
    return f"{EPOCH_FORMULA}: {count:g} epochs of {images} images are train.steps={steps}"


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0
    return number if 0 < number < 1e9 else 0


def _count_images(dataset: Any) -> int:
    """Return the number of images of a prepared dataset, each counted by its repeats; 0 if unknown."""
    if not isinstance(dataset, str):
        return 0
    try:
        rows = storage.read_jsonl(Path(dataset) / "manifest.jsonl")
    except (LorakitError, OSError, ValueError):
        return 0
    return int(sum(_number(row.get("repeats", 1)) for row in rows if row.get("keep", True)))
