"""Collect the captions of each image: from files beside it, metadata, its folder's name, or a template.

Captions of the user come first and are replaced only on request. Nothing is changed silently: text that
cannot be read is an error with its position, a change (joined lines, removed characters) is a note.
"""

from __future__ import annotations

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
from lorakit.core.strict_json import parse_json
from lorakit.imaging import decode
from lorakit.manifest import USER_METADATA_NOTE, Caption, Record

REREAD_SOURCES = ("file", "metadata", "folder", "template")  # collected again in every run
NOTES = frozenset(
    {
        "caption_lines_joined",
        "caption_control_characters",
        "caption_conflict",
        "caption_empty",
        "user_metadata",
    }
)
CAPTIONS_REPLACED = "captions_replaced"  # note of images whose own captions a model's have replaced
MAX_BYTES = 1 << 20
_TEXT_KEYS = ("caption", "text", "prompt")
_JSON_REMEDY = 'write {"caption": "..."}, {"captions": ["...", "..."]} or {"tags": ["...", "..."]}'


@dataclass(frozen=True)
class CaptionOptions:
    """Sources of captions. `class_noun` and `trigger` give the template "a photo of <trigger> <class_noun>".

    With `caption_extension` (".txt"), only such caption files are read. `caption_edits` (edits.py) apply to
    every caption; None means the edits that the manifest records.
    """

    class_noun: str | None = None
    trigger: str | None = None
    caption_from_folder: bool = False
    overwrite_captions: bool = False
    allow_missing_captions: bool = False
    caption_encoding: str = "utf-8"
    caption_extension: str | None = None
    caption_edits: tuple[str, ...] | None = None

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work, before any file is read."""
        if self.overwrite_captions and self.template_caption() is None:
            remedy = "give --class-noun or --trigger for the caption that replaces the others"
            raise ConfigError(
                "--overwrite-captions without a new caption", where="overwrite-captions", remedy=remedy
            )
        if self.caption_extension is not None and self.caption_extension not in CAPTION_SUFFIXES:
            remedy = f"use one of {', '.join(CAPTION_SUFFIXES)}"
            raise ConfigError(
                f"{self.caption_extension!r} is not an extension of caption files",
                where="caption-extension",
                remedy=remedy,
            )
        edits.check_edits(self.caption_edits or ())

    def template_caption(self) -> str | None:
        """Return the caption for images without one, or None."""
        words = [word.strip() for word in (self.trigger or "", self.class_noun or "") if word.strip()]
        return f"a photo of {' '.join(words)}" if words else None


@dataclass
class _ImageCaptions:
    """Captions, tags, notes and repeats of one image."""

    captions: list[Caption] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repeats: int = 1


def collect_captions(listing: Listing, records: Sequence[Record], options: CaptionOptions) -> list[Record]:
    """Return the records with captions, tags and repeats; raise `DataError` for text that cannot be read."""
    options.check()
    if options.caption_extension is not None:
        _require_extension(listing, options.caption_extension)
    metadata = read_metadata_captions(listing, options.caption_encoding)
    kohya = read_kohya_captions(listing, options.caption_encoding)
    return [
        _collect_for_record(listing, r, metadata.get(r.file), kohya.get(r.file), options) for r in records
    ]


def _require_extension(listing: Listing, extension: str) -> None:
    """Raise `DataError` if there are caption files, but none with this extension."""
    others = [name for name in sorted(listing.sidecars) if not name.endswith(extension)]
    if others and len(others) == len(listing.sidecars):
        other = PurePosixPath(others[0]).suffix
        raise DataError(
            f"there are no {extension} files, but {len(others)} with {other}: {', '.join(others[:3])}",
            where=str(listing.root),
            remedy=f"give --caption-extension {other}, or leave it out to read them all",
        )


def apply_edits_to_records(records: Sequence[Record], options: CaptionOptions) -> list[Record]:
    """Return the records with edited captions, for captions that were made after `collect_captions`."""
    edited = []
    for record in records:
        captions, notes = _apply_edits(record.captions, record, options)
        edited.append(replace(record, captions=tuple(captions), notes=(*record.notes, *notes)))
    return edited


def files_without_caption(records: Sequence[Record]) -> list[str]:
    """Return the kept images without a caption."""
    return [record.file for record in records if record.keep and not record.caption]


def require_captions(records: Sequence[Record], root: Path) -> None:
    """Raise `DataError` naming the kept images without a caption."""
    without = files_without_caption(records)
    if not without:
        return
    kept = sum(record.keep for record in records)
    empty = sum(any(note.startswith("caption_empty") for note in r.notes) for r in records if r.keep)
    examples = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
    raise DataError(
        f"{len(without)} of {kept} images have no caption"
        + (f" ({empty} caption files are empty)" if empty else "")
        + f": {examples}",
        where=str(root),
        remedy="write a .txt file beside each image, or name the subject: --class-noun dog --trigger sks",
    )


def _collect_for_record(
    listing: Listing,
    record: Record,
    metadata_caption: str | None,
    kohya_caption: str | None,
    options: CaptionOptions,
) -> Record:
    """Collect for one image; its captions in the user's metadata file and in kohya's JSON are given."""
    collected = _from_sidecars(listing, record.file, options)
    if metadata_caption is not None:
        collected.notes.append(USER_METADATA_NOTE)
    if metadata_caption and not collected.captions:
        collected.captions = [Caption(metadata_caption, "metadata")]
    elif metadata_caption and metadata_caption not in [caption.text for caption in collected.captions]:
        collected.notes.append(
            "caption_conflict: the metadata file has another caption; the caption file is used"
        )
    if kohya_caption and not collected.captions:
        collected.captions = [Caption(kohya_caption, "metadata")]
    _from_folder(record.file, collected, use_folder_names=options.caption_from_folder)
    captions = _select_sources(collected.captions, record, options)
    captions, emptied = _apply_edits(captions, record, options)
    collected.notes += emptied
    with_notes = replace_notes(record, NOTES, collected.notes)
    return replace(
        with_notes,
        captions=tuple(captions),
        tags=tuple(collected.tags) or record.tags,
        repeats=collected.repeats if collected.repeats > 1 else record.repeats,
    )


def _select_sources(current: list[Caption], record: Record, options: CaptionOptions) -> list[Caption]:
    """Return the captions to use, out of those collected now and those of the earlier manifest."""
    earlier = record.captions
    template = options.template_caption()
    # An exported dataset has the same captions in files and manifest.
    previous_by_text = {clean_caption(caption.text, "")[0]: caption for caption in earlier}
    written_by_user = [
        previous_by_text.get(caption.text, caption) for caption in current if caption.source != "folder"
    ]
    others = [c for c in earlier if c.source not in REREAD_SOURCES and c not in written_by_user]
    if others and any(note_code(note) == CAPTIONS_REPLACED for note in record.notes):
        written_by_user = []  # the user replaced them by a model's captions
    if template and (options.overwrite_captions or not (written_by_user or others)):
        return [Caption(template, "template")]
    if written_by_user or others:
        return [*written_by_user, *others]
    return current or [caption for caption in earlier if caption.source == "template"]


def _apply_edits(
    captions: Sequence[Caption], record: Record, options: CaptionOptions
) -> tuple[list[Caption], list[str]]:
    """Return the edited captions and notes; the edits are those of the options, else the recorded ones."""
    recorded = {(c.source, c.model): c.edits for c in reversed(record.captions)}
    edited, notes = [], []
    for caption_index, caption in enumerate(captions):
        specs = (
            recorded.get((caption.source, caption.model), ())
            if options.caption_edits is None
            else options.caption_edits
        )
        changed = (
            edits.edit_caption(caption, specs, record.file, caption_index)
            if specs or caption.edits
            else caption
        )
        if changed.text:
            edited.append(changed)
        else:
            notes.append(f"caption_empty: the edits leave nothing of {caption.text[:60]!r}")
    return edited, notes


def _from_folder(file: str, collected: _ImageCaptions, *, use_folder_names: bool) -> None:
    """Take repeats and a caption from a kohya folder (`10_name`), or a caption from any folder name."""
    folder = PurePosixPath(file).parent.name
    if counted := parse_kohya_folder(folder):
        collected.repeats, folder = counted
    elif not use_folder_names:
        return
    if folder and not collected.captions:
        collected.captions = [Caption(clean_caption(folder.replace("_", " "), folder)[0], "folder")]


# ---- files beside the image --------------------------------------------------------------------------------


def _from_sidecars(listing: Listing, file: str, options: CaptionOptions) -> _ImageCaptions:
    """Read the captions of `a.txt`, `a.caption` and `a.json` beside `a.jpg`; all different texts count."""
    collected = _ImageCaptions()
    for name in _sidecars(listing, file, options.caption_extension):
        path = resolve_inside(listing.root, name)
        data = decode.read_file(path)
        if len(data) > MAX_BYTES:
            message = f"a caption file of {len(data)} bytes (limit {MAX_BYTES})"
            raise DataError(message, where=str(path), remedy="replace it by a caption file, or move it away")
        text = decode_text(data, str(path), options.caption_encoding)
        texts, tags = _read_json(text, str(path)) if name.endswith(".json") else ([text], [])
        collected.tags += [tag for tag in tags if tag not in collected.tags]
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
    # Files from two systems may encode an accent differently (NFC and NFD): compare normalized names.
    return [
        listing.by_normalized_name[name]
        for name in map(listing.normalize_name, names)
        if name in listing.by_normalized_name
    ]


def _read_json(text: str, where: str) -> tuple[list[str], list[str]]:
    """Return the captions and the tags of a JSON caption file."""
    value = parse_json(text, where, remedy=_JSON_REMEDY) if text.strip() else {}
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
