"""Decode image files to upright sRGB images, or raise one ImageError with a stable code.

All stages (hashes, captions, caches, reports) read images through this package, so all of them use the same
pixels: EXIF rotation applied, ICC profile converted to sRGB, transparency composited over a recorded color,
16 bits scaled to 8. The number of pixels is checked before memory is allocated, and the whole stream is
decoded, so that truncated files are found.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageSequence

from lorakit.core import dataset_paths, input_files
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
    "ScaledImage",
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
_UNREADABLE_REMEDY = "change its permissions, or copy it again"
THUMBNAIL_SIDE = 448  # smallest long side of a thumbnail, in pixels; it is less than twice that
# A JPEG is decoded at a reduced size only while its sides stay this many times those of the result. Compared
# with full decoding and LANCZOS, photographs then differ by 0.3 to 1.2 levels on average (42 to 53 dB, less
# than their own compression); without the margin, by up to 1.9 (39 dB).
JPEG_SCALE_MARGIN = 1.4


class _DecodeOptions(TypedDict):
    background: Color
    max_pixels: int
    first_frame: bool


@dataclass(frozen=True)
class Decoded:
    """A decoded image; `notes` are `code: text` lines about its conversion, for the manifest."""

    image: Image.Image  # RGB, upright, sRGB
    format: str
    transparent: bool
    is_multi_frame: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ImageInfo:
    """Facts about an image from one decoding; `size` (width, height) is that of the whole image."""

    thumbnail: Image.Image  # RGB, upright, sRGB; long side at least THUMBNAIL_SIDE, or the whole image
    size: tuple[int, int]
    content_hash: str
    format: str
    transparent: bool
    is_multi_frame: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ScaledImage:
    """An image decoded at full or reduced size, and the crop in its pixels, which may have fractions."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    crop: tuple[float, float, float, float]


def decode_image(
    path: str | os.PathLike[str],
    *,
    background: Color = WHITE,
    max_pixels: int = MAX_PIXELS,
    first_frame: bool = False,
) -> Image.Image:
    """Decode a file to RGB, upright, sRGB, with transparency over `background` (sRGB 0-255).

    Raises ImageError for everything except one complete still image of at most `max_pixels` pixels, and for
    animations and multi-page files unless `first_frame`.
    """
    data = read_file(path)
    decoded = decode_bytes(
        data, where=str(path), background=background, max_pixels=max_pixels, first_frame=first_frame
    )
    return decoded.image


def iter_frames(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Yield the frames of an animated image in RGB; a still image has one.

    Raises ImageError like `decode_image`, and for a damaged frame when it is reached.
    """
    data, where = read_file(path), str(path)
    source = open_source(data, where=where, background=WHITE, max_pixels=MAX_PIXELS, first_frame=True)
    try:
        for frame in ImageSequence.Iterator(source.image):
            yield frame.convert("RGB")
    except PARSE_ERRORS as error:
        remedy = "copy or generate it again"
        raise ImageError("corrupt", f"damaged: {error}", where=where, remedy=remedy) from error


def decode_bytes(
    data: bytes,
    *,
    where: str,
    background: Color = WHITE,
    max_pixels: int = MAX_PIXELS,
    first_frame: bool = False,
) -> Decoded:
    """Decode the bytes of a file; see `decode_image`. `where` names the file in errors."""
    source = open_source(
        data, where=where, background=background, max_pixels=max_pixels, first_frame=first_frame
    )
    source.decode_stream()
    return _decoded(source)


def inspect_image(source: ImageSource) -> ImageInfo:
    """Decode the whole stream once and return the facts that the manifest records.

    Of a JPEG, only the pixels of the thumbnail are computed. Raises ImageError like `decode_image`.
    """
    scale = THUMBNAIL_SIDE / max(source.size)
    size = source.decode_stream((source.size[0] * scale, source.size[1] * scale))
    digest = hashlib.sha256(struct.pack("<II", *size))
    thumbnail = _downscale(source, THUMBNAIL_SIDE, None if source.is_jpeg else digest.update)
    content_hash = _jpeg_content_hash(source) if source.is_jpeg else digest.hexdigest()
    return ImageInfo(
        thumbnail=thumbnail,
        size=size,
        content_hash=content_hash,
        format=source.image.format or "",
        transparent=source.transparent,
        is_multi_frame=source.is_multi_frame,
        notes=tuple(dict.fromkeys(source.notes)),
    )


def record_thumbnail(folder: str | os.PathLike[str], record: Record, side: int) -> Image.Image:
    """Return a record's image with a long side of at most `side` pixels, for display only."""
    source = _open_record(folder, record)
    scale = side / max(1, *record.size)
    source.decode_stream((record.width * scale, record.height * scale))
    image = _downscale(source, side)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def read_record_image(folder: str | os.PathLike[str], record: Record) -> Image.Image:
    """Decode the image of a manifest record, with the same options as when it was recorded.

    Raises ImageError, with code "changed" if it is not the recorded image.
    """
    source = _open_record(folder, record)
    source.decode_stream()
    image = _decoded(source).image
    _check_unchanged(folder, record, source, lambda: image)
    return image


def read_record_image_scaled(
    folder: str | os.PathLike[str], record: Record, crop: CropBox, size: tuple[int, int]
) -> ScaledImage:
    """Decode the image of a record that is going to be cropped to `crop` and resized to `size`.

    A JPEG that is much larger is decoded at a reduced size (see JPEG_SCALE_MARGIN). Raises ImageError like
    `read_record_image`.
    """
    source = _open_record(folder, record)
    left, top, right, bottom = crop
    x_scale, y_scale = size[0] / (right - left), size[1] / (bottom - top)
    min_size = JPEG_SCALE_MARGIN * record.width * x_scale, JPEG_SCALE_MARGIN * record.height * y_scale
    full_width, full_height = source.decode_stream(min_size)
    pixels = source.pixels()
    _check_unchanged(folder, record, source, lambda: Image.fromarray(pixels))
    x, y = pixels.shape[1] / full_width, pixels.shape[0] / full_height
    return ScaledImage(pixels, (left * x, top * y, right * x, bottom * y))


def _open_record(folder: str | os.PathLike[str], record: Record) -> ImageSource:
    path = dataset_paths.file_path(folder, record.file)
    data = read_file(path)
    hash_matches = hashlib.sha256(data).hexdigest() == record.sha256
    if record.video is not None:
        from lorakit.imaging import video

        data = video.first_frame(data, str(path))
    source = open_source(data, where=str(path), **_decode_options(record))
    source.hash_matches = hash_matches
    return source


def _decode_options(record: Record) -> _DecodeOptions:
    """Return the options that a record's image was decoded with."""
    return {
        "background": parse_color(record.background) if record.background else WHITE,
        "max_pixels": max(MAX_PIXELS, 2 * record.width * record.height),
        "first_frame": record.first_frame,
    }


def _check_unchanged(
    folder: str | os.PathLike[str], record: Record, source: ImageSource, image: Callable[[], Image.Image]
) -> None:
    """Raise ImageError unless the file, or at least the image in it, is the recorded one."""
    if source.hash_matches:
        return
    if (_jpeg_content_hash(source) if source.is_jpeg else pixel_hash(image())) != record.content_hash:
        remedy = f"run `lorakit data prepare {folder}` again"
        raise ImageError(
            "changed",
            "the image has changed since the dataset was prepared",
            where=source.where,
            remedy=remedy,
        )


def read_file(path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read a regular file; ImageError for a FIFO, socket or device, without blocking on it."""
    where = str(path)
    try:
        with input_files.open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            if size > max_bytes:
                message = f"{size} bytes, the limit is {max_bytes}"
                raise ImageError("file_too_large", message, where=where, remedy="save it as a smaller file")
            file.seek(0)
            return file.read(size)
    except FileNotFoundError as error:
        remedy = "restore it, or run `lorakit data prepare` again"
        raise ImageError("missing", "the file does not exist", where=where, remedy=remedy) from error
    except input_files.NotAFileError as error:
        message, remedy = f"{error.strerror}, not a regular file", "move it out of the folder"
        raise ImageError("not_a_file", message, where=where, remedy=remedy) from error
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise ImageError("unreadable", message, where=where, remedy=_UNREADABLE_REMEDY) from error


def pixel_hash(image: Image.Image) -> str:
    """Return the SHA-256, in hex, of width, height (little-endian uint32) and the RGB bytes."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return hashlib.sha256(struct.pack("<II", *rgb.size) + rgb.tobytes()).hexdigest()


def crop_and_resize(image: Image.Image, crop: CropBox | None, bucket: tuple[int, int] | None) -> Image.Image:
    """Crop to `crop`, then resize with LANCZOS to `bucket` (width, height); None skips a step."""
    if crop is not None and crop != (0, 0, *image.size):
        left, top, right, bottom = crop
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            message = f"crop {crop} does not lie inside the image of {image.width}x{image.height}"
            raise DataError(message, where="crop", remedy="run `lorakit data prepare` again")
        with pixel_limit(image.width * image.height):  # decoded already, so no warning
            image = image.crop(crop)
    if bucket is not None and bucket != image.size:
        image = image.resize(bucket, Image.Resampling.LANCZOS)
    return image


def parse_color(text: str) -> Color:
    """Parse `#rrggbb` or a CSS color name as RGB 0-255; ConfigError for anything else."""
    try:
        red, green, blue = ImageColor.getcolor(text, "RGB")[:3]  # type: ignore[index]
    except ValueError as error:
        remedy = "use #rrggbb or a name such as white"
        raise ConfigError(f"not a color: {text!r}", where="background", remedy=remedy) from error
    return red, green, blue


def _decoded(source: ImageSource) -> Decoded:
    image = _join_strips(source.strips(), source.size[1])
    notes = tuple(dict.fromkeys(source.notes))
    return Decoded(image, source.image.format or "", source.transparent, source.is_multi_frame, notes)


def _jpeg_content_hash(source: ImageSource) -> str:
    """Return the hash of a JPEG's coded data and orientation."""
    return hashlib.sha256(f"{source.orientation} {source.jpeg_summary.content_hash}".encode()).hexdigest()


def _downscale(
    source: ImageSource, side: int, on_strip: Callable[[bytes], object] | None = None
) -> Image.Image:
    """Return the decoded image with a long side of `side` to twice that.

    `on_strip` is called with the RGB bytes of each strip of the full image.
    """
    factor = max(1, max(source.size) // side)

    def strips() -> Iterator[Image.Image]:
        for strip in source.strips(factor):
            if on_strip is not None:
                on_strip(strip.tobytes())
            yield strip.reduce(factor) if factor > 1 else strip

    return _join_strips(strips(), -(-source.size[1] // factor))


def _join_strips(strips: Iterable[Image.Image], height: int) -> Image.Image:
    """Join strips from top to bottom into one image."""
    joined, top = None, 0
    for strip in strips:
        if strip.height == height:
            return strip
        joined = joined or Image.new("RGB", (strip.width, height))
        joined.paste(strip, (0, top))
        top += strip.height
    assert joined is not None
    return joined
