"""Downscale large images during an import: each is decoded completely once, and keeps its format.

Training at 1024 pixels uses a tenth of a photograph of 12 megapixels (3 MB); smaller files are faster to copy
to a rented machine and faster to read there.
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
from data_tools.process_pool import OrderedProcessPool
from data_tools.scan import CRASHED_REASON, MIN_FILES_FOR_POOL
from lorakit.core.errors import ConfigError
from lorakit.imaging import decode
from lorakit.imaging.decode import EXIF_TRANSPOSE, JPEG_SCALE_MARGIN, ImageError
from lorakit.imaging.image_reader import ImageSource

JPEG_QUALITY = 98  # with 4:4:4 color: 42 dB and more on photographs
POOL_BYTES = 256 << 20  # enough work for processes, and the limit of what is read ahead
FORMATS = frozenset({"JPEG", "MPO", "PNG"})
# All other orientations are their own inverse.
_INVERSE_ROTATION = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


class ResizeResult(NamedTuple):
    """The bytes of the resized image, or the reason if it cannot be read; neither for an unchanged file."""

    data: bytes | None = None
    reason: str | None = None


def resize_entries(
    entries: Iterable[DatasetFile], short_side: int
) -> Iterator[tuple[DatasetFile, ResizeResult]]:
    """Yield the entries in their order, each with its result; many are resized in processes.

    Images whose shorter side is above `short_side` pixels are resized. Raises `ConfigError` for a dataset
    with lorakit's records, which describe the original images.
    """
    pending = _require_foreign(entries)
    first = _peek(pending)
    count = (
        (os.cpu_count() or 1) if len(first) == MIN_FILES_FOR_POOL or _total_bytes(first) >= POOL_BYTES else 1
    )
    function = functools.partial(resize_entry, short_side)
    # One at a time, because the jobs of a process are held in memory.
    for entry, result in _zip_results(
        itertools.chain(first, pending), OrderedProcessPool(function, _crashed, count, chunk_size=1)
    ):
        yield entry if result.data is None else entry._replace(data=result.data), result


def resize_entry(short_side: int, entry: DatasetFile) -> ResizeResult:
    """Resize an image to a shorter side of `short_side`, in its stored orientation and in sRGB.

    Images with transparency stay unchanged, because it may be their mask, and so do formats other than JPEG
    and PNG. Each image is decoded to its end, and damage is reported as in a scan.
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
        scale = short_side / min(source.image.size)
        if scale >= 1 or source.image.format not in FORMATS or source.image.has_transparency_data:
            return ResizeResult()
        return ResizeResult(_encode_resized(source, scale))
    except ImageError as error:
        return ResizeResult(reason=error.reason)


def _peek(entries: Iterator[DatasetFile]) -> list[DatasetFile]:
    """Read as many entries as show if processes are worthwhile, and at most POOL_BYTES."""
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
        if entry.keep_name:
            message = "the dataset was exported by lorakit, and its records describe the original images"
            remedy = "import it without --short-side, or import the folder that it was exported from"
            raise ConfigError(message, where=entry.name, remedy=remedy)
        yield entry


def _zip_results(
    entries: Iterator[DatasetFile], pool: OrderedProcessPool[DatasetFile, ResizeResult]
) -> Iterator[tuple[DatasetFile, ResizeResult]]:
    """Yield each entry with its result; only entries in flight are held in memory."""
    sent: deque[DatasetFile] = deque()

    def jobs() -> Iterator[DatasetFile]:
        for entry in entries:
            sent.append(entry)
            yield entry

    for result in pool.run(jobs()):
        yield sent.popleft(), result


def _encode_resized(source: ImageSource, scale: float) -> bytes:
    """Return the file of the image with its sides multiplied by `scale`."""
    from lorakit.imaging.resize import crop_and_resize_tensor  # imports torch, which resizes faster

    gray, jpeg = source.image.mode in ("1", "L", "I;16"), source.is_jpeg
    width, height = source.decode_stream(
        (JPEG_SCALE_MARGIN * scale * source.size[0], JPEG_SCALE_MARGIN * scale * source.size[1])
    )
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = source.pixels()
    small = crop_and_resize_tensor(pixels, (0, 0, *pixels.shape[1::-1]), size).permute(1, 2, 0).numpy()
    stored = _to_stored_orientation(small, source.orientation)
    return _jpeg(stored, source.orientation) if jpeg else _png(stored, source.orientation, gray)


def _to_stored_orientation(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return the pixels as stored in the file, so that masks made without EXIF still fit."""
    transpose = _INVERSE_ROTATION.get(orientation, EXIF_TRANSPOSE.get(orientation))
    return pixels if transpose is None else np.asarray(Image.fromarray(pixels).transpose(transpose))


def _jpeg(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=JPEG_QUALITY, colorsubsampling="444"
    )
    if orientation == 1:
        return data
    exif = _exif(orientation)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def _png(pixels: NDArray[np.uint8], orientation: int, gray: bool) -> bytes:
    buffer, image = io.BytesIO(), Image.fromarray(pixels)
    exif = {} if orientation == 1 else {"exif": _exif(orientation)}
    (image.convert("L") if gray else image).save(buffer, "PNG", **exif)
    return buffer.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


def _crashed(entry: DatasetFile) -> ResizeResult:
    return ResizeResult(reason=CRASHED_REASON)
