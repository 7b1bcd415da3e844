"""Columns of captions in tables and keys in JSON: which are read, and which hold words but are not read.

Read are `text`, `caption`, `prompt`, `captions` and numbered ones (`caption_0`); without them, the only other
column that looks like captions (`description`). A column that the user chooses goes before all of them.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lorakit.core.errors import DataError
from lorakit.core.strict_json import parse_json

CAPTION_COLUMNS = ("text", "caption", "prompt", "captions")
# Columns that name the image of a row; `datasets` knows the first one.
_IMAGE_NAMES = (
    "file_name filename file image image_path image_file file_path filepath path img img_path image_name"
    " img_name name key"
)
IMAGE_COLUMNS = tuple(_IMAGE_NAMES.split())
COLUMNS_UNREAD = "caption_columns_unread"  # code of the note and the finding
_NUMBERED = re.compile(r"(captions?|texts?|prompts?|descriptions?|sentences?)[_.]?(\d+)")
_LOOKS_LIKE_CAPTION = re.compile(
    r"caption|text|prompt|descri|tag|title|label|annotation|comment|keyword|sentence|instruction|summary|blip"
    r"|florence|(?:^|_)alt$",
    re.IGNORECASE,
)
_IS_TAGS = re.compile(r"tag|label|keyword", re.IGNORECASE)
_IS_ONE_CAPTION = re.compile(r"caption|text|prompt|descri|sentence|instruction|blip|florence|(?:^|_)alt$")
_NO_CAPTION = re.compile(
    r"(?:^|[_-])(?:file|path|url|uri|id|ids|hash|name|format|size|count|score|date|lang|language|type|model)$"
)
_NO_WORDS = re.compile(
    r"license|author|copyright|credit|camera|software|user|status|rating|created|updated|md5"
)
_NEGATIVE = re.compile(r"(?:^|[_.-])(?:negative|neg|uc)(?:$|[_.-])", re.IGNORECASE)
_NO_PROSE = re.compile(r"[a-z][a-z0-9+.-]*:|/|\\|\S+\.\w{2,5}$|[0-9a-f]{16,}$|\d{4}-\d\d", re.IGNORECASE)
_PLACEHOLDERS = frozenset({"nan", "null", "none", "n/a", "<na>"})  # of empty cells that became text
_TEXT_KEYS = ("caption", "text", "raw", "sentence", "value", "name", "tag", "label")  # of objects in a list
_MAX_PROSE_WORDS = 3  # from this number of words, any column looks like captions


def folded(key: Any) -> str:
    """Return one spelling of a column's name: "Text " and "text" are the same."""
    return re.sub(r"[\s-]+", "_", str(key).strip().casefold())


def caption_texts(row: Mapping[str, Any], where: str, chosen: Sequence[str] = ()) -> list[str] | None:
    """Return the captions of a row or JSON object, [] if they are empty, None if it has no such column.

    A column holds one text or a list. A value that is neither is a `DataError`.
    """
    selected = select_columns(row, where, chosen)
    if selected is None:
        return None
    texts = [text for key in selected for text in _column_texts(row, key, where)]
    return list(dict.fromkeys(texts))


def select_columns(row: Mapping[str, Any], where: str, chosen: Sequence[str] = ()) -> list[str] | None:
    """Return the columns of a row that are read as captions; [] if they are empty, None without any.

    Of several columns with different captions, the first is read; `unread_columns` names the others.
    """
    if chosen:
        present = [key for name in chosen for key, _ in _values(row) if folded(key) == folded(name)]
        return present or None
    groups = _primary_columns(row)
    if not groups:
        others = [str(key) for key, value in row.items() if _is_only_caption(str(key), value)]
        return others if len(others) == 1 else None
    texts = {
        name: [t for key in keys for t in _column_texts(row, key, where)] for name, keys in groups.items()
    }
    filled = {name: own_texts for name, own_texts in texts.items() if own_texts}
    if not filled:
        return []
    largest = max(filled, key=lambda name: len(filled[name]))
    is_complete = all(set(own_texts) <= set(filled[largest]) for own_texts in filled.values())
    return groups[largest if is_complete else next(iter(filled))]


def _primary_columns(row: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the columns of captions by name; numbered ones (`caption_0`, `caption_1`) are one group."""
    names = {folded(key): str(key) for key in row}
    groups = {name: [names[name]] for name in CAPTION_COLUMNS if name in names}
    numbered: dict[str, list[tuple[int, str]]] = {}
    for name, key in names.items():
        if (match := _NUMBERED.fullmatch(name)) is not None:
            numbered.setdefault(match[1], []).append((int(match[2]), key))
    return groups | {f"{base}_0": [key for _, key in sorted(keys)] for base, keys in numbered.items()}


def _is_only_caption(key: str, value: Any) -> bool:
    name = folded(key)
    is_caption = _IS_ONE_CAPTION.search(name) and not _IS_TAGS.search(name) and not _is_other(name)
    return bool(is_caption) and not isinstance(value, Mapping) and has_words(value)


def _is_other(name: str) -> bool:
    return bool(_NO_CAPTION.search(name) or _NO_WORDS.search(name) or _NEGATIVE.search(name))


def _column_texts(row: Mapping[str, Any], key: str, where: str) -> list[str]:
    """Return the captions of a column, of which tags become one."""
    value = next((value for name, value in _values(row) if name == key), None)
    texts = [text.strip() for text in text_list(value, key, where)]
    texts = [text for text in texts if text and text.casefold() not in _PLACEHOLDERS]
    return [", ".join(texts)] if texts and _IS_TAGS.search(key) else texts


def text_list(value: Any, key: str, where: str) -> list[str]:
    """Return one text, or a list of texts or of objects with a text, as a list; [] for null.

    Raises `DataError` for anything else.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, str):
        return _list_in_cell(value) or [value]
    if isinstance(value, list | tuple):
        items = [_item_text(item) for item in value if item is not None]
        if all(isinstance(item, str) for item in items):
            return [item for item in items if isinstance(item, str)]
    remedy = f'write {{"{key}": "..."}} or {{"{key}": ["...", "..."]}}'
    if isinstance(value, Mapping) and (inner := [name for name, one in value.items() if has_words(one)]):
        remedy = f"choose one with --caption-column {key}.{inner[0]}"
    message = f"{key} must be text or a list of texts, not {str(value)[:40]!r}"
    raise DataError(message, where=where, remedy=remedy)


def _item_text(item: Any) -> Any:
    """Return the text of an object in a list, such as `{"caption": "..."}`; anything else unchanged."""
    if isinstance(item, Mapping):
        return next((item[key] for key in _TEXT_KEYS if isinstance(item.get(key), str)), item)
    return item


def _list_in_cell(text: str) -> list[str]:
    """Return the texts of a list that a table holds as text, in JSON or as Python prints it; else []."""
    stripped = text.strip()
    if not (stripped.startswith("[") and stripped.endswith("]") and stripped[1:2] in ("'", '"')):
        return []
    try:
        value = parse_json(stripped, "") if stripped[1] == '"' else ast.literal_eval(stripped)
    except (DataError, ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    is_texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return value if is_texts else []


def unread_columns(
    row: Mapping[str, Any], known: Iterable[str] = (), chosen: Sequence[str] = (), *, name_all: bool = False
) -> list[str]:
    """Return the columns of a row that have words and look like captions, but are not read.

    Keys of inner objects are named `outer.inner`. `known` are columns that are used otherwise. With
    `name_all`, any column with words is named; that is for rows of which nothing was read.
    """
    try:
        read = select_columns(row, "", chosen) or []
    except DataError:  # the row is reported
        read = []
    texts = {text for key in read for text in _safe_texts(row, key)}
    skipped = {*map(folded, known), *map(folded, read), *IMAGE_COLUMNS}
    return [
        key
        for key, value in _values(row)
        if not skipped & {folded(key), folded(key.partition(".")[0])}
        and _may_be_caption(key, value, name_all=name_all)
        and not set(_words_of(value)) <= texts
    ]


def _safe_texts(row: Mapping[str, Any], key: str) -> list[str]:
    try:
        return _column_texts(row, key, "")
    except DataError:
        return []


def _may_be_caption(key: str, value: Any, *, name_all: bool) -> bool:
    if isinstance(value, Mapping) or not has_words(value):
        return False
    name = folded(key)
    if _NO_CAPTION.search(name) or _NEGATIVE.search(name):
        return False
    if _LOOKS_LIKE_CAPTION.search(name):
        return True
    if _NO_WORDS.search(name) or any(_NO_PROSE.match(text.strip()) for text in _words_of(value)):
        return False
    return name_all or any(len(text.split()) >= _MAX_PROSE_WORDS for text in _words_of(value))


def unread_note(columns: Iterable[str]) -> str:
    """Return the note of an image with such columns."""
    return f"{COLUMNS_UNREAD}: {', '.join(columns)}"


def negative_columns(row: Mapping[str, Any]) -> list[str]:
    """Return the columns with words that must not be in an image."""
    return [key for key, value in _values(row) if _NEGATIVE.search(folded(key)) and has_words(value)]


def check_column_names(names: Iterable[str], where: str) -> None:
    """Raise `DataError` for two columns of one name, of which a reader would lose one."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(
                f"two columns are named {name[:80]!r}", where=where, remedy="rename or delete one of them"
            )
        seen.add(name)


def _values(row: Mapping[str, Any], prefix: str = "", depth: int = 4) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of each column, then of each key of the objects in it as `column.key`."""
    for key, value in row.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping) and depth:
            yield from _values(value, f"{prefix}{key}.", depth - 1)


def _words_of(value: Any) -> list[str]:
    """Return the texts of a value, of the items of a list and of the objects in it."""
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _words_of(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _words_of(item)]
    return [value.strip()] if isinstance(value, str) and value.strip() else []


def has_words(value: Any) -> bool:
    """Return True for a value with letters in it."""
    return any(letter.isalpha() for text in _words_of(value) for letter in text)
