"""One opened image file: its EXIF orientation, its decoded stream, and its pixels strip by strip.

Colors are converted a strip at a time, so memory never holds several versions of a large image.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from lorakit.core.errors import DataError
from lorakit.imaging import color, jpeg, refused, structure
from lorakit.imaging.color import PARSE_ERRORS, Color
from lorakit.imaging.color_encoding import ColorEncoding, encoding_to_srgb, read_color_encoding

STRIP_PIXELS = 4_000_000  # pixels whose colors are converted at once
_JPEG = frozenset({"JPEG", "MPO"})  # a second image in an MPO is a depth map, gain map or preview
EXIF_TRANSPOSE = {  # EXIF orientation -> transposition that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSED_ORIENTATIONS = frozenset({5, 6, 7, 8})
DECOMPRESSION_BOMB_ERRORS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
_DAMAGED_REMEDY = "download or copy it again, or open and save it if it looks right"
MIN_TILE_LIMIT = 1 << 24  # pixels of one tile in a file, which may be larger than the image
_PIXEL_LIMIT = threading.RLock()
_XMP_ORIENTATION = re.compile(r'tiff:Orientation(?:\s*=\s*["\']|>)([0-9])')
# In these, the first rows of the upright image are the last rows or columns of the stored one.
_BOTTOM_UP_ORIENTATIONS = frozenset({3, 4, 7, 8})


class ImageError(DataError):
    """A file that is not a readable image. `code` is stable, for scripts and the manifest's `reason`."""

    def __init__(
        self, code: str, message: str, *, where: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(message, where=where, remedy=remedy)
        self.code = code

    @property
    def reason(self) -> str:
        """`code: message (remedy)`, without the path, for the manifest."""
        return f"{self.code}: {self.message}" + (f" ({self.remedy})" if self.remedy else "")


@dataclass
class ImageSource:
    """A still image whose header was read. After `decode_stream`, `strips` yields it upright and in sRGB."""

    image: Image.Image
    data: bytes
    where: str
    background: Color
    is_multi_frame: bool = False
    transparent: bool = False
    orientation: int = 1
    notes: list[str] = field(default_factory=list)
    hash_matches: bool = False  # the same bytes were decoded before
    decoded: NDArray[np.uint8] | None = None  # (H, W, 1 or 3), of a JPEG

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright image as decoded; before `decode_stream`, right for JPEGs only."""
        width, height = self.image.size if self.decoded is None else self.decoded.shape[1::-1]
        return (height, width) if self.orientation in _TRANSPOSED_ORIENTATIONS else (width, height)

    @functools.cached_property
    def jpeg_summary(self) -> jpeg.JpegSummary:
        """Content hash and number of scans of a JPEG."""
        return jpeg.summarize_jpeg(self.data)

    @functools.cached_property
    def color_encoding(self) -> ColorEncoding | None:
        """Color encoding that is not sRGB and not an ICC profile; None for most images."""
        has_icc = bool(self.image.info.get("icc_profile"))
        encoding = read_color_encoding(self.data, has_icc=has_icc)
        return None if encoding is None or encoding.is_srgb else encoding

    @property
    def is_jpeg(self) -> bool:
        """True if `decode_stream` can scale down while it decodes."""
        return self.image.format in _JPEG

    def decode_stream(self, min_size: tuple[float, float] | None = None) -> tuple[int, int]:
        """Decode the whole stream and return the upright size (width, height) of the image.

        With `min_size`, the smallest (width, height) that the caller can use, a JPEG may be decoded at 1/2,
        1/4 or 1/8 of its size; the returned size is still the full one. Raises ImageError for damaged data.
        """
        try:
            if self.is_jpeg:
                full_size = self.size
                self._decode_jpeg(self._jpeg_scale(min_size))
                return full_size
            width, height = self.image.size
            has_tiles = self.image.format == "TIFF"
            with pixel_limit(max(width * height, MIN_TILE_LIMIT)) if has_tiles else contextlib.nullcontext():
                self.image.load()
            if self.image.mode in ("P", "PA") and self.image.palette is None:
                raise ValueError("its palette is missing")
        except (*DECOMPRESSION_BOMB_ERRORS, *PARSE_ERRORS) as error:
            raise self._damaged_error(error) from error
        self.read_orientation()
        return self.size

    def strips(self, multiple: int = 1) -> Iterator[Image.Image]:
        """Yield the upright image from top to bottom as RGB strips.

        The height of a strip is a multiple of `multiple`, except for the last. Most images are one strip.
        """
        self._use_decoded()
        width, height = self.size
        rows = max(1, STRIP_PIXELS // width // multiple) * multiple
        if multiple == 1 and self._needs_no_conversion():
            rows = height
        for top in range(0, height, rows):
            yield self._to_srgb(self._upright_rows(top, min(height, top + rows), height))

    def pixels(self) -> NDArray[np.uint8]:
        """Return the upright image as (H, W, 3), without a copy if the decoder returned just that."""
        if self.decoded is not None and self.decoded.shape[2] == 3 and self._needs_no_conversion():
            return self.decoded
        return np.concatenate([np.asarray(strip) for strip in self.strips()])

    def _use_decoded(self) -> None:
        """Replace the Pillow image, of which only the header was read, by the decoded pixels of a JPEG."""
        if self.decoded is not None:
            image = Image.fromarray(self.decoded[..., 0] if self.decoded.shape[2] == 1 else self.decoded)
            image.format, image.info = self.image.format, self.image.info
            self.image, self.decoded = image, None

    def _needs_no_conversion(self) -> bool:
        """Return True if the pixels are upright RGB without a profile, so that strips are copies."""
        image = self.image
        upright_rgb = image.mode == "RGB" and self.orientation == 1
        is_srgb = not image.info.get("icc_profile") and self.color_encoding is None
        return upright_rgb and is_srgb and not image.has_transparency_data

    def _upright_rows(self, top: int, bottom: int, height: int) -> Image.Image:
        """Return rows of the upright image, in the file's own colors."""
        stored_width, stored_height = self.image.size
        if self.orientation in _BOTTOM_UP_ORIENTATIONS:
            top, bottom = height - bottom, height - top
        if (bottom - top) == height:
            rows = self.image
        elif self.orientation in _TRANSPOSED_ORIENTATIONS:
            rows = self.image.crop((top, 0, bottom, stored_height))
        else:
            rows = self.image.crop((0, top, stored_width, bottom))
        transpose = EXIF_TRANSPOSE.get(self.orientation)
        if transpose is None:
            return rows
        upright = rows.transpose(transpose)
        upright.info = self.image.info
        return upright

    def _to_srgb(self, rows: Image.Image) -> Image.Image:
        """Convert rows to sRGB, with transparency over the background."""
        try:
            alpha = color.alpha_channel(rows)
            rgb = color.to_srgb(rows, self.notes, has_other_encoding=self.color_encoding is not None)
        except color.UnsupportedBitDepth as error:
            remedy = "save it with 8 or 16 bits per channel"
            raise ImageError("unsupported_bit_depth", str(error), where=self.where, remedy=remedy) from error
        if encoding := self.color_encoding:
            rgb = encoding_to_srgb(rgb, encoding)
            code = "hdr_tone_mapped" if encoding.is_hdr else "color_encoding_converted"
            self.notes.append(f"{code}: {encoding.describe()} converted to sRGB")
        if alpha is None or alpha.getextrema()[0] == 255:
            return rgb
        self.transparent = True
        self.notes.append(f"transparency: transparency over {color_name(self.background)}")
        return Image.composite(rgb, Image.new("RGB", rgb.size, self.background), alpha)

    def _damaged_error(self, error: Exception) -> ImageError:
        if problem := refused.explain_undecoded(self.image, self.data):
            return ImageError(problem.code, problem.message, where=self.where, remedy=problem.remedy)
        detail = "" if str(error).startswith("decoder error") else f": {error}"
        message = f"damaged or truncated{detail}"
        return ImageError("truncated", message, where=self.where, remedy=_DAMAGED_REMEDY)

    def _jpeg_scale(self, min_size: tuple[float, float] | None) -> int:
        """Return the largest factor by which a JPEG can be scaled down to at least `min_size`."""
        if min_size is None:
            return 1
        (width, height), (min_width, min_height) = self.size, min_size
        fitting = (f for f in jpeg.SCALE_FACTORS if width / f >= min_width and height / f >= min_height)
        return next(fitting, 1)

    def _decode_jpeg(self, factor: int) -> None:
        """Decode with libjpeg-turbo, which is fast and reports damage, or with Pillow if it cannot."""
        image = self.image
        if not self.hash_matches and self.jpeg_summary.num_scans > jpeg.MAX_SCANS:
            message = f"more than {jpeg.MAX_SCANS} scans in one JPEG"
            raise ImageError("corrupt", message, where=self.where, remedy=_DAMAGED_REMEDY)
        if image.mode in ("RGB", "L"):
            try:
                pixels = jpeg.decode_jpeg(self.data, image.mode == "L", factor)
            except jpeg.DamagedJpeg as error:
                raise self._damaged_error(error) from error
            if pixels is not None:
                self.decoded = pixels
                return
        image.draft(None, (-(-image.width // factor), -(-image.height // factor)))
        image.load()

    def read_orientation(self) -> None:
        """Read the EXIF orientation; a broken EXIF block is ignored, with a note."""
        orientation: object = None
        xmp: list[object] = []
        block = self.image.info.get("exif") or b""
        broken = len(block) > 0 and not structure.is_empty_exif(block)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                _require_small_exif(self.image.info)
                xmp = [self.image.info.pop(key, None) for key in ("xmp", "XML:com.adobe.xmp")]
                exif = self.image.getexif()
                orientation = exif.get(ExifTags.Base.Orientation)
                broken = broken and len(exif) == 0
            except PARSE_ERRORS:
                broken = True
        if orientation is None and (stated := _xmp_orientation(xmp)):
            text = f"XMP states orientation {stated}, which is not applied, as in browsers"
            self.notes.append(f"xmp_orientation: {text}")
        if broken:
            self.notes.append("broken_exif: the EXIF block cannot be read and is ignored")
        if isinstance(orientation, int) and orientation in EXIF_TRANSPOSE:
            self.orientation = orientation
            self.notes.append(f"exif_rotated: EXIF orientation {orientation} applied")


def _xmp_orientation(blocks: Iterable[object]) -> int | None:
    """Return an orientation that is not upright and stated in XMP only, or None."""
    for block in blocks:
        text = block.decode("utf-8", "replace") if isinstance(block, bytes) else str(block or "")
        if (match := _XMP_ORIENTATION.search(text)) and int(match[1]) in EXIF_TRANSPOSE:
            return int(match[1])
    return None


def _require_small_exif(info: Mapping[Any, Any]) -> None:
    """Raise ValueError for an EXIF block that Pillow would need gigabytes for."""
    block = info.get("exif", b"")
    profile = info.get("Raw profile type exif")
    if not block and isinstance(profile, str):
        block = bytes.fromhex("".join(profile.split("\n")[3:]))
    if block and not structure.check_exif(block):
        raise ValueError("an EXIF block whose tags point to too many bytes")


def color_name(color: Color) -> str:
    """Return `#rrggbb` of RGB values 0-255."""
    return f"#{bytes(color).hex()}"


@contextlib.contextmanager
def pixel_limit(pixels: int) -> Iterator[None]:
    """Set Pillow's pixel limit, a global, inside this context, and turn its warning into an error.

    Other warnings, of tags that are cut off or unusual, are not printed: they do not name the file.
    """
    with _PIXEL_LIMIT, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
