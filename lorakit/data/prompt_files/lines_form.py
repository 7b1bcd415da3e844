"""Plain lines: one prompt a line, with options behind it, comments, numbers or marks of a list."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from lorakit.data.prompt_files.row import PromptRow, PromptText, is_comment

_NUMBER = re.compile(r"\(?(\d{1,5})[.):]\s+(?=\S)")
_BULLET = re.compile(r"[*•·–+]\s+(?=\S)")
_IN_QUOTES = re.compile(r"""(?:"([^"]+)"|'([^']+)'),?""")


def read_lines(source: PromptText) -> Iterator[PromptRow]:
    """Yield one prompt a line. Comments, and marks that all lines have, are left out."""
    comments = [number for number, line in enumerate(source.text.split("\n"), 1) if is_comment(line)]
    if comments:
        message = f"{len(comments)} lines that start with # are comments, from line {comments[0]}"
        source.log(f"{source.where}: {message}")
    rows = list(source.lines())
    clean, note = _list_mark([line for _, line in rows])
    if note:
        source.log(f"{source.where}: {note}")
    for number, line in rows:
        yield PromptRow(f"line {number}", {"prompt": clean(line)})


def _list_mark(lines: Sequence[str]) -> tuple[Callable[[str], str], str]:
    """Return a function that removes what makes the lines a list, and a note about it."""
    numbers = [match[1] for line in lines if (match := _NUMBER.match(line))]
    if len(lines) > 1 and len(numbers) == len(lines) and _is_sequence(numbers):
        return lambda line: _NUMBER.sub("", line, count=1), "the numbers before the prompts are not sampled"
    if len(lines) > 1 and all(_BULLET.match(line) for line in lines):
        return lambda line: _BULLET.sub("", line, count=1), "the marks before the prompts are not sampled"
    if len(lines) > 1 and all(_IN_QUOTES.fullmatch(line) for line in lines):
        return _without_quotes, "the quotation marks around the prompts are not sampled"
    return lambda line: line, ""


def _is_sequence(numbers: Sequence[str]) -> bool:
    first = int(numbers[0])
    return first in (0, 1) and [int(number) for number in numbers] == list(range(first, first + len(numbers)))


def _without_quotes(line: str) -> str:
    match = _IN_QUOTES.fullmatch(line)
    return (match[1] or match[2]) if match else line
