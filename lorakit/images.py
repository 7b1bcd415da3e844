"""The one decode function: file -> upright sRGB picture, or one `ImageError` with a stable code.

Every stage (hashes, captions, cache, report) sees an image through `decode`, so all of them see the same
pixels: EXIF rotation applied, ICC profile converted to sRGB, transparency composited over a declared colour,
16 bits scaled to 8, the pixel count checked before anything is allocated, the whole stream decoded so that a
cut file is found.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

from lorakit import color, sniff
from lorakit.color import PARSE_ERRORS, Color
from lorakit.errors import ConfigError, DataError
from lorakit.manifest import Record

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the decoded image
WHITE: Color = (255, 255, 255)
MAX_PIXELS = 120_000_000  # above the largest current camera frame (102 Mpx); 360 MB as RGB
MAX_FILE_BYTES = 1 << 30

# Raster formats only. EPS is left out (it starts Ghostscript) and so is TGA (it has no signature).
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM", "QOI")
_TURNS = {  # EXIF orientation -> what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STILL = {"JPEG", "MPO"}  # a second picture in an MPO is a depth map, gain map or preview of the first
_PIXEL_LIMIT = threading.RLock()


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


def decode(
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


def preview(folder: str | os.PathLike[str], record: Record, side: int) -> Image.Image:
    """A record's picture with a long side of at most `side` pixels; for looking at, not for training."""
    path = Path(folder) / record.file
    short = max(1, side * min(record.size) // max(1, *record.size))
    image = decode_bytes(read_file(path), where=str(path), at_least=short, **_as_recorded(record)).image
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def read(folder: str | os.PathLike[str], record: Record) -> Image.Image:
    """The picture that a manifest record describes, decoded as it was then.

    A file that gives other pixels now is an `ImageError` with code "changed".
    """
    path = Path(folder) / record.file
    image = decode(path, **_as_recorded(record))
    if pixel_hash(image) != record.pixels:
        remedy = f"run `lorakit data prepare {folder}` again"
        raise ImageError(
            "changed", "the picture changed since it was prepared", where=str(path), remedy=remedy
        )
    return image


def _as_recorded(record: Record) -> _Decoding:
    """The options with which a record's picture was decoded."""
    return {
        "background": parse_color(record.background) if record.background else WHITE,
        "max_pixels": max(MAX_PIXELS, record.width * record.height),
        "first_frame": record.first_frame,
    }


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file; a FIFO, socket or device is refused without ever blocking on it."""
    where = str(path)
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer; the check on the handle leaves no race.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        raise ImageError("missing", "the file does not exist", where=where) from error
    except OSError as error:
        raise ImageError("unreadable", f"cannot be opened: {error.strerror}", where=where) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise ImageError("not_a_file", "not a regular file", where=where)
    with os.fdopen(handle, "rb") as file:
        if status.st_size > MAX_FILE_BYTES:
            message = f"{status.st_size} bytes, the limit is {MAX_FILE_BYTES}"
            raise ImageError("too_large", message, where=where)
        try:
            return file.read()
        except OSError as error:
            raise ImageError("unreadable", f"cannot be read: {error.strerror}", where=where) from error


def decode_bytes(
    data: bytes,
    *,
    where: str,
    background: Color = WHITE,
    max_pixels: int = MAX_PIXELS,
    first_frame: bool = False,
    at_least: int | None = None,
) -> Decoded:
    """`decode` for bytes already read; with `at_least`, a JPEG may come smaller, its sides at least that."""
    notes: list[str] = []
    image = _open(data, where, max_pixels)
    many = _refuse_frames(image, where, first_frame, notes)
    try:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
    except PARSE_ERRORS as error:
        raise ImageError("truncated", f"damaged or cut off: {error}", where=where) from error
    format_name = image.format or ""
    upright = _upright(image, notes)
    try:
        alpha = color.alpha_of(upright)
        colour = color.to_srgb(upright, notes)
    except color.UnsupportedDepth as error:
        remedy = "save it with 8 or 16 bits a channel"
        raise ImageError("unsupported_depth", str(error), where=where, remedy=remedy) from error
    transparent = alpha is not None and alpha.getextrema()[0] != 255
    if alpha is not None and transparent:
        notes.append(f"alpha: transparency over {color_name(background)}")
        colour = Image.composite(colour, Image.new("RGB", colour.size, background), alpha)
    return Decoded(colour, format_name, transparent, many, tuple(notes))


def pixel_hash(image: Image.Image) -> str:
    """Hex SHA-256 over width, height (little-endian uint32) and the RGB bytes."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return hashlib.sha256(struct.pack("<II", *rgb.size) + rgb.tobytes()).hexdigest()


def fit(image: Image.Image, crop: Box | None, bucket: tuple[int, int] | None) -> Image.Image:
    """Crop to `crop`, then resize with LANCZOS to exactly `bucket` (width, height); None skips a step."""
    if crop is not None and crop != (0, 0, *image.size):
        left, top, right, bottom = crop
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            raise DataError(f"crop {crop} does not lie inside the image of {image.width}x{image.height}")
        with _pixel_limit(image.width * image.height):  # already decoded: Pillow need not warn again
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


def color_name(color: Color) -> str:
    """RGB 0-255 -> `#rrggbb`."""
    return f"#{bytes(color).hex()}"


# ---- opening ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _pixel_limit(pixels: int) -> Iterator[None]:
    """Pillow's pixel limit is one global: set it here only, and turn its warning into an error."""
    with _PIXEL_LIMIT, warnings.catch_warnings():
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@functools.cache
def _formats() -> tuple[str, ...]:
    """The allowed formats this installation has a decoder for."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(data: bytes, where: str, max_pixels: int) -> Image.Image:
    """Parse the header only; nothing of the picture's size is allocated before the pixel count is known."""
    if refusal := sniff.impostor(data):
        raise _refused(refusal, where)
    try:
        with _pixel_limit(max_pixels):
            warnings.simplefilter("ignore", UserWarning)  # of EXIF; `_upright` looks at it again
            image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_many_pixels(f"more than {max_pixels} pixels", where) from error
    except PARSE_ERRORS as error:
        detail = "" if isinstance(error, UnidentifiedImageError) else str(error)
        raise _refused(sniff.unreadable(data, _formats(), detail), where) from error
    width, height = image.size
    if width * height > max_pixels:
        raise _too_many_pixels(f"{width}x{height} is more than {max_pixels} pixels", where)
    if width < 1 or height < 1:
        raise ImageError("corrupt", f"the header says {width}x{height} pixels", where=where)
    return image


def _refused(refusal: sniff.Refusal, where: str) -> ImageError:
    return ImageError(refusal.code, refusal.message, where=where, remedy=refusal.remedy)


def _too_many_pixels(message: str, where: str) -> ImageError:
    return ImageError("too_many_pixels", message, where=where, remedy="shrink it, or raise --max-pixels")


def _refuse_frames(image: Image.Image, where: str, first_frame: bool, notes: list[str]) -> bool:
    """Refuse animations and multi-page files, nobody can say which frame was meant. True: took the first."""
    if image.format in _STILL:
        return False
    try:
        frames = getattr(image, "n_frames", 1)
    except PARSE_ERRORS as error:
        raise ImageError("corrupt", f"damaged frame table: {error}", where=where) from error
    if image.format == "TIFF" and _is_camera_raw(image):
        message = "a camera's raw file, of which only the preview could be read"
        raise ImageError("raw", message, where=where, remedy="develop it to JPEG, PNG or TIFF")
    if frames <= 1:
        return False
    code, kind = ("multipage", "pages") if image.format == "TIFF" else ("animated", "frames")
    if not first_frame:
        message = f"{frames} {kind}, only single pictures are used"
        raise ImageError(code, message, where=where, remedy="save one as a file, or use --first-frame")
    image.seek(0)
    notes.append(f"first_frame: frame 1 of {frames}")
    return True


def _is_camera_raw(image: Image.Image) -> bool:
    """DNG (tag 50706) and its kin, whose first picture is a reduced preview (NewSubfileType, bit 0)."""
    tags = getattr(image, "tag_v2", {})
    return 50706 in tags or bool(tags.get(254, 0) & 1)


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    """Apply EXIF orientation 1-8; a broken EXIF block is ignored and noted."""
    orientation: object = None
    unread = len(image.info.get("exif", b"")) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            exif = image.getexif()
            orientation = exif.get(ExifTags.Base.Orientation)
            unread = unread and len(exif) == 0
        except PARSE_ERRORS:
            unread = True
    if unread:
        notes.append("broken_exif: the EXIF block cannot be read, ignored")
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    if turn is None:
        return image
    notes.append(f"rotated: EXIF orientation {orientation} applied")
    turned = image.transpose(turn)
    turned.info = image.info
    return turned
