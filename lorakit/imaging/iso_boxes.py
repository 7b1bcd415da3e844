"""Boxes of AVIF, HEIC and JPEG 2000 files (ISO/IEC 14496-12, 23008-12).

The colors of a file are those of its primary item: gain maps, alpha planes and thumbnails have their own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_BOXES = 10_000


class Box(NamedTuple):
    """The type of a box, and where its content starts and ends."""

    kind: bytes
    start: int
    end: int


def iter_boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """Yield the boxes between two places; a box that states more bytes than there are ends at `end`."""
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1 and start + 16 <= end:
            size, header = struct.unpack_from(">Q", data, start + 8)[0], 16
        elif size == 0:  # up to the end
            size = end - start
        if size < header:
            return
        yield Box(kind, start + header, min(end, start + size))
        start += size


def are_boxes_complete(data: bytes) -> bool:
    """Return True if the boxes of a file fill it from its start to its end."""
    place = 0
    for box in iter_boxes(data, 0, len(data)):
        size = int.from_bytes(data[place : place + 4])
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16])
        place = box.end if size == 0 else place + size
    return place == len(data)


class ItemColor(NamedTuple):
    """Codes of primaries and transfer, and the content of the boxes on brightness, or b""."""

    primaries: int
    transfer: int
    content_light: bytes
    mastering_display: bytes


def primary_color(data: bytes) -> ItemColor | None:
    """Return the colors of the primary image of an AVIF or HEIC if it has an nclx box, else None."""
    try:
        properties = {
            (kind, data[start : start + 4] if kind == b"colr" else b""): data[start:end]
            for kind, start, end in _primary_properties(data)
        }
        nclx = properties.get((b"colr", b"nclx"))
        if nclx is None:
            return None
        light, display = properties.get((b"clli", b""), b""), properties.get((b"mdcv", b""), b"")
        primaries, transfer = struct.unpack_from(">HH", nclx, 4)
        return ItemColor(primaries, transfer, light, display)
    except (struct.error, IndexError):
        return None


def _primary_properties(data: bytes) -> list[Box]:
    meta = _child(data, Box(b"", 0, len(data)), b"meta")
    if meta is None:
        return []
    inner = Box(b"meta", meta.start + 4, meta.end)
    primary, properties = _child(data, inner, b"pitm"), _child(data, inner, b"iprp")
    container = properties and _child(data, properties, b"ipco")
    if primary is None or properties is None or not container:
        return []
    item = struct.unpack_from(">I" if data[primary.start] else ">H", data, primary.start + 4)[0]
    boxes = list(iter_boxes(data, container.start, container.end))
    indices = _property_indices(data, properties, item)
    return [boxes[index - 1] for index in indices if 0 < index <= len(boxes)]


def _child(data: bytes, parent: Box, kind: bytes) -> Box | None:
    return next((box for box in iter_boxes(data, parent.start, parent.end) if box.kind == kind), None)


def _property_indices(data: bytes, properties: Box, item: int) -> list[int]:
    """Return the numbers (from 1) of the properties of an item."""
    for box in iter_boxes(data, properties.start, properties.end):
        if box.kind != b"ipma":
            continue
        version, is_wide = data[box.start], bool(data[box.start + 3] & 1)
        (count,) = struct.unpack_from(">I", data, box.start + 4)
        place = box.start + 8
        for _ in range(min(count, MAX_BOXES)):
            (owner,) = struct.unpack_from(">I" if version else ">H", data, place)
            place += 4 if version else 2
            number, place = data[place], place + 1
            if owner == item:
                form, mask = (f">{number}H", 0x7FFF) if is_wide else (f">{number}B", 0x7F)
                return [index & mask for index in struct.unpack_from(form, data, place)]
            place += number * (2 if is_wide else 1)
    return []
