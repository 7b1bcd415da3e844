"""One opened image file: how it is turned, its whole stream decoded, and its pixels strip by strip.

Colours are converted a strip at a time, so a large picture is never held in several versions.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from lorakit.core.errors import DataError
from lorakit.imaging import color, jpeg
from lorakit.imaging.color import PARSE_ERRORS, Color

STRIP_PIXELS = 4_000_000  # pixels whose colours are converted at a time
_JPEG = frozenset({"JPEG", "MPO"})  # a second picture in an MPO is a depth map, gain map or preview
EXIF_TRANSPOSE = {  # EXIF orientation -> what makes it upright
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
_AGAIN = "fetch it again, or open and save it if it looks right"
MIN_TILE_LIMIT = 1 << 24  # pixels of one tile in a file, which may be larger than its picture
_PIXEL_LIMIT = threading.RLock()
_BOTTOM_UP_ORIENTATIONS = frozenset(
    {3, 4, 7, 8}
)  # the upright picture's first rows are the stored one's last


class ImageError(DataError):
    """A file that gives no picture. `code` is stable, for scripts and for the manifest's `reason`."""

    def __init__(
        self, code: str, message: str, *, where: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(message, where=where, remedy=remedy)
        self.code = code

    @property
    def reason(self) -> str:
        """`code: message (remedy)`, without the path: what the manifest keeps."""
        return f"{self.code}: {self.message}" + (f" ({self.remedy})" if self.remedy else "")


@dataclass
class ImageSource:
    """A still picture whose header was read. After `load`, `strips` gives it upright, RGB and in sRGB."""

    image: Image.Image
    data: bytes
    where: str
    background: Color
    first_of_many: bool = False
    transparent: bool = False
    orientation: int = 1
    notes: list[str] = field(default_factory=list)
    trusted: bool = False  # these very bytes were decoded before
    array: NDArray[np.uint8] | None = None  # (H, W, 1 or 3), what a JPEG's decoder made

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the pixels at hand, upright; before `load`, known of JPEGs only."""
        width, height = self.image.size if self.array is None else self.array.shape[1::-1]
        return (height, width) if self.orientation in _TRANSPOSED_ORIENTATIONS else (width, height)

    @functools.cached_property
    def coded(self) -> tuple[str, int]:
        """`jpeg.identity` of the data."""
        return jpeg.jpeg_content_hash(self.data)

    @property
    def is_jpeg(self) -> bool:
        """Whether `load` can make fewer pixels than the file has."""
        return self.image.format in _JPEG

    def load(self, need: tuple[float, float] | None = None) -> tuple[int, int]:
        """Decode the whole stream; returns the upright size (width, height) of the whole picture.

        With `need`, the sides that the caller wants at least, a JPEG comes halved, quartered or by eighths.
        """
        try:
            if self.is_jpeg:
                whole = self.size
                self._load_jpeg(self._factor(need))
                return whole
            width, height = self.image.size
            tiles = self.image.format == "TIFF"
            with pixel_limit(max(width * height, MIN_TILE_LIMIT)) if tiles else contextlib.nullcontext():
                self.image.load()
        except (*DECOMPRESSION_BOMB_ERRORS, *PARSE_ERRORS) as error:
            raise self._damaged(error) from error
        self.orient()
        return self.size

    def strips(self, multiple: int = 1) -> Iterator[Image.Image]:
        """The upright picture from above, as RGB strips whose heights are multiples of `multiple` (the
        last one's need not be); one strip for most pictures."""
        self._make_image()
        width, height = self.size
        rows = (
            height
            if multiple == 1 and self._is_plain()
            else max(1, STRIP_PIXELS // width // multiple) * multiple
        )
        for top in range(0, height, rows):
            yield self._colours(self._rows(top, min(height, top + rows), height))

    def pixels(self) -> NDArray[np.uint8]:
        """The upright picture as (H, W, 3), without a detour when the decoder made just that."""
        if self.array is not None and self.array.shape[2] == 3 and self._is_plain():
            return self.array
        return np.concatenate([np.asarray(strip) for strip in self.strips()])

    def _make_image(self) -> None:
        """Give the decoder's array to Pillow."""
        if self.array is not None:
            made = Image.fromarray(self.array[..., 0] if self.array.shape[2] == 1 else self.array)
            made.format, made.info = self.image.format, self.image.info
            self.image, self.array = made, None

    def _is_plain(self) -> bool:
        """Whether the pixels are already as they should be, and every strip would be a copy of them."""
        image = self.image
        as_is = image.mode == "RGB" and self.orientation == 1
        return as_is and not image.info.get("icc_profile") and not image.has_transparency_data

    def _rows(self, top: int, bottom: int, height: int) -> Image.Image:
        """Rows of the upright picture, in the file's own colours."""
        stored_width, stored_height = self.image.size
        if self.orientation in _BOTTOM_UP_ORIENTATIONS:
            top, bottom = height - bottom, height - top
        if (bottom - top) == height:
            part = self.image
        elif self.orientation in _TRANSPOSED_ORIENTATIONS:
            part = self.image.crop((top, 0, bottom, stored_height))
        else:
            part = self.image.crop((0, top, stored_width, bottom))
        turn = EXIF_TRANSPOSE.get(self.orientation)
        if turn is None:
            return part
        turned = part.transpose(turn)
        turned.info = self.image.info
        return turned

    def _colours(self, part: Image.Image) -> Image.Image:
        """RGB, sRGB, transparency over the background."""
        try:
            alpha = color.alpha_channel(part)
            colour = color.to_srgb(part, self.notes)
        except color.UnsupportedBitDepth as error:
            remedy = "save it with 8 or 16 bits a channel"
            raise ImageError("unsupported_depth", str(error), where=self.where, remedy=remedy) from error
        if alpha is None or alpha.getextrema()[0] == 255:
            return colour
        self.transparent = True
        self.notes.append(f"alpha: transparency over {color_name(self.background)}")
        return Image.composite(colour, Image.new("RGB", colour.size, self.background), alpha)

    def _damaged(self, error: Exception) -> ImageError:
        return ImageError("truncated", f"damaged or cut off: {error}", where=self.where, remedy=_AGAIN)

    def _factor(self, need: tuple[float, float] | None) -> int:
        """The largest reduction that leaves the sides wanted."""
        if need is None:
            return 1
        (width, height), (least_width, least_height) = self.size, need
        fitting = (f for f in jpeg.SCALE_FACTORS if width / f >= least_width and height / f >= least_height)
        return next(fitting, 1)

    def _load_jpeg(self, factor: int) -> None:
        """Pixels by the quicker decoder, which also tells garbled data; by Pillow's where it cannot."""
        image = self.image
        if not self.trusted and self.coded[1] > jpeg.MAX_SCANS:
            message = f"more than {jpeg.MAX_SCANS} scans in one JPEG"
            raise ImageError("corrupt", message, where=self.where, remedy=_AGAIN)
        if image.mode in ("RGB", "L"):
            try:
                pixels = jpeg.decode_jpeg(self.data, image.mode == "L", factor)
            except jpeg.DamagedJpeg as error:
                raise self._damaged(error) from error
            if pixels is not None:
                self.array = pixels
                return
        image.draft(None, (-(-image.width // factor), -(-image.height // factor)))
        image.load()

    def orient(self) -> None:
        """Note the EXIF orientation; a broken EXIF block is ignored and named."""
        orientation: object = None
        unread = len(self.image.info.get("exif", b"")) > 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                exif = self.image.getexif()
                orientation = exif.get(ExifTags.Base.Orientation)
                unread = unread and len(exif) == 0
            except PARSE_ERRORS:
                unread = True
        if unread:
            self.notes.append("broken_exif: the EXIF block cannot be read, ignored")
        if isinstance(orientation, int) and orientation in EXIF_TRANSPOSE:
            self.orientation = orientation
            self.notes.append(f"rotated: EXIF orientation {orientation} applied")


def color_name(color: Color) -> str:
    """RGB 0-255 -> `#rrggbb`."""
    return f"#{bytes(color).hex()}"


@contextlib.contextmanager
def pixel_limit(pixels: int) -> Iterator[None]:
    """Pillow's pixel limit is one global: set it here only, and turn its warning into an error."""
    with _PIXEL_LIMIT, warnings.catch_warnings():
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
