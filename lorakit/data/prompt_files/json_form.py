"""JSON: one list or object in the file, or one object a line (JSONL)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lorakit.core.errors import DataError
from lorakit.core.strict_json import parse_json
from lorakit.data.prompt_files.document import tree_rows
from lorakit.data.prompt_files.keys import own_values
from lorakit.data.prompt_files.row import PromptRow, PromptText

_OBJECT_START = re.compile(r'\{\s*(?:"|\}|$)')
_LIST_START = re.compile(r'\[\s*(?:["{\[\]]|$)')


def is_jsonl(source: PromptText) -> bool:
    """Return True if each line is an object of its own, or the only line is one."""
    first = source.first_line()
    if not _OBJECT_START.match(first):
        return False
    starts = [line.startswith("{") for _, line in source.lines()]
    if len(starts) == 1:
        return source.suffix in (".jsonl", ".ndjson")
    return all(starts) or first.endswith("}")


def read_jsonl(source: PromptText) -> Iterator[PromptRow]:
    """Yield the prompts of lines that are objects."""
    for number, line in source.lines():
        place = f"line {number}"
        where = f"{source.where}, {place}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise DataError("a line must contain one JSON object", where=where)
        values, unused = own_values(row, where)
        yield PromptRow(place, values, unused)


def is_json(source: PromptText) -> bool:
    """Return True if the text begins as a JSON list or object does."""
    text = source.text.lstrip()
    if text.startswith("[[") and re.match(r"\[\[\s*\w", text):  # a table of TOML
        return False
    return bool(_OBJECT_START.match(text) or _LIST_START.match(text))


def read_json(source: PromptText) -> Iterator[PromptRow]:
    """Yield the prompts of one JSON list or object."""
    remedy = "put texts in double quotes, and commas between them and none after the last"
    yield from tree_rows(parse_json(source.text, source.where, remedy=remedy), source.where, "JSON")
