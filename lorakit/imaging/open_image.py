"""Open an image file: only formats that may be decoded, one still picture, no more pixels than allowed.

Opening reads the header only, so nothing of the picture's size is allocated before its pixels are counted.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings

from PIL import Image, UnidentifiedImageError

from lorakit.imaging import signatures
from lorakit.imaging.color import PARSE_ERRORS, Color
from lorakit.imaging.image_reader import DECOMPRESSION_BOMB_ERRORS, ImageError, ImageSource, pixel_limit

MAX_PIXELS = 120_000_000  # above the largest current camera frame (102 Mpx); 480 MB in Pillow's memory

# Raster formats only. EPS is left out (it starts Ghostscript) and so is TGA (it has no signature).
# The decoders of the hungry ones hold a picture up to five times over; this many pixels keep it below 1.5 GB.
_MEMORY_HEAVY_FORMATS = ("WEBP", "AVIF", "HEIF", "JPEG2000", "JXL")
MAX_PIXELS_MEMORY_HEAVY = 60_000_000
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "PPM", "QOI", *_MEMORY_HEAVY_FORMATS)


def open_source(
    data: bytes, *, where: str, background: Color, max_pixels: int, first_frame: bool
) -> ImageSource:
    """Read the header; raises `ImageError` for what is no still picture of at most `max_pixels` pixels."""
    if refusal := signatures.detect_non_image(data):
        raise _refusal_error(refusal, where)
    try:
        with pixel_limit(max_pixels):
            warnings.simplefilter("ignore", UserWarning)  # of EXIF; `orient` looks at it again
            image: Image.Image = Image.open(io.BytesIO(data), formats=decodable_formats())
    except DECOMPRESSION_BOMB_ERRORS as error:
        raise _too_many_pixels(f"more than {max_pixels} pixels", where) from error
    except PARSE_ERRORS as error:
        detail = "" if isinstance(error, UnidentifiedImageError) else str(error)
        raise _refusal_error(
            signatures.explain_unreadable(data, decodable_formats(), detail), where
        ) from error
    width, height = image.size
    limit = (
        MAX_PIXELS_MEMORY_HEAVY
        if image.format in _MEMORY_HEAVY_FORMATS and max_pixels == MAX_PIXELS
        else max_pixels
    )
    if width * height > limit:
        message = f"{width}x{height} is more than {limit} pixels"
        raise _too_many_pixels(message + (f" of {image.format}" if limit < max_pixels else ""), where)
    if width < 1 or height < 1:
        message = f"the header says {width}x{height} pixels"
        raise ImageError("corrupt", message, where=where, remedy=signatures.REFETCH_REMEDY)
    source = ImageSource(image, data, where, background)
    source.first_of_many = _check_single_frame(source, first_frame)
    if source.is_jpeg:
        source.orient()  # other formats may keep their EXIF behind the pixels
    return source


@functools.cache
def decodable_formats() -> tuple[str, ...]:
    """The allowed formats this installation has a decoder for."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401 - registers itself
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _refusal_error(refusal: signatures.FileProblem, where: str) -> ImageError:
    return ImageError(refusal.code, refusal.message, where=where, remedy=refusal.remedy)


def _too_many_pixels(message: str, where: str) -> ImageError:
    return ImageError("too_many_pixels", message, where=where, remedy="shrink it, or raise --max-pixels")


def _check_single_frame(source: ImageSource, first_frame: bool) -> bool:
    """Refuse animations and multi-page files, nobody can say which frame was meant. True: took the first."""
    image, where = source.image, source.where
    if source.is_jpeg:
        return False
    try:
        with pixel_limit(image.width * image.height):  # a TIFF checks every page again
            frames = getattr(image, "n_frames", 1)
    except (*DECOMPRESSION_BOMB_ERRORS, *PARSE_ERRORS) as error:
        message = f"damaged frame table: {error}"
        raise ImageError("corrupt", message, where=where, remedy=signatures.REFETCH_REMEDY) from error
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
    source.notes.append(f"first_frame: frame 1 of {frames}")
    return True


def _is_camera_raw(image: Image.Image) -> bool:
    """DNG (tag 50706) and its kin, whose first picture is a reduced preview (NewSubfileType, bit 0)."""
    tags = getattr(image, "tag_v2", {})
    return 50706 in tags or bool(tags.get(254, 0) & 1)
