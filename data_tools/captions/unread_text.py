"""Text of the user's that no caption contains: named whenever something else became the caption.

A template, a folder's name or a model gives a caption to an image without one. If words of the user lie
beside it, in a table, in a file of another name or inside the image, they must not be hidden by that.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from data_tools.captions.embedded_text import EMBEDDED_TEXT
from data_tools.captions.sidecars import UNREADABLE
from data_tools.captions.table_captions import RowProblem, group_problems, missing_rows
from data_tools.findings import Finding, pluralize
from data_tools.listing import CAPTION_SUFFIXES, Listing
from lorakit.core import input_files
from lorakit.core.errors import DataError
from lorakit.manifest import Record

USED_SOURCES = ("file", "metadata")  # of captions that the user wrote
_DOCUMENT_SUFFIXES = ".docx .doc .odt .rtf .pdf .pages .xlsx .xls .ods .parquet .arrow .sqlite .db"
_MARKUP_SUFFIXES = ".xmp .xml .html .htm .yaml .yml .toml .ini .csv .tsv .jsonl .svg .json"
_OTHER_SUFFIXES = ".py .sh .bat .ps1 .js .css .log .lnk .url .part .tmp .aae .thm .xcf .cfg"
_DOCUMENTS = frozenset(_DOCUMENT_SUFFIXES.split())
_MARKUP = frozenset(_MARKUP_SUFFIXES.split())
_NO_CAPTIONS = frozenset(_OTHER_SUFFIXES.split())
_ABOUT = frozenset(["readme", "license", "licence", "notice", "changelog", "dockerfile", "makefile"])
_HEAD_BYTES, _MAX_TEXT_BYTES = 4096, 4 << 20
_BOUNDARY = re.compile(r"[^a-z0-9]+")
_NAMES = re.compile(r"[\w.()-]+")
_MAX_EXAMPLES = 3
_MAX_FILES = 500  # that are searched for names of images


def find_unread_text(listing: Listing, records: Sequence[Record]) -> list[Finding]:
    """Return findings on text that is not used: rows of tables, files, and descriptions inside images."""
    without = [record for record in records if record.keep and not _has_own_caption(record)]
    texts = _unclaimed_texts(listing) if without else []
    siblings = _siblings(listing, [record.file for record in without], texts)
    others = set(texts) - {name for pairs in siblings.values() for name, _ in pairs}
    return [
        *_unreadable_files([record for record in records if record.keep]),
        *_unused_rows(listing),
        *_missing_rows(listing, without),
        *_unread_siblings(siblings),
        *_files_naming_images(listing, without, sorted(others)[:_MAX_FILES]),
        *_embedded(without),
        *_other_tables(listing),
    ]


def _unreadable_files(records: Sequence[Record]) -> Iterator[Finding]:
    """Find caption files that cannot be read, with the reasons of the first."""
    notes = [note for record in records for note in record.notes if note.startswith(f"{UNREADABLE}: ")]
    reasons = list(dict.fromkeys(note.partition(": ")[2] for note in notes))
    if reasons:
        files = tuple(dict.fromkeys(reason.partition(": ")[0] for reason in reasons))
        message = f"{pluralize(len(files), 'caption file')} not read: {'; '.join(reasons[:_MAX_EXAMPLES])}"
        yield Finding("warning", UNREADABLE, message, files)


def _has_own_caption(record: Record) -> bool:
    return any(caption.source in USED_SOURCES for caption in record.captions)


# ---- tables ------------------------------------------------------------------------------------------------


def _unused_rows(listing: Listing) -> Iterator[Finding]:
    """Find rows of tables that are not used, one finding for each kind of problem."""
    for (table, _), problems in group_problems(listing.tables.problems).items():
        places = [problem.place for problem in problems if problem.place]
        what = f"{_places(places)} not used" if places else "not used"
        if len(problems) == 1:
            examples = problems[0].message
        else:
            examples = "; ".join(dict.fromkeys(map(_describe, problems[:_MAX_EXAMPLES])))
        remedy = next((f"; {problem.remedy}" for problem in problems if problem.remedy), "")
        yield Finding("warning", "table_rows_unused", f"{table}: {what}: {examples}{remedy}", (table,))
    images = listing.image_set
    for image, captions in listing.tables.captions.items():
        for caption in captions if image not in images else ():
            message = f"{caption.table}: {_places(caption.places)} describes {image}, which is not trained on"
            yield Finding("warning", "table_rows_unused", message, (caption.table, image))


def _describe(problem: RowProblem) -> str:
    return f"{problem.place}: {problem.message}" if problem.place else problem.message


def _places(places: Sequence[str]) -> str:
    """Return "line 3", or "lines 2-5, 9" for many places of one kind."""
    kinds = {place.partition(" ")[0] for place in places}
    numbers = [int(place.rpartition(" ")[2]) for place in places if place.rpartition(" ")[2].isdigit()]
    if len(places) < 2 or len(kinds) > 1 or len(numbers) < len(places):
        return ", ".join(places)
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number <= ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    listed = ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges)
    kind = kinds.pop()
    return f"{'entries' if kind == 'entry' else kind + 's'} {listed}"


def _missing_rows(listing: Listing, without: Sequence[Record]) -> Iterator[Finding]:
    for table, files in missing_rows(listing.tables, [record.file for record in without]).items():
        message = f"{table} has captions, but no row for {pluralize(len(files), 'image')}"
        yield Finding("warning", "caption_row_missing", message, tuple(files))


def _other_tables(listing: Listing) -> Iterator[Finding]:
    for name in listing.tables.other_names:
        message = "captions are read from this table because its rows name images of the folder"
        yield Finding("note", "caption_table", message, (name,))


# ---- files -------------------------------------------------------------------------------------------------


def _unclaimed_texts(listing: Listing) -> list[str]:
    """Return the files that may hold text and are not the caption file of an image, hidden ones too."""
    hidden = {name for name in listing.hidden_files if _suffix(name) in CAPTION_SUFFIXES}
    texts = [name for name in listing.text_candidates | hidden if _suffix(name) not in _NO_CAPTIONS]
    owners = {owner for image in listing.images for owner in (image, os.path.splitext(image)[0])}
    texts = [name for name in texts if not _is_sidecar(name, owners)]
    if texts:
        owners = set(map(listing.normalize_name, owners))
        texts = [name for name in texts if not _is_sidecar(listing.normalize_name(name), owners)]
    return sorted(texts)


def _is_sidecar(name: str, owners: Collection[str]) -> bool:
    stem, suffix = os.path.splitext(name)
    return suffix.lower() in CAPTION_SUFFIXES and stem in owners


def _siblings(
    listing: Listing, files: Sequence[str], texts: Sequence[str]
) -> dict[str, list[tuple[str, str]]]:
    """Return (text, image) of the texts whose names belong to one of `files`, by the names' ends."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    if not texts:
        return groups
    by_stem = {_normalized(os.path.splitext(image)[0]): image for image in files}
    by_folder: dict[str, str] = {}  # by the name in a folder, without the folder below it
    for image in files:
        path = PurePosixPath(image)
        for folder in (path.parent, path.parent.parent):
            by_folder.setdefault(_normalized(str(folder / path.stem)), image)
    for name in texts:
        owner = _owner(name, by_stem, by_folder)
        if owner is not None and _is_text(listing, name):
            stem = os.path.splitext(owner)[0]
            groups[name.removeprefix(stem) if name.startswith(stem) else _suffix(name)].append((name, owner))
    return groups


def _owner(name: str, by_stem: Mapping[str, str], by_folder: Mapping[str, str]) -> str | None:
    """Return the image whose name a file's name starts with, or has in a folder beside or below it."""
    path = PurePosixPath(name)
    base = path.name.casefold().lstrip(".")
    for end in [match.start() for match in _BOUNDARY.finditer(base)][::-1]:
        key = _normalized(str(path.with_name(base[:end]))) if base[:end] else ""
        if key in by_stem:
            return by_stem[key]
    return by_folder.get(_normalized(str(path.parent.parent / path.stem))) if len(path.parts) > 1 else None


def _normalized(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", Listing.normalize_name(name))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_text(listing: Listing, name: str) -> bool:
    """Return True for documents and for files that start with text."""
    if _suffix(name) in _DOCUMENTS:
        return True
    try:
        with input_files.open_regular(listing.root / name) as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    letters = sum(byte >= 0x20 or byte in b"\t\r\n" for byte in head)
    return letters > 0.95 * len(head) and any(chr(byte).isalpha() for byte in head)


def _unread_siblings(groups: Mapping[str, Sequence[tuple[str, str]]]) -> Iterator[Finding]:
    for end, pairs in groups.items():
        suffix = _suffix(pairs[0][0])
        is_plain = end[:1] in (".", "_", "-") and suffix not in _MARKUP | _DOCUMENTS
        is_beside = all(name.startswith(os.path.splitext(image)[0]) for name, image in pairs)
        if is_plain and is_beside:
            remedy = f"read them with --caption-extension {end}"
        else:
            remedy = "write the words into .txt files with the images' names"
        message = f"text of {pluralize(len(pairs), 'image')} without a caption of your own is not read"
        files = tuple(name for name, _ in pairs)
        yield Finding("warning", "caption_text_unread", f"{message}; {remedy}", files)


def _files_naming_images(
    listing: Listing, without: Sequence[Record], texts: Sequence[str]
) -> Iterator[Finding]:
    """Find other files of text that name images which have no caption of the user's."""
    names = {PurePosixPath(record.file).name.casefold() for record in without}
    names |= {stem for name in names if len(stem := os.path.splitext(name)[0]) > 3}
    names_images = []
    for name in texts:
        if PurePosixPath(name).stem.casefold() in _ABOUT:
            continue
        if _suffix(name) in _DOCUMENTS or _mentions(listing, name, names):
            names_images.append(name)
    if names_images:
        message = "files that may hold captions are not read, and images have no caption of yours; write"
        message += " them into .txt files, or into metadata.csv with the columns file_name and text"
        yield Finding("warning", "text_file_unread", message, tuple(names_images))


def _mentions(listing: Listing, name: str, names: set[str]) -> bool:
    if not _is_text(listing, name):
        return False
    try:
        data = input_files.read_regular(listing.root / name, _MAX_TEXT_BYTES)
    except (OSError, DataError):
        return True  # too large to look into, and text
    text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8", "replace")
    return not names.isdisjoint(word.casefold() for word in _NAMES.findall(text))


# ---- inside images -----------------------------------------------------------------------------------------


def _embedded(without: Sequence[Record]) -> Iterator[Finding]:
    """Find images with a description inside, by the fields that hold it."""
    groups: dict[str, list[str]] = defaultdict(list)
    for record in without:
        for note in record.notes:
            if note.startswith(f"{EMBEDDED_TEXT}: "):
                names = re.findall(r"(?:^|; )([^=;]+)=", note.partition(": ")[2])
                groups[", ".join(dict.fromkeys(names))].append(record.file)
    for fields, files in groups.items():
        message = f"the image file itself holds text ({fields}) that is not read"
        message += "; --caption-from-image makes it the caption"
        yield Finding("warning", "embedded_text_unread", message, tuple(files))
