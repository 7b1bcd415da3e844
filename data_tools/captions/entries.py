"""One entry of captions: a row of a table, or the JSON object of an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_tools.captions import columns
from data_tools.captions.tags import read_tags

TAGS_UNUSED = "caption_tags_unused"
SETTINGS_UNUSED = "caption_settings_unused"


@dataclass(frozen=True)
class Entry:
    """Captions, tags and notes of an entry; `is_empty` if it has columns of captions without words."""

    texts: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    is_empty: bool = False


def read_entry(
    entry: Mapping[str, Any], name: str, where: str, *, known: Iterable[str] = (), chosen: Sequence[str] = ()
) -> Entry:
    """Read the captions of an entry of the file `name`, else its tags; what is not used is noted by name.

    `known` are keys that are used otherwise, `chosen` the user's choice of columns. Raises `DataError` for
    captions and tags that are not text.
    """
    texts = columns.caption_texts(entry, where, chosen)
    read = read_tags(entry, where)
    notes = []
    tags = ", ".join(read.tags)
    if texts and tags and not any(tags in text for text in texts):
        notes.append(f"{TAGS_UNUSED}: {len(read.tags)} tags of {name}")
    if read.unused:
        notes.append(f"{TAGS_UNUSED}: {', '.join(read.unused)}, of the file or the site, in {name}")
    if negative := columns.negative_columns(entry):
        notes.append(f"{SETTINGS_UNUSED}: {', '.join(negative)} of {name}")
    nothing_read = not texts and not tags
    unread = columns.unread_columns(entry, (*known, *read.keys), chosen, name_all=nothing_read)
    if unread:
        notes.append(columns.unread_note(unread))
    captions = tuple(texts or ([tags] if tags else []))
    return Entry(captions, read.tags, tuple(notes), is_empty=texts == [] and not captions)
