"""Captions and files by image from tables: metadata.jsonl, .csv and .parquet, kohya's JSON, and others.

A table is read once. Each row names its image; a row that cannot be used is a problem with its place, and the
others are used. Tables nearer to an image go before others, metadata files before those of other names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from data_tools.captions import columns
from data_tools.captions.entries import Entry, read_entry
from data_tools.captions.table_captions import RowProblem, TableCaption, Tables
from data_tools.captions.table_files import Row, read_rows
from data_tools.captions.text import clean_caption
from data_tools.listing import OWN_FILES, ROW_SUFFIXES, Listing, file_stem
from data_tools.scan import resolve_inside
from lorakit import manifest
from lorakit.core.errors import DataError

MASK_COLUMN = "mask_file_name"
CONDITIONING_COLUMNS = {"source": "source_file_name", "control": "control_file_name"}
FILE_COLUMNS = (MASK_COLUMN, *CONDITIONING_COLUMNS.values())
MAX_REPEATS = 1000  # in kohya's `10_name`; a larger number is a year or an id
EMPTY = "caption_empty"
ROWS_JOINED = "caption_rows_joined"
_OTHER_TABLES = ROW_SUFFIXES | {".json"}
_MAX_OTHER_TABLES = 200
_KOHYA = re.compile(r"([1-9]\d*)_(.+)")
_KOHYA_KEYS = ("caption", "tags")


def parse_kohya_folder(name: str) -> tuple[int, str] | None:
    """Return (repeats, name) of a folder named like `10_sks dog` for kohya's scripts; None for any other."""
    match = _KOHYA.fullmatch(name)
    return (int(match[1]), match[2]) if match and int(match[1]) <= MAX_REPEATS else None


def is_metadata_file(table: str) -> bool:
    """Return True for the names that ImageFolder reads."""
    return PurePosixPath(table).name in manifest.METADATA_FILES


def with_tables(listing: Listing, encoding: str = "utf-8", chosen: Sequence[str] = ()) -> Listing:
    """Return the listing with what its tables say, without a metadata.jsonl that lorakit wrote.

    `chosen` are the columns of captions that the user chooses.
    """
    tables = _empty_tables()
    for name in sorted(_user_metadata(listing), key=lambda name: -name.count("/")):
        _TableReader(listing, name, tables, chosen).read(encoding)
    for name in listing.kohya_metadata:
        _KohyaReader(listing, name, tables, chosen).read(encoding)
    for name in _other_tables(listing):
        other = _empty_tables()
        _OtherReader(listing, name, other, chosen).read(encoding)
        if other.captions:
            _merge(tables, other)
            tables.other_names.append(name)
    used = set(tables.other_names)
    return replace(
        listing,
        tables=tables,
        sidecars=listing.sidecars - used,
        other_files=tuple(name for name in listing.other_files if name not in used),
    )


def _empty_tables() -> Tables:
    return Tables(files={column: {} for column in FILE_COLUMNS})


def _user_metadata(listing: Listing) -> list[str]:
    is_generated = (listing.root / manifest.METADATA_FILE) not in listing.user_metadata_files()
    return [name for name in listing.metadata if not (is_generated and name == manifest.METADATA_FILE)]


def _other_tables(listing: Listing) -> Iterator[str]:
    """Yield files that may be tables by their names: those that belong to no image."""
    names = [name for name in listing.text_candidates if os.path.splitext(name)[1].lower() in _OTHER_TABLES]
    if not names:
        return
    owners = set(map(file_stem, listing.images)) | listing.image_set
    names = [name for name in names if file_stem(name) not in owners]
    if not names:
        return
    owners |= set(map(listing.normalize_name, owners))
    names = [name for name in names if listing.normalize_name(file_stem(name)) not in owners]
    if len(names) <= _MAX_OTHER_TABLES:  # more are files of images that are not here
        yield from sorted(name for name in names if os.path.basename(name) not in OWN_FILES)


def _merge(tables: Tables, other: Tables) -> None:
    for image, captions in other.captions.items():
        tables.captions.setdefault(image, []).extend(captions)
    for column, by_image in other.files.items():
        tables.files[column] = by_image | tables.files[column]
    tables.problems += other.problems
    tables.names += other.names


class _TableReader:
    """Reads one table into `tables`."""

    def __init__(self, listing: Listing, name: str, tables: Tables, chosen: Sequence[str]) -> None:
        self.listing, self.name, self.tables, self.chosen = listing, name, tables, chosen
        self.folder = PurePosixPath(name).parent
        self.captions: dict[str, TableCaption] = {}
        self.without_text: dict[str, str] = {}  # the place by image

    def read(self, encoding: str) -> None:
        """Read the table; captions of several rows for one image are captions of the image."""
        try:
            path = resolve_inside(self.listing.root, self.name)
        except DataError as error:
            self.add_problem("", "unreadable", error)
            return
        for place, row in read_rows(path, encoding, lambda at, e: self.add_problem(at, "unreadable", e)):
            self._read_row(place, row)
        has_texts = any(caption.texts for caption in self.captions.values())
        for image, caption in self.captions.items():
            if image in self.without_text and has_texts and not caption.texts:
                caption.notes.append(f"{EMPTY}: {self.name}, {self.without_text[image]}")
            if len(caption.places) > 1 and len(caption.texts) > 1:
                places = ", ".join(caption.places)
                caption.notes.append(f"{ROWS_JOINED}: {places} of {self.name} are captions of one image")
            self.tables.captions.setdefault(image, []).append(caption)
        if has_texts:
            self.tables.names.append(self.name)

    def _read_row(self, place: str, row: Row) -> None:
        where = f"{self.listing.root / self.name}, {place}"
        try:
            image = self.find_image(row, where)
        except DataError as error:
            self.add_problem(place, "no_image", error)
            return
        caption = self.captions.setdefault(image, TableCaption(self.name))
        caption.places.append(place)
        has_files = self._read_files(place, row, image, where)
        try:
            entry = self.read_captions(row, where)
        except DataError as error:
            self.add_problem(place, "no_text", error)
            return
        if not entry.texts and not has_files:
            self.without_text[image] = place
        self._add(caption, entry)

    def _add(self, caption: TableCaption, entry: Entry) -> None:
        notes = list(entry.notes)
        for text in entry.texts:
            line, changes = clean_caption(text, self.name)
            notes += changes
            caption.texts += [line] if line and line not in caption.texts else []
        caption.tags += [tag for tag in entry.tags if tag not in caption.tags]
        caption.notes += [note for note in notes if note not in caption.notes]

    def _read_files(self, place: str, row: Row, image: str, where: str) -> bool:
        """Read the columns that name files, such as `mask_file_name`: one file, or a list of several."""
        has_files = False
        for column in FILE_COLUMNS:
            value = row.get(column)
            values = value if isinstance(value, list) else [value]
            names = [file for file in values if isinstance(file, str) and file]
            has_files = has_files or bool(names)
            try:
                files = [self._referenced_file(file, column, where) for file in names]
            except DataError as error:
                self.add_problem(place, "no_file", error)
                continue
            if files:
                self.tables.files[column].setdefault(image, files)
        return has_files

    def _referenced_file(self, name: str, column: str, where: str) -> str:
        manifest.check_dataset_path(name, where)
        file = str(self.folder / PurePosixPath(name))
        if not resolve_inside(self.listing.root, file).is_file():
            what = column.removesuffix("_file_name")
            raise DataError(f"there is no {what} {name!r}", where=where, remedy=f"correct {column}")
        return file

    def read_captions(self, row: Row, where: str) -> Entry:
        """Return the captions of a row."""
        known = (*FILE_COLUMNS, *columns.IMAGE_COLUMNS)
        return read_entry(row, self.name, where, known=known, chosen=self.chosen)

    def find_image(self, row: Row, where: str) -> str:
        """Return the image that a row names, as in the listing."""
        by_name = {columns.folded(key): value for key, value in row.items()}
        names = [by_name[key] for key in columns.IMAGE_COLUMNS if isinstance(by_name.get(key), str)]
        if not names:
            remedy = f"name the column file_name; this row has the columns {', '.join(map(str, row))}"
            raise DataError("a row without file_name", where=where, remedy=remedy)
        error = None
        for name in names:
            try:
                return self.resolve_name(name, where)
            except DataError as problem:
                error = error or problem
        raise error or DataError("a row without file_name", where=where)

    def resolve_name(self, name: str, where: str) -> str:
        """Return the image of the listing that a name in the table means."""
        manifest.check_dataset_path(name, where)
        file = str(self.folder / PurePosixPath(name.replace("\\", "/")))
        if file in self.listing.image_set:
            return file
        normalized = self.listing.images_by_normalized_name.get(self.listing.normalize_name(file))
        normalized = normalized or self.listing.images_by_stem.get(file)
        if normalized is None:
            message = f"there is no image {name[:80]!r}"
            raise DataError(message, where=where, remedy="correct file_name, or delete the row")
        return normalized

    def add_problem(self, place: str, code: str, error: DataError) -> None:
        """Add a row that is not used."""
        self.tables.problems.append(RowProblem(self.name, place, code, error.message, error.remedy))


class _KohyaReader(_TableReader):
    """Reads kohya's JSON: `{"path": {"caption": ..., "tags": ...}, ...}`.

    Paths are those of the machine that wrote the file, with or without extension: the longest end of a path
    that names an image here is used. No such path is opened. Tags follow the caption, as kohya trains them.
    """

    def resolve_name(self, name: str, where: str) -> str:
        parts = name.replace("\\", "/").split("/")
        ends = [str(self.folder.joinpath(*parts[index:])) for index in range(len(parts))]
        for end in ends:
            image = end if end in self.listing.image_set else self.listing.images_by_stem.get(end)
            if image is not None:
                return image
        raise DataError(f"there is no image {name[:80]!r}", where=where, remedy="correct or delete the entry")

    def read_captions(self, row: Row, where: str) -> Entry:
        texts = [_kohya_text(row.get(key), key, where) for key in _KOHYA_KEYS]
        unread = columns.unread_columns(row, _KOHYA_KEYS)
        text = ", ".join(filter(None, texts)) or str(row.get("text") or "")
        notes = (columns.unread_note(unread),) if unread and not row.get("text") else ()
        return Entry((text,) if text else (), notes=notes, is_empty=not text)


class _OtherReader(_TableReader):
    """Reads a file that may be a table of this folder: then its rows name images and have captions."""

    def read(self, encoding: str) -> None:
        super().read(encoding)
        if not self.tables.names:
            self.tables.captions.clear()


def _kohya_text(value: Any, key: str, where: str) -> str:
    """Return a caption, or tags as text or list, as one text."""
    return ", ".join(text.strip() for text in columns.text_list(value, key, where) if text.strip())
