"""Pair every image with its captions: from files beside it, metadata, its folder's name, or a template.

What a person wrote comes first and is never replaced unless asked to. Nothing is cut or skipped silently:
text that cannot be read is an error with its place, a change (joined lines, stripped characters) is a note.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.captions import edits
from data_tools.captions.metadata import parse_kohya_folder, read_kohya_captions, read_metadata_captions
from data_tools.captions.text import clean_caption, decode_text
from data_tools.listing import CAPTION_SUFFIXES, Listing
from data_tools.scan import note_code, replace_notes, resolve_inside
from lorakit.core.errors import ConfigError, DataError
from lorakit.imaging import decode
from lorakit.manifest import USER_METADATA_NOTE, Caption, Record

REREAD_SOURCES = ("sidecar", "metadata", "folder", "template")  # read again from their origin every time
NOTES = frozenset({"caption_joined", "caption_stripped", "caption_unused", "caption_empty", "metadata"})
CAPTIONS_REPLACED = "captions_replaced"  # the note of images whose written captions a model's have replaced
MAX_BYTES = 1 << 20
_TEXT_KEYS = ("caption", "text", "prompt")
_JSON_REMEDY = 'write {"caption": "..."}, {"captions": ["...", "..."]} or {"tags": ["...", "..."]}'


@dataclass(frozen=True)
class CaptionOptions:
    """Where captions come from. `class_noun` and `trigger` give "a photo of <trigger> <class_noun>".

    With `suffix` (".txt"), only such files count. `edits` (edits.py) apply to every caption; None: those that
    the manifest records.
    """

    class_noun: str | None = None
    trigger: str | None = None
    folder_names: bool = False
    overwrite: bool = False
    allow_missing: bool = False
    encoding: str = "utf-8"
    suffix: str | None = None
    edits: tuple[str, ...] | None = None

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work, before any file is read."""
        if self.overwrite and self.template() is None:
            remedy = "give --class-noun or --trigger, whose caption shall replace the others"
            raise ConfigError("--overwrite without a new caption", where="overwrite", remedy=remedy)
        if self.suffix is not None and self.suffix not in CAPTION_SUFFIXES:
            remedy = f"use one of {', '.join(CAPTION_SUFFIXES)}"
            raise ConfigError(f"no such caption file: {self.suffix!r}", where="caption-suffix", remedy=remedy)
        edits.check_edits(self.edits or ())

    def template(self) -> str | None:
        """The caption for images that have none, or None."""
        words = [word.strip() for word in (self.trigger or "", self.class_noun or "") if word.strip()]
        return f"a photo of {' '.join(words)}" if words else None


@dataclass
class _ImageCaptions:
    """What was found for one image."""

    captions: list[Caption] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repeats: int = 1


def collect_captions(listing: Listing, records: Sequence[Record], options: CaptionOptions) -> list[Record]:
    """The records with captions, tags and repeats; raises `DataError` for text that cannot be read."""
    options.check()
    if options.suffix is not None:
        _require_suffix(listing, options.suffix)
    metadata = read_metadata_captions(listing, options.encoding)
    kohya = read_kohya_captions(listing, options.encoding)
    return [
        _collect_for_record(listing, r, metadata.get(r.file), kohya.get(r.file), options) for r in records
    ]


def _require_suffix(listing: Listing, suffix: str) -> None:
    """Caption files of another kind beside the images, and none of this: the user means those."""
    others = [name for name in sorted(listing.sidecars) if not name.endswith(suffix)]
    if others and len(others) == len(listing.sidecars):
        found = PurePosixPath(others[0]).suffix
        raise DataError(
            f"there are no {suffix} files, but {len(others)} with {found}: {', '.join(others[:3])}",
            where=str(listing.root),
            remedy=f"give --caption-suffix {found}, or leave it out to read them all",
        )


def apply_edits_to_records(records: Sequence[Record], options: CaptionOptions) -> list[Record]:
    """The records after the edits, for captions that were made since `collect`."""
    made = []
    for record in records:
        kept, notes = _apply_edits(record.captions, record, options)
        made.append(replace(record, captions=tuple(kept), notes=(*record.notes, *notes)))
    return made


def files_without_caption(records: Sequence[Record]) -> list[str]:
    """The kept images without a caption."""
    return [record.file for record in records if record.keep and not record.caption]


def require_captions(records: Sequence[Record], root: Path) -> None:
    """Raise `DataError` naming the kept images without a caption."""
    without = files_without_caption(records)
    if not without:
        return
    kept = sum(record.keep for record in records)
    empty = sum(any(note.startswith("caption_empty") for note in r.notes) for r in records if r.keep)
    shown = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
    raise DataError(
        f"{len(without)} of {kept} images have no caption"
        + (f" ({empty} caption files are empty)" if empty else "")
        + f": {shown}",
        where=str(root),
        remedy="write a .txt file beside each image, or name what they show: --class-noun dog --trigger sks",
    )


def _collect_for_record(
    listing: Listing, record: Record, row: str | None, other: str | None, options: CaptionOptions
) -> Record:
    """`row` is what the user's metadata file says, `other` what the JSON of kohya's scripts does."""
    found = _from_sidecars(listing, record.file, options)
    if row is not None:
        found.notes.append(USER_METADATA_NOTE)
    if row and not found.captions:
        found.captions = [Caption(row, "metadata")]
    elif row and row not in [caption.text for caption in found.captions]:
        found.notes.append("caption_unused: the metadata file says otherwise, the caption file counts")
    if other and not found.captions:
        found.captions = [Caption(other, "metadata")]
    _from_folder(record.file, found, named=options.folder_names)
    captions = _select_sources(found.captions, record, options)
    captions, emptied = _apply_edits(captions, record, options)
    found.notes += emptied
    with_notes = replace_notes(record, NOTES, found.notes)
    return replace(
        with_notes,
        captions=tuple(captions),
        tags=tuple(found.tags) or record.tags,
        repeats=found.repeats if found.repeats > 1 else record.repeats,
    )


def _select_sources(found: list[Caption], record: Record, options: CaptionOptions) -> list[Caption]:
    """What counts, given the captions found now and those of an earlier manifest."""
    earlier = record.captions
    template = options.template()
    said = {
        clean_caption(caption.text, "")[0]: caption for caption in earlier
    }  # an exported dataset says all in file and manifest
    written = [said.get(caption.text, caption) for caption in found if caption.source != "folder"]
    others = [c for c in earlier if c.source not in REREAD_SOURCES and c not in written]
    if others and any(note_code(note) == CAPTIONS_REPLACED for note in record.notes):
        written = []  # the user had a model's words put in their place
    if template and (options.overwrite or not (written or others)):
        return [Caption(template, "template")]
    if written or others:
        return [*written, *others]
    return found or [caption for caption in earlier if caption.source == "template"]


def _apply_edits(
    captions: Sequence[Caption], record: Record, options: CaptionOptions
) -> tuple[list[Caption], list[str]]:
    """(the captions after the edits, notes): after those given now, else those recorded for their source."""
    recorded = {(c.source, c.model): c.edits for c in reversed(record.captions)}
    kept, notes = [], []
    for variant, caption in enumerate(captions):
        specs = recorded.get((caption.source, caption.model), ()) if options.edits is None else options.edits
        changed = (
            edits.edit_caption(caption, specs, record.file, variant) if specs or caption.edits else caption
        )
        if changed.text:
            kept.append(changed)
        else:
            notes.append(f"caption_empty: the edits leave nothing of {caption.text[:60]!r}")
    return kept, notes


def _from_folder(file: str, found: _ImageCaptions, *, named: bool) -> None:
    """kohya's `10_name` folders give repeats and a caption; other folder names give one when asked for."""
    folder = PurePosixPath(file).parent.name
    if counted := parse_kohya_folder(folder):
        found.repeats, folder = counted
    elif not named:
        return
    if folder and not found.captions:
        found.captions = [Caption(clean_caption(folder.replace("_", " "), folder)[0], "folder")]


# ---- files beside the image --------------------------------------------------------------------------------


def _from_sidecars(listing: Listing, file: str, options: CaptionOptions) -> _ImageCaptions:
    """Captions of `a.txt`, `a.caption` and `a.json` beside `a.jpg`; different texts are variants."""
    found = _ImageCaptions()
    for name in _sidecars(listing, file, options.suffix):
        path = resolve_inside(listing.root, name)
        data = decode.read_file(path)
        if len(data) > MAX_BYTES:
            message = f"{len(data)} bytes are too many for a caption (limit {MAX_BYTES})"
            raise DataError(message, where=str(path), remedy="is this the right file?")
        text = decode_text(data, str(path), options.encoding)
        texts, tags = _read_json(text, str(path)) if name.endswith(".json") else ([text], [])
        found.tags += [tag for tag in tags if tag not in found.tags]
        for raw in texts:
            cleaned, notes = clean_caption(raw, name)
            found.notes += notes
            if not cleaned:
                found.notes.append(f"caption_empty: {PurePosixPath(name).name}")
            elif cleaned not in [caption.text for caption in found.captions]:
                found.captions.append(Caption(cleaned, "sidecar"))
    return found


def _sidecars(listing: Listing, file: str, only: str | None) -> list[str]:
    """The caption files of an image: `a.txt` or `a.jpg.txt`, whichever exist."""
    stem = str(PurePosixPath(file).with_suffix(""))
    suffixes = CAPTION_SUFFIXES if only is None else (only,)
    names = [f"{base}{suffix}" for suffix in suffixes for base in (stem, file)]
    found = [name for name in dict.fromkeys(names) if name in listing.sidecars]
    if found:
        return found
    # A pair made on two systems may spell an accent differently (NFC and NFD): compare normalised.
    return [listing.normal[name] for name in map(listing.normalise, names) if name in listing.normal]


def _read_json(text: str, where: str) -> tuple[list[str], list[str]]:
    """(captions, tags) of a JSON caption file."""
    try:
        value = json.loads(text) if text.strip() else {}
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error}", where=where, remedy=_JSON_REMEDY) from error
    if not isinstance(value, Mapping):
        raise DataError("a JSON caption file must hold an object", where=where, remedy=_JSON_REMEDY)
    tags = _string_list(value.get("tags", []), "tags", where)
    texts = _string_list(value.get("captions", []), "captions", where, split=False)
    for key in _TEXT_KEYS:
        texts = texts or _string_list(value.get(key, []), key, where, split=False)
    return texts or ([", ".join(tags)] if tags else []), tags


def _string_list(value: Any, key: str, where: str, *, split: bool = True) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()] if split else [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise DataError(f"{key} must be text or a list of texts", where=where, remedy=_JSON_REMEDY)
