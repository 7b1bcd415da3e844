"""Open image files: only allowed formats, one still image, no more pixels than allowed.

Opening reads the header only, so the number of pixels is checked before memory for them is allocated.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re

from PIL import Image, UnidentifiedImageError

from lorakit.imaging import file_kinds, signatures, structure
from lorakit.imaging.color import PARSE_ERRORS, Color
from lorakit.imaging.image_reader import DECOMPRESSION_BOMB_ERRORS, ImageError, ImageSource, pixel_limit

MAX_PIXELS = 120_000_000  # above the largest current camera frame (102 Mpx); 480 MB in Pillow's memory

# Raster formats only. EPS is excluded (it starts Ghostscript), and TGA (it has no signature). The decoders of
# the memory-heavy formats hold up to five copies of an image; this limit keeps them below 1.5 GB.
_MEMORY_HEAVY_FORMATS = ("WEBP", "AVIF", "HEIF", "JPEG2000", "JXL")
MAX_PIXELS_MEMORY_HEAVY = 60_000_000
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "PPM", "QOI", *_MEMORY_HEAVY_FORMATS)


def open_source(
    data: bytes, *, where: str, background: Color, max_pixels: int, first_frame: bool
) -> ImageSource:
    """Read the header of an image file; ImageError if it is not a still image of at most `max_pixels`
    pixels."""
    if problem := signatures.detect_non_image(data):
        raise _problem_error(problem, where)
    checked = structure.check_structure(data)
    if checked.problem:
        raise ImageError("corrupt", checked.problem, where=where, remedy=file_kinds.REFETCH_REMEDY)
    try:
        with pixel_limit(max_pixels):
            image: Image.Image = Image.open(io.BytesIO(data), formats=decodable_formats())
    except DECOMPRESSION_BOMB_ERRORS as error:
        stated = re.search(r"\d+", str(error))
        number = f"{stated[0]} pixels, which is " if stated else ""
        raise _too_many_pixels(f"{number}more than {max_pixels} pixels", where) from error
    except PARSE_ERRORS as error:
        detail = "" if isinstance(error, UnidentifiedImageError) else str(error)
        problem = signatures.explain_unreadable(data, decodable_formats(), detail)
        raise _problem_error(problem, where) from error
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
        message = f"the header states {width}x{height} pixels"
        raise ImageError("corrupt", message, where=where, remedy=file_kinds.REFETCH_REMEDY)
    source = ImageSource(image, data, where, background)
    source.is_multi_frame = _select_frame(source, first_frame, checked.num_frames)
    if source.is_jpeg:
        source.read_orientation()  # other formats may store EXIF after the pixels
    return source


@functools.cache
def decodable_formats() -> tuple[str, ...]:
    """Return the allowed formats that this installation has a decoder for."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401 - registers itself
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _problem_error(problem: file_kinds.FileProblem, where: str) -> ImageError:
    return ImageError(problem.code, problem.message, where=where, remedy=problem.remedy)


def _too_many_pixels(message: str, where: str) -> ImageError:
    return ImageError("too_many_pixels", message, where=where, remedy="scale it down, or raise --max-pixels")


def _select_frame(source: ImageSource, first_frame: bool, num_frames: int) -> bool:
    """Select the frame of a file with several frames or pages that is used; return True if it is one of many.

    Raises ImageError for such a file unless `first_frame`: any of its frames could be the right one. Above
    `structure.MAX_FRAMES`, `num_frames` is used, because Pillow reads every frame to count them.
    """
    image, where = source.image, source.where
    if source.is_jpeg:
        return False
    try:
        with pixel_limit(image.width * image.height):  # TIFF checks every page
            is_long = num_frames > structure.MAX_FRAMES
            frames = num_frames if is_long else getattr(image, "n_frames", 1)
            # The default image of a PNG is what programs without animations show, and not a frame.
            start = int(bool(getattr(image, "default_image", False)))
            frames -= start
            is_raw = image.format == "TIFF" and _is_camera_raw(image)
            if start and (first_frame or frames == 1):
                image.seek(start)
    except (*DECOMPRESSION_BOMB_ERRORS, *PARSE_ERRORS) as error:
        message = f"damaged frame table: {error}"
        raise ImageError("corrupt", message, where=where, remedy=file_kinds.REFETCH_REMEDY) from error
    if is_raw:
        message = "a raw file of a camera, of which only the preview could be read"
        raise ImageError("camera_raw", message, where=where, remedy=file_kinds.RAW_REMEDY)
    if frames <= 1:
        return False
    if image.format == "HEIF":  # bursts, stereo pairs and alternatives: viewers show the primary image
        source.notes.append(f"primary_image: image {image.tell() + 1} of {frames} in the file")
        return False
    number = f"more than {structure.MAX_FRAMES}" if is_long else str(frames)
    code, unit = ("multipage", "pages") if image.format == "TIFF" else ("animated", "frames")
    if not first_frame:
        message = f"{number} {unit}, only single images are used"
        raise ImageError(code, message, where=where, remedy="save one as a file, or use --first-frame")
    image.seek(start)
    source.notes.append(f"first_frame: frame 1 of {number}")
    return True


def _is_camera_raw(image: Image.Image) -> bool:
    """Return True for DNG (tag 50706) and similar files, whose first image is a reduced preview.

    The preview is bit 0 of NewSubfileType (tag 254).
    """
    tags = getattr(image, "tag_v2", {})
    subfile = tags.get(254, 0)
    return 50706 in tags or (isinstance(subfile, int) and bool(subfile & 1))
