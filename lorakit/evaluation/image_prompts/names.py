"""Names of image files: patterns that the user gives, and the schemes of known tools."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lorakit.core.errors import DataError
from lorakit.core.nearest import did_you_mean

FIELDS = {
    "prompt_id": r".+?",
    "id": r".+?",
    "prompt": r".+?",
    "index": r"\d{1,9}",
    "number": r"\d{1,9}",
    "seed": r"\d{1,19}",
    "step": r"e?\d{1,9}",
}
PROMPT_FIELDS = ("prompt_id", "id", "prompt", "index", "number")
_PART = re.compile(r"\{([^{}]*)\}|(\*)|([^{}*]+|[{}])")


@dataclass(frozen=True)
class ImageName:
    """Parts of the name of an image; `index` counts prompts from 0, `words` are a part of the prompt."""

    scheme: str
    prompt_id: str | None = None
    index: int | None = None
    words: str | None = None
    seed: int | None = None
    step: str | None = None


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return a pattern such as "{index}_*.png" as a regular expression; `*` stands for any text.

    Raises DataError for an unknown field, one that occurs twice, and a pattern without the prompt.
    """
    expression = ""
    seen: list[str] = []
    for field, star, text in _PART.findall(pattern):
        if star:
            expression += "[^/]*?"
        elif text:
            expression += re.escape(text)
        else:
            _check_field(field, seen, pattern)
            seen.append(field)
            expression += f"(?P<{field}>{FIELDS[field]})"
    if not set(seen) & set(PROMPT_FIELDS):
        names = ", ".join(f"{{{name}}}" for name in ("prompt_id", "prompt", "index"))
        remedy = 'for example "{prompt_id}/{seed}.png"; {index} counts the prompts from 0, {number} from 1'
        raise DataError(f"the pattern {pattern!r} has no {names}", where="--pattern", remedy=remedy)
    return re.compile(expression if Path(pattern).suffix else expression + r"\.\w+", re.IGNORECASE)


def _check_field(field: str, seen: list[str], pattern: str) -> None:
    if field not in FIELDS:
        known = ", ".join(f"{{{name}}}" for name in FIELDS)
        message = f"the pattern {pattern!r} has an unknown field {{{field}}}{did_you_mean(field, FIELDS)}"
        raise DataError(message, where="--pattern", remedy=f"known fields: {known}, and * for any text")
    if field in seen:
        message = f"the pattern {pattern!r} has {{{field}}} twice"
        raise DataError(message, where="--pattern", remedy="write * for the other")


def read_pattern(name: str, pattern: re.Pattern[str]) -> ImageName | None:
    """Return what a name says by the user's pattern; None if it does not have the pattern."""
    match = pattern.fullmatch(name)
    return _of_match(match, "--pattern") if match else None


_SCHEMES = (
    (
        "kohya's scripts",
        r"(?:.*/)?(?:.+_)?(?P<step>e?\d{6,8})_(?P<index>\d{2,5})_\d{8,14}(?:_(?P<seed>\d+))?\.\w+",
    ),
    ("ai-toolkit", r"(?:.*/)?\d{10,13}__(?P<step>\d{6,10})_(?P<index>\d{1,5})\.\w+"),
    ("GenEval", r"(?:.*/)?(?P<index>\d{5})/samples/(?P<seed>\d{4,5})\.\w+"),
    ("OneTrainer", r"(?:.*/)?(?P<index>\d{1,4}) - [^/]*/[^/]*training-sample-(?P<step>\d+)-[^/]*\.\w+"),
)
_COMPILED = tuple((title, re.compile(pattern)) for title, pattern in _SCHEMES)
_GRID = re.compile(r"(?:grid(?:[-_]\d+)*|.*[-_]grid|xyz_grid.*|contact[-_]sheet.*)\.\w+", re.IGNORECASE)


def read_scheme(name: str) -> ImageName | None:
    """Return what a name says by the scheme of a known tool; None if it has none of them."""
    for title, pattern in _COMPILED:
        if match := pattern.fullmatch(name):
            return _of_match(match, f"the names of {title}")
    return None


def is_grid(name: str) -> bool:
    """Return True for the name of a grid of images, as A1111 and GenEval write it."""
    return _GRID.fullmatch(name.rsplit("/", 1)[-1]) is not None


def _of_match(match: re.Match[str], scheme: str) -> ImageName:
    fields = match.groupdict()
    index, number, seed = (fields.get(name) for name in ("index", "number", "seed"))
    if index is None and number is not None:
        index = str(int(number) - 1)
    return ImageName(
        scheme,
        fields.get("prompt_id") or fields.get("id"),
        None if index is None else int(index),
        fields.get("prompt"),
        None if seed is None else int(seed),
        fields.get("step"),
    )
