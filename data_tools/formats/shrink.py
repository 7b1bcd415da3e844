"""Make large pictures smaller on their way into a dataset: decoded once, wholly, and written in their format.

A photograph of 12 megapixels is 3 MB of which training at 1024 pixels sees a tenth; smaller ones are sooner
sent to a rented machine, and sooner read there.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image

from data_tools.formats import DatasetFile
from data_tools.listing import IMAGE_SUFFIXES
from data_tools.scan import CRASHED_REASON, MIN_FILES_FOR_POOL
from data_tools.workers import OrderedProcessPool
from lorakit.core.errors import ConfigError
from lorakit.imaging import decode
from lorakit.imaging.decode import EXIF_TRANSPOSE, JPEG_SCALE_MARGIN, ImageError
from lorakit.imaging.image_reader import ImageSource

JPEG_QUALITY = 98  # of JPEG, all colours kept (4:4:4): 42 dB and more on photographs
POOL_BYTES = 256 << 20  # as much to do as POOL_FROM pictures, and no more is read ahead
FORMATS = frozenset({"JPEG", "MPO", "PNG"})
_INVERSE_ROTATION = {
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}  # every other turn undoes itself


class ResizeResult(NamedTuple):
    """What became of one file: the bytes of the smaller picture, or why it cannot be read; neither for what
    stays as it is."""

    data: bytes | None = None
    reason: str | None = None


def resize_entries(
    entries: Iterable[DatasetFile], short_side: int
) -> Iterator[tuple[DatasetFile, ResizeResult]]:
    """The entries in their order with what became of each: pictures of more than `short_side` pixels each way
    are made smaller, in processes when there are many.

    Raises `ConfigError` for a dataset with records of ours, which tell of the pictures as they are.
    """
    waiting = _require_foreign(entries)
    first = _peek(waiting)
    count = (
        (os.cpu_count() or 1) if len(first) == MIN_FILES_FOR_POOL or _total_bytes(first) >= POOL_BYTES else 1
    )
    function = functools.partial(resize_entry, short_side)
    # One at a time: what is on its way to a process is held in memory.
    for entry, made in _zip_results(
        itertools.chain(first, waiting), OrderedProcessPool(function, _crashed, count, chunk=1)
    ):
        yield entry if made.data is None else entry._replace(data=made.data), made


def resize_entry(short_side: int, entry: DatasetFile) -> ResizeResult:
    """The picture with a shorter side of `short_side`; upright or lying as it was, its colours in sRGB.

    Transparent pictures stay as they are, because their transparency may be their mask, and so do formats
    other than JPEG and PNG. Every stream is decoded to its end: one that is cut is told as `scan` tells it.
    """
    if PurePosixPath(entry.name).suffix.lower() not in IMAGE_SUFFIXES:
        return ResizeResult()
    try:
        source = decode.open_source(
            entry.data,
            where=entry.name,
            background=decode.WHITE,
            max_pixels=decode.MAX_PIXELS,
            first_frame=False,
        )
        share = short_side / min(source.image.size)
        if share >= 1 or source.image.format not in FORMATS or source.image.has_transparency_data:
            return ResizeResult()
        return ResizeResult(_encode_resized(source, share))
    except ImageError as error:
        return ResizeResult(reason=error.reason)


def _peek(entries: Iterator[DatasetFile]) -> list[DatasetFile]:
    """As many as tell whether there is enough to do for processes, and no more than fit in memory."""
    first: list[DatasetFile] = []
    while (
        len(first) < MIN_FILES_FOR_POOL and _total_bytes(first) < POOL_BYTES and (more := next(entries, None))
    ):
        first.append(more)
    return first


def _total_bytes(entries: Sequence[DatasetFile]) -> int:
    return sum(len(entry.data) for entry in entries)


def _require_foreign(entries: Iterable[DatasetFile]) -> Iterator[DatasetFile]:
    for entry in entries:
        if entry.settled:
            message = "this dataset was packed by lorakit, whose records tell of its pictures as they are"
            remedy = "import it without --short-side, or import the folder that it was packed from"
            raise ConfigError(message, where=entry.name, remedy=remedy)
        yield entry


def _zip_results(
    entries: Iterator[DatasetFile], workers: OrderedProcessPool[DatasetFile, ResizeResult]
) -> Iterator[tuple[DatasetFile, ResizeResult]]:
    """Each entry with its answer; no more of them are held than are with the workers."""
    sent: deque[DatasetFile] = deque()

    def jobs() -> Iterator[DatasetFile]:
        for entry in entries:
            sent.append(entry)
            yield entry

    for answer in workers.run(jobs()):
        yield sent.popleft(), answer


def _encode_resized(source: ImageSource, share: float) -> bytes:
    """The file of the picture with sides of `share` times its own."""
    from lorakit.imaging.resize import (
        crop_and_resize_tensor,  # imports torch, whose resizing is several times as quick
    )

    grey, jpeg = source.image.mode in ("1", "L", "I;16"), source.is_jpeg
    width, height = source.load(
        (JPEG_SCALE_MARGIN * share * source.size[0], JPEG_SCALE_MARGIN * share * source.size[1])
    )
    size = max(1, round(width * share)), max(1, round(height * share))
    pixels = source.pixels()
    small = crop_and_resize_tensor(pixels, (0, 0, *pixels.shape[1::-1]), size).permute(1, 2, 0).numpy()
    lying = _to_stored_orientation(small, source.orientation)
    return _jpeg(lying, source.orientation) if jpeg else _png(lying, source.orientation, grey)


def _to_stored_orientation(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The picture as its file keeps it: masks made of the file by tools that ignore EXIF still fit it."""
    turn = _INVERSE_ROTATION.get(orientation, EXIF_TRANSPOSE.get(orientation))
    return pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))


def _jpeg(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=JPEG_QUALITY, colorsubsampling="444"
    )
    if orientation == 1:
        return data
    exif = _exif(orientation)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def _png(pixels: NDArray[np.uint8], orientation: int, grey: bool) -> bytes:
    buffer, picture = io.BytesIO(), Image.fromarray(pixels)
    more = {} if orientation == 1 else {"exif": _exif(orientation)}
    (picture.convert("L") if grey else picture).save(buffer, "PNG", **more)
    return buffer.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


def _crashed(entry: DatasetFile) -> ResizeResult:
    return ResizeResult(reason=CRASHED_REASON)
