"""Tags in JSON files and tables, as sites and taggers write them.

A list or a text of tags (`tags`), Danbooru's `tag_string` and `tag_string_general`, gallery-dl's
`tags_general`, groups of tags (`{"tags": {"general": [...]}}`), taggers' probabilities (`{"1girl": 0.9}`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_tools.captions.columns import folded
from lorakit.core.errors import DataError

_GROUPS = ("character", "copyright", "series", "species", "artist", "general", "")
_NOT_OF_THE_IMAGE = ("meta", "metadata", "rating", "ratings", "invalid", "lore")  # of the file or the site
_GROUP_NAMES = {*filter(None, _GROUPS), *_NOT_OF_THE_IMAGE}
_KEYS = re.compile(
    rf"(?:tags?|tag_?list|wd_?tags|wd14(?:_tags)?|booru_tags|keywords)(?:_({'|'.join(sorted(_GROUP_NAMES))}))?"
)
_TAG_STRING = re.compile(rf"(?:tag_string|tags_string)(?:_({'|'.join(sorted(_GROUP_NAMES))}))?")
_BOORU_KEYS = frozenset(
    {"rating", "md5", "score", "file_url", "tag_string", "tags_general", "category", "source"}
)
_ITEM_KEYS = ("name", "tag", "label", "text", "translated_name")
_WORD = re.compile(r"[^\W_]{2}")  # not in faces such as `^_^` and `x_x`


@dataclass(frozen=True)
class ReadTags:
    """The tags of an entry, the keys that held them, and tags of the file or site that are not used."""

    tags: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def read_tags(entry: Mapping[str, Any], where: str) -> ReadTags:
    """Return the tags of a JSON object or row: characters first, as people write them.

    Raises `DataError` for a value of `tags` that is not tags.
    """
    by_group: dict[str, list[str]] = {}
    keys = []
    is_booru = bool(_BOORU_KEYS & set(map(folded, entry)))
    for key, value in entry.items():
        name = folded(key)
        match = _KEYS.fullmatch(name) or _TAG_STRING.fullmatch(name)
        if match is None or value is None:
            continue
        by_spaces = is_booru or name.startswith("tag_string") or bool(match[1])
        for group, tags in _groups(value, key, where, by_spaces=by_spaces):
            by_group.setdefault(match[1] or group, []).extend(tags)
        keys.append(str(key))
    if not keys and (groups := _bare_groups(entry)):
        by_group, keys = groups, [str(key) for key in entry]
    unused = [tag for name in _NOT_OF_THE_IMAGE for tag in by_group.get(name, ())]
    names = [*_GROUPS, *(name for name in by_group if name not in _GROUPS)]
    tags = [tag for name in names if name not in _NOT_OF_THE_IMAGE for tag in by_group.get(name, ())]
    used = tuple(tag for tag in dict.fromkeys(tags) if tag not in unused)
    return ReadTags(used, tuple(keys), tuple(dict.fromkeys(unused)))


def _groups(value: Any, key: str, where: str, *, by_spaces: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield (group, tags) of a value; the group is "" if the tags have none."""
    if isinstance(value, Mapping) and not _are_scores(value):
        for group, inner in value.items():
            yield folded(group), _tag_list(inner, f"{key}.{group}", where, by_spaces=by_spaces)
    else:
        yield "", _tag_list(value, str(key), where, by_spaces=by_spaces)


def _tag_list(value: Any, key: str, where: str, *, by_spaces: bool) -> list[str]:
    if value is None:
        return []
    if isinstance(value, Mapping) and (not value or _are_scores(value)):
        return [_readable(str(tag)) for tag in value]
    items = value if isinstance(value, list | tuple) else [value]
    texts = [_item_text(item) for item in items if item is not None]
    if not all(isinstance(text, str) for text in texts):
        message = f"{key} must be text or a list of texts, not {str(value)[:40]!r}"
        raise DataError(message, where=where, remedy='write {"tags": ["...", "..."]}')
    tags = []
    for text in texts:
        tags += _split_tags(text, by_spaces=by_spaces and isinstance(value, str))
    return tags


def _item_text(item: Any) -> Any:
    if isinstance(item, Mapping):
        return next((item[key] for key in _ITEM_KEYS if isinstance(item.get(key), str)), item)
    return item


def _split_tags(text: str, *, by_spaces: bool) -> list[str]:
    """Split a text of tags at commas, or at spaces if it is a list as sites store it."""
    words = text.split()
    if "," not in text and len(words) > 1 and (by_spaces or any("_" in word for word in words)):
        return [_readable(word) for word in words]
    return [tag for part in text.split(",") if (tag := _readable(part.strip()))]


def _readable(tag: str) -> str:
    """Return a tag with spaces: `long_hair` is "long hair", but the faces `^_^` and `x_x` stay."""
    return tag.replace("_", " ") if _WORD.search(tag) and " " not in tag else tag


def _bare_groups(entry: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the tags of a file that holds only a tagger's probabilities, in groups or not."""
    if _are_scores(entry):
        return {"": [_readable(str(tag)) for tag in entry]}
    groups = {folded(group): inner for group, inner in entry.items()}
    if groups and set(groups) <= _GROUP_NAMES and all(isinstance(v, Mapping) for v in groups.values()):
        return {
            group: [_readable(str(tag)) for tag in inner]
            for group, inner in groups.items()
            if _are_scores(inner)
        }
    return {}


def _are_scores(value: Mapping[str, Any]) -> bool:
    """Return True for probabilities of tags."""
    return bool(value) and all(isinstance(score, float) and 0 <= score <= 1 for score in value.values())


def tags_text(tags: Sequence[str]) -> str:
    """Return tags as one caption."""
    return ", ".join(tags)
