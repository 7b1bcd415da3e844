"""Columns of captions in tables and JSON: which are read, and which look like captions but are not read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lorakit.core.errors import DataError

CAPTION_COLUMNS = ("text", "caption", "prompt", "captions")
COLUMNS_UNREAD = "caption_columns_unread"  # code of the note and the finding
_LOOKS_LIKE_CAPTION = re.compile(
    r"caption|text|prompt|descri|tag|title|label|annotation|comment|keyword|sentence|instruction|(?:^|_)alt$",
    re.IGNORECASE,
)
_NO_CAPTION = re.compile(
    r"(?:^|[_-])(?:file|path|url|uri|id|ids|hash|name|format|size|count|score|date|lang|language)$"
)


def caption_texts(row: Mapping[str, Any], where: str) -> list[str] | None:
    """Return the captions of a row or JSON object, [] if they are empty, None if it has no such column.

    A column holds one text or a list. Two columns with different captions are a `DataError`: only the user
    knows which one is right.
    """
    by_key = {key: text_list(row[key], key, where) for key in CAPTION_COLUMNS if row.get(key) is not None}
    if not by_key:
        return None
    filled = {key: texts for key, texts in by_key.items() if any(text.strip() for text in texts)}
    longest = max(filled.values(), key=len, default=[])
    for key, texts in filled.items():
        if other := [text for text in texts if text.strip() not in [one.strip() for one in longest]]:
            raise DataError(
                f"{' and '.join(filled)} have different captions: {other[0][:40]!r} is in {key} only",
                where=where,
                remedy="delete or rename one of them, or write all captions into one list",
            )
    return longest


def text_list(value: Any, key: str, where: str) -> list[str]:
    """Return one text or a list of texts as a list; `DataError` for anything else."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return list(value)
    raise DataError(
        f"{key} must be text or a list of texts, not {str(value)[:40]!r}",
        where=where,
        remedy=f'write {{"{key}": "..."}} or {{"{key}": ["...", "..."]}}',
    )


def unread_columns(row: Mapping[str, Any], read: Iterable[str] = CAPTION_COLUMNS) -> list[str]:
    """Return the columns of a row that have words and look like captions, but are not read."""
    known = {*read, "file_name"}
    return [
        str(key)
        for key, value in row.items()
        if key not in known
        and _LOOKS_LIKE_CAPTION.search(str(key))
        and not _NO_CAPTION.search(str(key).lower())
        and _has_words(value)
    ]


def unread_note(columns: Iterable[str]) -> str:
    """Return the note of an image with such columns."""
    return f"{COLUMNS_UNREAD}: {', '.join(columns)}"


def check_column_names(names: Iterable[str], where: str) -> None:
    """Raise `DataError` for two columns of one name, of which a reader would lose one."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(
                f"two columns are named {name[:80]!r}", where=where, remedy="rename or delete one of them"
            )
        seen.add(name)


def _has_words(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_words(item) for item in value)
    return isinstance(value, str) and any(letter.isalpha() for letter in value)
