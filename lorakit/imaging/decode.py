"""The one decode function: file -> upright sRGB picture, or one `ImageError` with a stable code.

Every stage (hashes, captions, cache, report) sees an image through `opening` and `source`, so all of them see
the same pixels: EXIF rotation applied, ICC profile converted to sRGB, transparency composited over a declared
colour, 16 bits scaled to 8, the pixel count checked before anything is allocated, the whole stream decoded so
that a cut file is found.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageSequence

from lorakit.core.errors import ConfigError, DataError
from lorakit.imaging.color import PARSE_ERRORS, Color
from lorakit.imaging.image_reader import EXIF_TRANSPOSE, ImageError, ImageSource, color_name, pixel_limit
from lorakit.imaging.open_image import MAX_PIXELS, open_source
from lorakit.manifest import Record

__all__ = [
    "EXIF_TRANSPOSE",
    "MAX_PIXELS",
    "WHITE",
    "CropBox",
    "Decoded",
    "ImageError",
    "ImageInfo",
    "color_name",
    "crop_and_resize",
    "decode_bytes",
    "decode_image",
    "inspect_image",
    "iter_frames",
    "open_source",
    "parse_color",
    "pixel_hash",
    "read_file",
    "read_record_image",
    "read_record_image_scaled",
    "record_thumbnail",
]

CropBox = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the decoded image
WHITE: Color = (255, 255, 255)
MAX_FILE_BYTES = 1 << 30
_READABLE = "make it readable, or copy it from where it is whole"
THUMBNAIL_SIDE = 448  # pixels of the long side that `look` gives at least, and less than twice; 1/8 of 3600
# A JPEG may be decoded smaller while its sides stay this many times those of the picture made from it. Beside
# the whole decoding and LANCZOS, photographs then differ by 0.3 to 1.2 levels in the mean (42 to 53 dB, less
# than their own compression); without the reserve, by up to 1.9 (39 dB).
JPEG_SCALE_MARGIN = 1.4


class _Decoding(TypedDict):
    background: Color
    max_pixels: int
    first_frame: bool


@dataclass(frozen=True)
class Decoded:
    """A decoded picture and what was done to get it; `notes` are `code: text` lines for the manifest."""

    image: Image.Image  # RGB, upright, sRGB
    format: str
    transparent: bool
    first_of_many: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ImageInfo:
    """What one decoding tells: a small picture to measure, the size of the whole, and its `identity`."""

    small: Image.Image  # RGB, upright, sRGB; the long side LOOK to 2 LOOK, or the picture itself
    size: tuple[int, int]
    pixels: str
    format: str
    transparent: bool
    first_of_many: bool
    notes: tuple[str, ...]


def decode_image(
    path: str | os.PathLike[str],
    *,
    background: Color = WHITE,
    max_pixels: int = MAX_PIXELS,
    first_frame: bool = False,
) -> Image.Image:
    """Decode a file to RGB, upright, sRGB; transparency shows `background` (sRGB 0-255).

    Raises `ImageError` for anything that is not one whole still picture of at most `max_pixels` pixels;
    animations and multi-page files are refused unless `first_frame`.
    """
    data = read_file(path)
    decoded = decode_bytes(
        data, where=str(path), background=background, max_pixels=max_pixels, first_frame=first_frame
    )
    return decoded.image


def iter_frames(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """The frames of an animated picture one after the other, RGB; of a still, that one.

    Raises `ImageError` like `decode`, a frame that is damaged when it is reached.
    """
    data, where = read_file(path), str(path)
    source = open_source(data, where=where, background=WHITE, max_pixels=MAX_PIXELS, first_frame=True)
    try:
        for frame in ImageSequence.Iterator(source.image):
            yield frame.convert("RGB")
    except PARSE_ERRORS as error:
        remedy = "copy it from where it is whole, or make it again"
        raise ImageError("corrupt", f"damaged: {error}", where=where, remedy=remedy) from error


def decode_bytes(
    data: bytes,
    *,
    where: str,
    background: Color = WHITE,
    max_pixels: int = MAX_PIXELS,
    first_frame: bool = False,
) -> Decoded:
    """`decode` for bytes already read, with what was done to them."""
    source = open_source(
        data, where=where, background=background, max_pixels=max_pixels, first_frame=first_frame
    )
    source.load()
    return _decoded(source)


def inspect_image(source: ImageSource) -> ImageInfo:
    """Decode the whole stream once, for everything that a dataset wants to know of a picture.

    Raises `ImageError` like `decode`. A JPEG makes only the pixels of the small picture.
    """
    share = THUMBNAIL_SIDE / max(source.size)
    size = source.load((source.size[0] * share, source.size[1] * share))
    digest = hashlib.sha256(struct.pack("<II", *size))
    small = _downscale(source, THUMBNAIL_SIDE, None if source.is_jpeg else digest.update)
    pixels = _jpeg_content_hash(source) if source.is_jpeg else digest.hexdigest()
    notes = tuple(dict.fromkeys(source.notes))
    return ImageInfo(
        small, size, pixels, source.image.format or "", source.transparent, source.first_of_many, notes
    )


def record_thumbnail(folder: str | os.PathLike[str], record: Record, side: int) -> Image.Image:
    """A record's picture with a long side of at most `side` pixels; for looking at, not for training."""
    source = _open_record(folder, record)
    share = side / max(1, *record.size)
    source.load((record.width * share, record.height * share))
    image = _downscale(source, side)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def read_record_image(folder: str | os.PathLike[str], record: Record) -> Image.Image:
    """The picture that a manifest record describes, decoded as it was then.

    A file that gives another picture now is an `ImageError` with code "changed".
    """
    source = _open_record(folder, record)
    source.load()
    image = _decoded(source).image
    _check_unchanged(folder, record, source, lambda: image)
    return image


def read_record_image_scaled(
    folder: str | os.PathLike[str], record: Record, crop: CropBox, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], tuple[float, float, float, float]]:
    """`read`, for what will be cropped and resized to `size` (width, height): (pixels (H, W, 3), crop).

    A JPEG with pixels to spare comes halved or smaller, see RESERVE; its crop may then have fractions.
    """
    source = _open_record(folder, record)
    left, top, right, bottom = crop
    across, down = size[0] / (right - left), size[1] / (bottom - top)
    whole = source.load((JPEG_SCALE_MARGIN * record.width * across, JPEG_SCALE_MARGIN * record.height * down))
    pixels = source.pixels()
    _check_unchanged(folder, record, source, lambda: Image.fromarray(pixels))
    x, y = pixels.shape[1] / whole[0], pixels.shape[0] / whole[1]
    return pixels, (left * x, top * y, right * x, bottom * y)


def _open_record(folder: str | os.PathLike[str], record: Record) -> ImageSource:
    path = Path(folder) / record.file
    data = read_file(path)
    trusted = hashlib.sha256(data).hexdigest() == record.sha256
    if record.clip is not None:
        from lorakit.imaging import video

        data = video.first_frame(data, str(path))
    source = open_source(data, where=str(path), **_decode_options(record))
    source.trusted = trusted
    return source


def _decode_options(record: Record) -> _Decoding:
    """The options with which a record's picture was decoded."""
    return {
        "background": parse_color(record.background) if record.background else WHITE,
        "max_pixels": max(MAX_PIXELS, 2 * record.width * record.height),
        "first_frame": record.first_frame,
    }


def _check_unchanged(
    folder: str | os.PathLike[str], record: Record, source: ImageSource, image: Callable[[], Image.Image]
) -> None:
    """Raise unless the file, or at least its picture, is the recorded one."""
    if source.trusted:
        return
    if (_jpeg_content_hash(source) if source.is_jpeg else pixel_hash(image())) != record.pixels:
        remedy = f"run `lorakit data prepare {folder}` again"
        raise ImageError(
            "changed", "the picture changed since it was prepared", where=source.where, remedy=remedy
        )


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file; a FIFO, socket or device is refused without ever blocking on it."""
    where = str(path)
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer; the check on the handle leaves no race.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        remedy = "put it back, or run `lorakit data prepare` again"
        raise ImageError("missing", "the file does not exist", where=where, remedy=remedy) from error
    except OSError as error:
        message = f"cannot be opened: {error.strerror}"
        raise ImageError("unreadable", message, where=where, remedy=_READABLE) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise ImageError("not_a_file", "not a regular file", where=where, remedy="move it away")
    with os.fdopen(handle, "rb") as file:
        if status.st_size > MAX_FILE_BYTES:
            message = f"{status.st_size} bytes, the limit is {MAX_FILE_BYTES}"
            raise ImageError("too_large", message, where=where, remedy="save it smaller")
        try:
            return file.read()
        except OSError as error:
            message = f"cannot be read: {error.strerror}"
            raise ImageError("unreadable", message, where=where, remedy=_READABLE) from error


def pixel_hash(image: Image.Image) -> str:
    """Hex SHA-256 over width, height (little-endian uint32) and the RGB bytes."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return hashlib.sha256(struct.pack("<II", *rgb.size) + rgb.tobytes()).hexdigest()


def crop_and_resize(image: Image.Image, crop: CropBox | None, bucket: tuple[int, int] | None) -> Image.Image:
    """Crop to `crop`, then resize with LANCZOS to exactly `bucket` (width, height); None skips a step."""
    if crop is not None and crop != (0, 0, *image.size):
        left, top, right, bottom = crop
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            message = f"crop {crop} does not lie inside the image of {image.width}x{image.height}"
            raise DataError(message, where="crop", remedy="run `lorakit data prepare` again")
        with pixel_limit(image.width * image.height):  # already decoded: Pillow need not warn again
            image = image.crop(crop)
    if bucket is not None and bucket != image.size:
        image = image.resize(bucket, Image.Resampling.LANCZOS)
    return image


def parse_color(text: str) -> Color:
    """`#rrggbb` or a CSS colour name -> RGB 0-255."""
    try:
        red, green, blue = ImageColor.getcolor(text, "RGB")[:3]  # type: ignore[index]
    except ValueError as error:
        remedy = "write #rrggbb or a name such as white"
        raise ConfigError(f"not a colour: {text!r}", where="background", remedy=remedy) from error
    return red, green, blue


def _decoded(source: ImageSource) -> Decoded:
    image = _join_strips(source.strips(), source.size[1])
    notes = tuple(dict.fromkeys(source.notes))
    return Decoded(image, source.image.format or "", source.transparent, source.first_of_many, notes)


def _jpeg_content_hash(source: ImageSource) -> str:
    """The identity of a JPEG: what was coded, and how it is turned."""
    return hashlib.sha256(f"{source.orientation} {source.coded[0]}".encode()).hexdigest()


def _downscale(source: ImageSource, side: int, see: Callable[[bytes], object] | None = None) -> Image.Image:
    """The loaded picture with a long side of `side` to twice that; `see` is given all its pixels."""
    factor = max(1, max(source.size) // side)

    def strips() -> Iterator[Image.Image]:
        for strip in source.strips(factor):
            if see is not None:
                see(strip.tobytes())
            yield strip.reduce(factor) if factor > 1 else strip

    return _join_strips(strips(), -(-source.size[1] // factor))


def _join_strips(strips: Iterable[Image.Image], height: int) -> Image.Image:
    """One picture of strips that come from above."""
    made, top = None, 0
    for strip in strips:
        if strip.height == height:
            return strip
        made = made or Image.new("RGB", (strip.width, height))
        made.paste(strip, (0, top))
        top += strip.height
    assert made is not None
    return made
