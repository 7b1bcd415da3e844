"""Roles of the columns of a table or a webdataset: image, sources, controls, mask, captions, tags.

The user's choice goes first, then names that public sets use (`column_names`). Several columns of images that
are not clear are an error that lists them; every column that is not used is named with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from data_tools.captions import columns
from data_tools.formats.column_names import image_role, instruction_rank, is_caption, is_tags
from data_tools.listing import IMAGE_SUFFIXES
from lorakit.core.errors import ConfigError, DataError
from lorakit.imaging import signatures

Kind = Literal["image", "path", "address", "text", "object", "other", "empty"]
_ADDRESS = re.compile(r"(?:https?|ftp|s3|gs|hf)://\S+$", re.IGNORECASE)
FindFile = Callable[[str], Path | None]
_NAMES = re.compile(
    r"(?:^|[_.-])(?:id|ids|key|hash|sha256|md5|index|idx|uid|uuid|name|filename|path)$|^__", re.I
)
_CHOOSE_CAPTION = "not read as a caption; --caption-column {} reads it"
_CHOOSE_IMAGE = "another image; --image-column and --control-column choose others"


@dataclass(frozen=True)
class ColumnChoice:
    """Columns that the user chose; `target` is the edited image of an edit, `images` then its sources."""

    captions: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    target: str | None = None
    controls: tuple[str, ...] = ()
    mask: str | None = None

    def names(self) -> list[str]:
        """Return all columns of the choice."""
        single = [name for name in (self.target, self.mask) if name is not None]
        return [*self.captions, *self.images, *single, *self.controls]


@dataclass(frozen=True)
class ColumnRoles:
    """The columns that are used, and the reason for each that is not."""

    image: str
    sources: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    mask: str | None = None
    captions: tuple[str, ...] = ()
    tags: str | None = None
    unused: Mapping[str, str] = field(default_factory=dict)

    def used(self) -> dict[str, list[str]]:
        """Return the columns by role, without roles that no column has."""
        roles: dict[str, Sequence[str | None]] = {
            "image": [self.image],
            "source": self.sources,
            "control": self.controls,
            "mask": [self.mask],
            "captions": self.captions,
            "tags": [self.tags],
        }
        return {role: [name for name in names if name] for role, names in roles.items() if any(names)}


class _Images(NamedTuple):
    image: str
    sources: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    mask: str | None = None


def assign_roles(
    rows: Sequence[Mapping[str, Any]],
    where: str,
    choice: ColumnChoice | None = None,
    find: FindFile = lambda path: None,
) -> ColumnRoles:
    """Return the roles of the columns of a table, of which `rows` are the first rows.

    `find` returns the file of a path in the table, if it is one of the source. Raises `ConfigError` if no
    column has images, if several have and no choice was made, or for a choice that does not exist.
    """
    choice = choice or ColumnChoice()
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    _check_choice(choice, names, rows, where)
    kinds = {name: _column_kind(name, rows, find) for name in names}
    images = _image_columns(kinds, choice, where)
    tags = next((name for name in names if is_tags(name) and kinds[name] in ("text", "empty")), None)
    captions = choice.captions or tuple(_caption_columns(kinds, is_edit=bool(images.sources)))
    tags = None if tags in captions else tags
    used = {images.image, *images.sources, *images.controls, images.mask, *captions, tags}
    used |= {name.partition(".")[0] for name in choice.captions}
    unused = {
        name: _reason(name, kind, is_edit=bool(images.sources))
        for name, kind in kinds.items()
        if name not in used and kind != "empty"
    }
    return ColumnRoles(*images, captions, tags, unused)


def _check_choice(
    choice: ColumnChoice, names: Sequence[str], rows: Sequence[Mapping[str, Any]], where: str
) -> None:
    inner = {key for row in rows for key, _ in _inner_columns(row)}
    for name in choice.names():
        if name not in names and name not in inner:
            remedy = f"its columns are {', '.join([*names, *sorted(inner)])}"
            raise ConfigError(f"the source has no column {name!r}", where=where, remedy=remedy)


def _inner_columns(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (`column.key`, value) of the texts in the objects of a row."""
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and not is_image_cell(value):
            yield from _inner_columns(value, f"{name}.")
        elif prefix:
            yield name, value


# ---- the content of a column -------------------------------------------------------------------------------


def _column_kind(name: str, rows: Sequence[Mapping[str, Any]], find: FindFile) -> Kind:
    kinds = {_cell_kind(name, row.get(name), find) for row in rows} - {"empty"}
    if not kinds:
        return "empty"
    order: tuple[Kind, ...] = ("image", "path", "text", "address", "object", "other")
    return next(kind for kind in order if kind in kinds)


def image_kind(rows: Sequence[Mapping[str, Any]], find: FindFile) -> Kind | None:
    """Return what these rows hold of images: themselves, paths of files in the source, addresses, or None."""
    names = dict.fromkeys(str(name) for row in rows for name in row)
    kinds = {_column_kind(name, rows, find) for name in names}
    order: tuple[Kind, ...] = ("image", "path", "address")
    return next((kind for kind in order if kind in kinds), None)


def is_image_cell(value: Any) -> bool:
    """Return True for an image as `datasets` stores it: bytes, a path, or both."""
    return isinstance(value, Mapping) and bool(value) and set(value) <= {"bytes", "path"}


def _cell_kind(name: str, value: Any, find: FindFile) -> Kind:
    if value is None:
        return "empty"
    if isinstance(value, list | tuple):
        item = next((item for item in value if item is not None), None)
        is_plain = isinstance(item, Mapping) and not is_image_cell(item)
        return _objects_kind(value) if is_plain else _cell_kind(name, item, find)
    if is_image_cell(value):
        path = value.get("path")
        has_only_path = value.get("bytes") is None and isinstance(path, str)
        return "address" if has_only_path and _ADDRESS.match(str(path)) else "image"
    if isinstance(value, bytes):
        is_image = signatures.is_image_header(value[:16]) or image_role(name) != "unknown"
        return "image" if is_image else "other"
    if isinstance(value, str):
        return _text_kind(value.strip(), find)
    return "object" if isinstance(value, Mapping) and columns.has_words(value) else "other"


def _objects_kind(values: Sequence[Any]) -> Kind:
    """Return "text" for a list of objects with a caption each, such as `{"raw": "a dog"}`."""
    try:
        return "text" if columns.text_list(values, "", "") else "other"
    except DataError:
        return "object" if columns.has_words(values) else "other"


def _text_kind(text: str, find: FindFile) -> Kind:
    if not text:
        return "empty"
    if _ADDRESS.match(text):
        return "address"
    suffix = PurePosixPath(text.replace("\\", "/")).suffix.lower() if len(text) < 1024 else ""
    if suffix in IMAGE_SUFFIXES:
        return "path" if find(text) else "other"
    return "text" if columns.has_words(text) else "other"


# ---- columns of images -------------------------------------------------------------------------------------


def _image_columns(kinds: Mapping[str, Kind], choice: ColumnChoice, where: str) -> _Images:
    present = [name for name, kind in kinds.items() if kind == "image"]
    present = present or [name for name, kind in kinds.items() if kind == "path"]
    chosen = [name for name in choice.names() if name in kinds and name not in choice.captions]
    candidates = list(dict.fromkeys([*present, *chosen]))
    if not candidates:
        raise _no_image_error(kinds, where)
    roles = {name: image_role(name) for name in candidates}
    masks = [name for name, role in roles.items() if role == "mask" and len(candidates) > 1]
    mask = choice.mask or (masks[0] if len(masks) == 1 else None)
    named = [name for name, role in roles.items() if role == "control" and name not in chosen]
    controls = choice.controls or tuple(named if len(candidates) > 1 else ())
    rest = [name for name in candidates if name not in (mask, *controls)]
    if choice.target is not None:
        others = choice.images or _sources_of(choice.target, rest, roles)
        if others is None:
            raise _several_error(candidates, where)
        return _Images(choice.target, tuple(others), controls, mask)
    if choice.images:
        if len(choice.images) > 1:
            remedy = "name the edited image with --target-column; the others are then its sources"
            raise ConfigError("several image columns without a target", where=where, remedy=remedy)
        return _Images(choice.images[0], (), controls, mask)
    image = _find_target(rest, roles)
    sources = None if image is None else _sources_of(image, rest, roles)
    if image is None or sources is None or (len(masks) > 1 and mask is None):
        raise _several_error(candidates, where)
    return _Images(image, tuple(sources), controls, mask)


def _find_target(names: Sequence[str], roles: Mapping[str, str]) -> str | None:
    """Return the image to train on: the target, else the plain image, else the only one; None if unclear."""
    for role in ("target", "image"):
        if matching := [name for name in names if roles[name] == role]:
            return matching[0] if len(matching) == 1 else None
    return names[0] if len(names) == 1 else None


def _sources_of(target: str, names: Sequence[str], roles: Mapping[str, str]) -> list[str] | None:
    """Return the images before the edit; None if a column is neither of the two."""
    others = [name for name in names if name != target]
    sources = [name for name in others if roles[name] == "source"]
    plain = [name for name in others if roles[name] == "image"]
    if not sources and len(others) == len(plain) == 1:
        return plain
    return sources if len(others) == len(sources) else None


def _several_error(names: Sequence[str], where: str) -> ConfigError:
    message = f"each row has several images, and their roles are not clear: {', '.join(names)}"
    remedy = (
        "name the image to train on with --image-column; of an edit, the edited image with --target-column"
        " and the one before with --image-column; --mask-column and --control-column name others"
    )
    return ConfigError(message, where=where, remedy=remedy)


def _no_image_error(kinds: Mapping[str, Kind], where: str) -> ConfigError:
    addresses = [name for name, kind in kinds.items() if kind == "address"]
    if addresses:
        message = f"the table has only addresses of images, which are not downloaded: {', '.join(addresses)}"
        remedy = "download the images, for example with img2dataset, and import its output"
        return ConfigError(message, where=where, remedy=remedy)
    message = f"no column has images; the columns are {', '.join(kinds)}"
    remedy = "give the table that holds the images, or whose paths lead to images beside it"
    return ConfigError(message, where=where, remedy=remedy)


# ---- columns of captions -----------------------------------------------------------------------------------


def _caption_columns(kinds: Mapping[str, Kind], *, is_edit: bool) -> list[str]:
    """Return the columns of captions: of an edit its instruction, else all that look like captions."""
    texts = [name for name, kind in kinds.items() if kind in ("text", "empty")]
    if is_edit:
        ranks = {name: rank for name in texts if (rank := instruction_rank(name)) is not None}
        filled = [name for name in ranks if kinds[name] == "text"]
        best = min((ranks[name] for name in filled), default=None)
        if best is not None:
            return [name for name in filled if ranks[name] == best]
    names = [name for name in texts if is_caption(name)]
    return names if any(kinds[name] == "text" for name in names) else []


def _reason(name: str, kind: Kind, *, is_edit: bool) -> str:
    """Return why a column is not used."""
    if kind == "address":
        return "an address, which is not downloaded"
    if kind == "object":
        return f"an object; --caption-column {name}.KEY reads one of its texts"
    if kind == "image":
        return _CHOOSE_IMAGE
    if kind == "text" and not _NAMES.search(name):
        about = "not the instruction of the edit; " if is_edit and is_caption(name) else ""
        return about + _CHOOSE_CAPTION.format("NAME")
    return "numbers, names or other values, not captions" if kind != "path" else "paths of images"
