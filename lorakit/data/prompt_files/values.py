"""Values of a prompt's settings, from the text of an option or cell, or from JSON, YAML and TOML."""

from __future__ import annotations

import math
import re
from typing import Any

from lorakit.core.errors import DataError

DEFAULT_SEEDS = (0, 1, 2, 3)
MAX_SEED = 2**63 - 1  # the limit of torch.Generator.manual_seed
MAX_SIDE = 16384  # pixels
MAX_STEPS = 1000
MAX_ASPECT_RATIO = 16.0
_SIZE = re.compile(r"\s*[(\[]?\s*(\d{1,6})\s*(?:[x×*,]|\s)\s*(\d{1,6})\s*[)\]]?\s*", re.IGNORECASE)
_RATIO = re.compile(r"\s*(\d{1,5}(?:\.\d{1,4})?)\s*[:/x]\s*(\d{1,5}(?:\.\d{1,4})?)\s*", re.IGNORECASE)
_RANDOM_SEEDS = (-1, "-1", "random", "")


def read_seeds(value: Any, where: str) -> tuple[int, ...]:
    """Return the seeds: one, a list, or a text such as `1, 2`; -1, random elsewhere, means the default."""
    if value is None or value in _RANDOM_SEEDS:
        return DEFAULT_SEEDS
    seeds = value if isinstance(value, list) else _seed_list(value)
    integers = [_whole(seed) for seed in seeds]
    valid = [seed for seed in integers if seed is not None and 0 <= seed <= MAX_SEED]
    if not valid or len(valid) < len(seeds) or len(set(valid)) < len(valid):
        remedy = "use a list of different non-negative integers, such as [0, 1, 2, 3], or one whole number"
        raise DataError(f"seeds {value!r} cannot be used", where=where, remedy=remedy)
    return tuple(valid)


def _seed_list(value: Any) -> list[Any]:
    if isinstance(value, str) and re.search(r"[,;\s]", value.strip()):
        return [part for part in re.split(r"[,;\s]+", value.strip().strip("[]()")) if part]
    return [value]


def read_steps(value: Any, where: str) -> int | None:
    """Return a number of sampler steps."""
    remedy = f"write a whole number from 1 to {MAX_STEPS}, such as 28"
    return _positive("num_inference_steps", value, MAX_STEPS, where, remedy)


def read_guidance(value: Any, where: str) -> float | None:
    """Return a guidance scale."""
    if value is None:
        return None
    scale = _number(value)
    if scale is None or scale < 0:
        remedy = "write a number from 0, such as 7.5"
        raise DataError(f"guidance_scale {value!r} cannot be used", where=where, remedy=remedy)
    return scale


def read_size(row: dict[str, Any], where: str) -> tuple[int | None, int | None]:
    """Return width and height of the keys `width`, `height` and `size`; None for what is not set."""
    width, height = row.get("width"), row.get("height")
    size = row.get("size")
    if size is not None:
        text = ",".join(map(str, size)) if isinstance(size, list | tuple) else str(size)
        match = _SIZE.fullmatch(text)
        if match is None or width is not None or height is not None:
            problem = f"size {size!r} cannot be used" if match is None else "size is given twice"
            raise DataError(problem, where=where, remedy="write it as 1024x768, or as width and height")
        width, height = match[1], match[2]
    return _side("width", width, where), _side("height", height, where)


def _side(name: str, value: Any, where: str) -> int | None:
    remedy = f"write a whole number of pixels up to {MAX_SIDE}, such as 1024"
    return _positive(name, value, MAX_SIDE, where, remedy)


def _positive(name: str, value: Any, maximum: int, where: str, remedy: str) -> int | None:
    """Return a whole number from 1 to `maximum`; None stays None."""
    if value is None:
        return None
    number = _whole(value)
    if number is None or not 0 < number <= maximum:
        raise DataError(f"{name} {value!r} cannot be used", where=where, remedy=remedy)
    return number


def read_aspect_ratio(value: Any, where: str) -> float | None:
    """Return width / height of an aspect ratio such as `3:2`."""
    if value is None:
        return None
    match = _RATIO.fullmatch(value) if isinstance(value, str) else None
    ratio = float(match[1]) / float(match[2]) if match and float(match[2]) else _number(value)
    if not ratio or not 1 / MAX_ASPECT_RATIO <= ratio <= MAX_ASPECT_RATIO:
        raise DataError(f"aspect_ratio {value!r} cannot be used", where=where, remedy="write it as 3:2")
    return ratio


def _whole(value: Any) -> int | None:
    """Return a whole number of an integer or of its text; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,19}\s*", value, re.ASCII):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    if isinstance(value, str) and re.fullmatch(r"\s*\d{0,9}\.?\d{1,9}\s*|\s*\d{1,9}\.\s*", value, re.ASCII):
        value = float(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
