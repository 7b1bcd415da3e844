"""Captions in the files beside an image: `a.txt`, `a.caption` and `a.json` for `a.jpg`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from data_tools.captions import columns
from data_tools.captions.lines import split_captions
from data_tools.captions.text import clean_caption, decode_text
from data_tools.listing import CAPTION_SUFFIXES, Listing
from data_tools.scan import resolve_inside
from lorakit.core.errors import DataError
from lorakit.core.strict_json import parse_json
from lorakit.imaging import decode
from lorakit.manifest import Caption

MAX_BYTES = 1 << 20
TAGS_UNUSED = "caption_tags_unused"
_JSON_REMEDY = 'write {"caption": "..."}, {"captions": ["...", "..."]} or {"tags": ["...", "..."]}'


@dataclass
class ImageCaptions:
    """Captions, tags, notes and repeats of one image."""

    captions: list[Caption] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repeats: int = 1


def read_sidecars(
    listing: Listing, file: str, extension: str | None, encoding: str, lines: str = "auto"
) -> ImageCaptions:
    """Read the caption files of an image; all different texts count.

    With `extension` (".txt"), only such files are read. `lines` is the way to read several lines (lines.py).
    """
    collected = ImageCaptions()
    for name in _sidecars(listing, file, extension):
        path = resolve_inside(listing.root, name)
        data = decode.read_file(path, MAX_BYTES)
        text = decode_text(data, str(path), encoding)
        if path.suffix.lower() == ".json":
            texts = _read_json(text, str(path), collected)
        else:
            texts, notes = split_captions(text, name, lines)
            collected.notes += notes
        for raw in texts:
            cleaned, notes = clean_caption(raw, name)
            collected.notes += notes
            if not cleaned:
                collected.notes.append(f"caption_empty: {PurePosixPath(name).name}")
            elif cleaned not in [caption.text for caption in collected.captions]:
                collected.captions.append(Caption(cleaned, "file"))
    return collected


def _sidecars(listing: Listing, file: str, only_extension: str | None) -> list[str]:
    """Return the existing caption files of an image, such as `a.txt` or `a.jpg.txt`."""
    stem = str(PurePosixPath(file).with_suffix(""))
    suffixes = CAPTION_SUFFIXES if only_extension is None else (only_extension,)
    names = [f"{base}{suffix}" for suffix in suffixes for base in (stem, file)]
    existing = [name for name in dict.fromkeys(names) if name in listing.sidecars]
    if existing:
        return existing
    # Cameras and Windows write A.TXT, and two systems may encode an accent differently (NFC and NFD).
    normalized = dict.fromkeys(map(listing.normalize_name, names))
    return [sidecar for name in normalized for sidecar in listing.unclaimed_sidecars.get(name, ())]


def _read_json(text: str, where: str, collected: ImageCaptions) -> list[str]:
    """Return the captions of a JSON caption file; its tags, and what is not read, go into `collected`."""
    value = parse_json(text, where, remedy=_JSON_REMEDY) if text.strip() else {}
    if not isinstance(value, Mapping):
        raise DataError("a JSON caption file must hold an object", where=where, remedy=_JSON_REMEDY)
    tags = [
        tag.strip()
        for text in columns.text_list(value.get("tags", []), "tags", where)
        for tag in text.split(",")
    ]
    tags = [tag for tag in tags if tag]
    collected.tags += [tag for tag in tags if tag not in collected.tags]
    texts = columns.caption_texts(value, where) or []
    if texts and tags and not any(", ".join(tags) in one for one in texts):
        collected.notes.append(f"{TAGS_UNUSED}: {len(tags)} tags of {PurePosixPath(where).name}")
    if unread := columns.unread_columns(value, ("tags", *columns.CAPTION_COLUMNS)):
        collected.notes.append(columns.unread_note(unread))
    return texts or ([", ".join(tags)] if tags else [])
