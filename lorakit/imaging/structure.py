"""Checks of the structure of an image file before Pillow's parsers, which follow every chain that it states.

A file of a few megabytes can hold millions of segments, a million frames, or a directory of tags that all
point to the same megabytes; a parser in Python needs minutes or gigabytes for them. Only the lengths are read
here.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import NamedTuple

MAX_FRAMES = 1000  # frames or pages that are counted
MAX_SEGMENTS = 10_000  # segments of one file other than its coded pixels; usual are less than a hundred
MAX_METADATA_BYTES = 16 << 20  # of EXIF, XMP and texts together
MAX_TAGS = 2000  # in one directory of tags; a camera writes about a hundred
MAX_TAG_BYTES = 64 << 20  # to which the tags of a file point together
MAX_STRIPS = 300_000  # strips or tiles of a TIFF; each is an object in memory
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_BYTES |= {16: 8, 17: 8, 18: 8}  # of BigTIFF
_TYPE_LETTERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of integers
_EXIF = b"Exif\x00\x00"


@dataclass(frozen=True)
class Structure:
    """The number of frames, at most `MAX_FRAMES` + 1, and the reason why the file cannot be opened."""

    num_frames: int = 1
    problem: str | None = None


class _TooMuch(Exception):
    """The file states more than any image has."""


def check_structure(data: bytes) -> Structure:
    """Check the lengths in an image file; other formats and broken chains are left to Pillow."""
    try:
        if data.startswith(b"\xff\xd8"):
            _check_jpeg(data)
        elif data.startswith(b"\x89PNG"):
            _check_png(data)
        elif data.startswith(b"GIF8"):
            return Structure(_count_gif_frames(data))
        elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return Structure(_check_tags(data))
        elif data.startswith(b"\0\0\0\x0cjP  ") or data[4:8] == b"ftyp":
            _check_boxes(data)
        elif re.match(rb"P[1-6fF]\s", data):
            _check_ppm(data)
    except _TooMuch as error:
        return Structure(problem=str(error))
    except (struct.error, IndexError):
        pass
    return Structure()


def check_exif(exif: bytes) -> bool:
    """Return True if an EXIF block can be parsed in little memory; a broken one can."""
    try:
        _check_tags(exif.removeprefix(_EXIF))
    except _TooMuch:
        return False
    except (struct.error, IndexError):
        pass
    return len(exif) <= MAX_METADATA_BYTES


def is_empty_exif(exif: bytes) -> bool:
    """Return True for a block that states that it holds no tags, as some programs leave."""
    data = exif.removeprefix(_EXIF)
    order = "<" if data[:1] == b"I" else ">"
    try:
        (place,) = struct.unpack_from(order + "I", data, 4)
        return data[:2] in (b"II", b"MM") and struct.unpack_from(order + "H", data, place)[0] == 0
    except struct.error:
        return False


def _count(number: int, limit: int, noun: str) -> None:
    if number > limit:
        raise _TooMuch(f"more than {limit} {noun}")


def _check_jpeg(data: bytes) -> None:
    """Walk over the segments up to the coded pixels."""
    place, segments, metadata = 2, 0, 0
    while place + 4 <= len(data) and data[place] == 0xFF:
        code = data[place + 1]
        if code == 0xFF:
            place += 1
            continue
        if code in (0xDA, 0xD9):
            return
        size = int.from_bytes(data[place + 2 : place + 4])
        segments += 1
        metadata += size if 0xE0 <= code <= 0xEF or code == 0xFE else 0
        _count(segments, MAX_SEGMENTS, "segments before the image")
        _count(metadata, MAX_METADATA_BYTES, "bytes of metadata")
        if code == 0xE2 and data[place + 4 : place + 8] == b"MPF\0":
            _check_tags(data[place + 8 : place + 2 + size])
        place += 2 + size


def _check_png(data: bytes) -> None:
    place, segments, metadata = 8, 0, 0
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND" or place + 8 + size > len(data):
            return  # what follows is not part of the image, or the chunk is cut off
        if kind not in (b"IDAT", b"fdAT", b"fcTL"):
            segments += 1
            metadata += size
        _count(segments, MAX_SEGMENTS, "chunks beside the image")
        _count(metadata, MAX_METADATA_BYTES, "bytes of metadata")
        place += 12 + size


def _count_gif_frames(data: bytes) -> int:
    frames = comments = 0
    flags = data[10]
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(MAX_FRAMES * 10):
        block = data[place : place + 1]
        if block == b"!":
            is_comment = data[place + 1] == 0xFE
            end = _skip_blocks(data, place + 2)
            comments += end - place if is_comment else 0
            place = end
        elif block == b",":
            frames += 1
            flags = data[place + 9]
            place += 10 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
            place = _skip_blocks(data, place + 1)
        elif block in (b";", b""):
            return frames
        else:  # stray bytes, which Pillow skips
            place += 1
        _count(comments, 1 << 20, "bytes of comments")
        if frames > MAX_FRAMES:
            return frames
    raise _TooMuch("more blocks than any animation has")


def _skip_blocks(data: bytes, place: int) -> int:
    while size := data[place]:
        place += 1 + size
    return place + 1


def _check_tags(data: bytes) -> int:
    """Walk over the directories of a TIFF or EXIF block, and return their number in the main chain."""
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    pending = [(struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0], True)]
    seen: set[int] = set()
    pages = size = 0
    while pending:
        place, is_page = pending.pop()
        if not 0 < place < len(data) or place in seen:
            continue
        seen.add(place)
        pages += is_page
        if pages > MAX_FRAMES:
            return pages
        _count(len(seen), MAX_FRAMES + 100, "directories of tags")
        directory = _read_directory(data, place, order, big)
        for tag, kind, count, value in directory.tags:
            bytes_used = count * _TYPE_BYTES.get(kind, 1)
            size += min(bytes_used, len(data))
            _count(size, MAX_TAG_BYTES, "bytes of tags")
            if tag in (273, 324):
                _count(count, MAX_STRIPS, "strips or tiles")
            if tag in (330, 34665, 34853, 40965) and count == 1:
                pending.insert(0, (value, False))
        if is_page:
            pending.append((directory.following, True))
    return pages


class _Directory(NamedTuple):
    """Tags as (tag, type, count, value or place), and the place of the next directory."""

    tags: list[tuple[int, int, int, int]]
    following: int


def _read_directory(data: bytes, place: int, order: str, big: bool) -> _Directory:
    count = struct.unpack_from(order + ("Q" if big else "H"), data, place)[0]
    _count(count, MAX_TAGS, "tags in one directory")
    start = place + (8 if big else 2)
    entry = struct.Struct(order + ("HHQQ" if big else "HHII"))
    end = start + count * entry.size
    following = int.from_bytes(data[end : end + (8 if big else 4)], "little" if order == "<" else "big")
    complete = min(count, (len(data) - start) // entry.size)
    return _Directory([entry.unpack_from(data, start + i * entry.size) for i in range(complete)], following)


def _check_boxes(data: bytes) -> None:
    """Walk over the boxes of JPEG 2000, AVIF and HEIC."""
    place = boxes = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4])
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16])
        if size < 8:
            return
        boxes += 1
        _count(boxes, MAX_SEGMENTS, "boxes")
        place += size


def _check_ppm(data: bytes) -> None:
    """Check that the header ends soon: Pillow reads it byte by byte."""
    if len(data) > 4096 and len(re.sub(rb"#[^\r\n]*[\r\n]", b" ", data[:4096]).split()) < 4:
        raise _TooMuch("a header of more than 4096 bytes")


def read_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """Return the integer tags of the first directory of a TIFF; struct.error if it is cut off."""
    order, big = "<" if data[:1] == b"I" else ">", data[2:4] in (b"+\0", b"\0+")
    (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    try:
        directory = _read_directory(data, place, order, big)
    except _TooMuch:
        return {}
    start = place + (8 if big else 2)
    values: dict[int, tuple[int, ...]] = {}
    for number, (tag, kind, count, target) in enumerate(directory.tags):
        letter = _TYPE_LETTERS.get(kind)
        if letter is None or not 0 < count <= MAX_STRIPS:
            continue
        form = f"{order}{count}{letter}"
        is_inline = struct.calcsize(form) <= (8 if big else 4)
        inline_place = start + number * (20 if big else 12) + (12 if big else 8)
        values[tag] = struct.unpack_from(form, data, inline_place if is_inline else target)
    return values
