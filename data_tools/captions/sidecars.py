"""Captions in the files beside an image: `a.txt`, `a.caption` and `a.json` for `a.jpg`.

A file that cannot be read is a note of its image; the image's other files are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from data_tools.captions.entries import SETTINGS_UNUSED, read_entry
from data_tools.captions.generation_settings import split_settings
from data_tools.captions.lines import exported_captions, split_captions
from data_tools.captions.text import clean_caption, decode_text
from data_tools.listing import CAPTION_SUFFIXES, Listing, file_stem
from data_tools.scan import resolve_inside
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.strict_json import parse_json
from lorakit.imaging import decode
from lorakit.manifest import Caption

MAX_BYTES = 1 << 20
UNREADABLE = "caption_unreadable"
LEFT_OUT = "caption_files_left_out"
_JSON_REMEDY = 'write {"caption": "..."}, {"captions": ["...", "..."]} or {"tags": ["...", "..."]}'


@dataclass(frozen=True)
class SidecarOptions:
    """The end of the names to read (".txt"), or None for all; encoding, lines and columns as in
    `CaptionOptions`.
    """

    extension: str | None = None
    encoding: str = "utf-8"
    lines: str = "auto"
    columns: tuple[str, ...] = ()


@dataclass
class ImageCaptions:
    """Captions, tags, notes and repeats of one image."""

    captions: list[Caption] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repeats: int = 1


def read_sidecars(
    listing: Listing, file: str, options: SidecarOptions, known: Sequence[str] = ()
) -> ImageCaptions:
    """Read the caption files of an image; all different texts count.

    `known` are its captions in an earlier manifest, which decides what the lines of an exported file are.
    """
    collected = ImageCaptions()
    names = sidecar_names(listing, file, options.extension)
    for name in names:
        try:
            texts = _read_file(listing, name, collected, options, known)
        except ConfigError:
            raise  # a wrong option, the same for every file
        except DataError as error:
            remedy = f" ({error.remedy})" if error.remedy else ""
            collected.notes.append(f"{UNREADABLE}: {name}: {error.message}{remedy}")
            continue
        for raw in texts:
            cleaned, notes = clean_caption(raw, name)
            collected.notes += notes
            if not cleaned:
                collected.notes.append(f"caption_empty: {PurePosixPath(name).name}")
            elif cleaned not in [caption.text for caption in collected.captions]:
                collected.captions.append(Caption(cleaned, "file"))
    if options.extension is not None:
        others = [name for name in sidecar_names(listing, file, None) if name not in names]
        if others:
            collected.notes.append(f"{LEFT_OUT}: {', '.join(others)}")
    return collected


def _read_file(
    listing: Listing, name: str, collected: ImageCaptions, options: SidecarOptions, known: Sequence[str]
) -> Sequence[str]:
    """Return the captions of a file; its tags and notes go into `collected`."""
    path = resolve_inside(listing.root, name)
    text = decode_text(decode.read_file(path, MAX_BYTES), str(path), options.encoding)
    if path.suffix.lower() == ".json":
        return _read_json(text, name, str(path), collected, options)
    if options.lines == "auto" and (exported := exported_captions(text, known)):
        return exported
    prompt, settings = split_settings(text)
    if settings:
        message = f"{SETTINGS_UNUSED}: the settings after the prompt in {name}: {settings[:60]!r}"
        collected.notes.append(message)
    texts, notes = split_captions(prompt, name, options.lines)
    collected.notes += notes
    return texts


def sidecar_names(listing: Listing, file: str, only_extension: str | None) -> list[str]:
    """Return the existing caption files of an image, such as `a.txt` or `a.jpg.txt`."""
    stem = file_stem(file)
    suffixes = CAPTION_SUFFIXES if only_extension is None else (only_extension,)
    names = [f"{base}{suffix}" for suffix in suffixes for base in (stem, file)]
    files = listing.sidecars if only_extension in (None, *CAPTION_SUFFIXES) else listing.text_candidates
    existing = [name for name in dict.fromkeys(names) if name in files]
    if existing:
        return existing
    # Cameras and Windows write A.TXT, and two systems may encode an accent differently (NFC and NFD).
    normalized = dict.fromkeys(map(listing.normalize_name, names))
    return [sidecar for name in normalized for sidecar in listing.unclaimed_sidecars.get(name, ())]


def _read_json(
    text: str, name: str, where: str, collected: ImageCaptions, options: SidecarOptions
) -> Sequence[str]:
    """Return the captions of a JSON caption file; its tags, and what is not read, go into `collected`."""
    value = parse_json(text, where, remedy=_JSON_REMEDY, allow_infinity=True) if text.strip() else {}
    entries = value if isinstance(value, list) else [value]
    texts = [entry for entry in entries if isinstance(entry, str)]
    if texts and len(texts) == len(entries):
        return texts
    if len(entries) != 1 or not isinstance(entries[0], Mapping):
        raise DataError("a JSON caption file must hold an object", where=where, remedy=_JSON_REMEDY)
    entry = read_entry(entries[0], PurePosixPath(name).name, where, chosen=options.columns)
    collected.tags += [tag for tag in entry.tags if tag not in collected.tags]
    collected.notes += entry.notes
    return entry.texts or ([""] if entry.is_empty or not value else [])
