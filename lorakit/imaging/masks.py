"""A picture's mask: where it counts (255) and where it does not (0), aligned with the upright picture.

A mask is its own file, or the alpha channel of the picture's file. A mask file without EXIF beside a picture
with it is turned as the picture is (`Record.mask_turn`).
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

from PIL import ExifTags, Image, ImageChops, ImageOps

from lorakit.imaging import decode
from lorakit.imaging.decode import ImageError
from lorakit.manifest import Record

MAX_ASPECT_DIFFERENCE = 0.02  # how far the aspects of mask and picture may differ


def read_record_mask(folder: str | os.PathLike[str], record: Record) -> Image.Image | None:
    """The record's mask (mode L, `record.size`), None without one; `images.fit` crops it as the picture.

    A file that gives another mask than the one recorded is an `ImageError` with code "changed".
    """
    if record.mask is None:
        return None
    path = Path(folder) / record.mask
    if record.mask == record.file:
        mask = mask_from_alpha(path, first_frame=record.first_frame)
    else:
        mask = load_mask_file(path, record.size, record.mask_turn)
    if record.mask_pixels not in (None, mask_hash(mask)):
        remedy = f"run `lorakit data prepare {folder}` again"
        raise ImageError("changed", "the mask changed since it was prepared", where=str(path), remedy=remedy)
    return mask


def load_mask_file(path: str | os.PathLike[str], size: tuple[int, int], turn: int = 1) -> Image.Image:
    """A mask file, turned by the EXIF orientation `turn` and brought to `size`; transparent parts are 0."""
    mask = decode.decode_image(path, background=(0, 0, 0)).convert("L")
    mask.getexif()[ExifTags.Base.Orientation] = turn
    mask = ImageOps.exif_transpose(mask)
    if not same_aspect(mask.size, size):
        message = f"the mask of {mask.width}x{mask.height} does not fit a picture of {size[0]}x{size[1]}"
        raise ImageError("mask_unfit", message, where=str(path), remedy="draw it over the whole picture")
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def mask_from_alpha(path: str | os.PathLike[str], *, first_frame: bool = False) -> Image.Image:
    """The alpha channel of a picture, upright; all 255 for a picture without transparency."""
    over = [
        decode.decode_image(path, background=ground, first_frame=first_frame)
        for ground in ((0, 0, 0), decode.WHITE)
    ]
    # Over white, a pixel is brighter than over black by exactly 255 - alpha.
    return ImageChops.invert(ImageChops.difference(*over).getchannel(0))


def same_aspect(mask: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Whether two sizes have one aspect."""
    return abs(mask[0] * picture[1] / (mask[1] * picture[0]) - 1) <= MAX_ASPECT_DIFFERENCE


def mask_hash(mask: Image.Image) -> str:
    """Hex SHA-256 over width, height and the mask's bytes."""
    return hashlib.sha256(struct.pack("<II", *mask.size) + mask.tobytes()).hexdigest()
