"""Masks of images: 255 where the loss counts, 0 where it does not, aligned with the upright image.

A mask is a file of its own or the alpha channel of the image. A mask file without EXIF, of an image with it,
is rotated as the image is (`Record.mask_orientation`).
"""

from __future__ import annotations

import hashlib
import os
import struct

from PIL import ExifTags, Image, ImageChops, ImageOps

from lorakit.core import dataset_paths
from lorakit.imaging import decode
from lorakit.imaging.decode import ImageError
from lorakit.manifest import Record

MAX_ASPECT_DIFFERENCE = 0.02  # relative difference allowed between the aspects of mask and image


def read_record_mask(folder: str | os.PathLike[str], record: Record) -> Image.Image | None:
    """Return the record's mask (mode L, of `record.size`), or None; `decode.crop_and_resize` crops it.

    Raises ImageError, with code "changed" if the mask is not the recorded one.
    """
    if record.mask is None:
        return None
    path = dataset_paths.file_path(folder, record.mask)
    if record.mask == record.file:
        mask = mask_from_alpha(path, first_frame=record.first_frame)
    else:
        mask = load_mask_file(path, record.size, record.mask_orientation)
    if record.mask_content_hash not in (None, mask_hash(mask)):
        remedy = f"run `lorakit data prepare {folder}` again"
        raise ImageError(
            "changed", "the mask has changed since the dataset was prepared", where=str(path), remedy=remedy
        )
    return mask


def load_mask_file(path: str | os.PathLike[str], size: tuple[int, int], orientation: int = 1) -> Image.Image:
    """Load a mask file, rotate it by an EXIF orientation and resize it to `size`; transparency becomes 0.

    Raises ImageError, with code "mask_size_mismatch" if the mask has another aspect ratio.
    """
    mask = decode.decode_image(path, background=(0, 0, 0)).convert("L")
    mask.getexif()[ExifTags.Base.Orientation] = orientation
    mask = ImageOps.exif_transpose(mask)
    if not same_aspect(mask.size, size):
        message = f"the mask of {mask.width}x{mask.height} does not fit an image of {size[0]}x{size[1]}"
        raise ImageError(
            "mask_size_mismatch", message, where=str(path), remedy="draw it over the whole image"
        )
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def mask_from_alpha(path: str | os.PathLike[str], *, first_frame: bool = False) -> Image.Image:
    """Return the alpha channel of an image, upright; 255 everywhere without transparency."""
    over_black, over_white = (
        decode.decode_image(path, background=background, first_frame=first_frame)
        for background in ((0, 0, 0), decode.WHITE)
    )
    # Over white, a pixel is brighter than over black by exactly 255 - alpha.
    return ImageChops.invert(ImageChops.difference(over_black, over_white).getchannel(0))


def same_aspect(mask_size: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Return True if two sizes (width, height) have the same aspect ratio, within 2 %."""
    difference = mask_size[0] * image_size[1] / (mask_size[1] * image_size[0]) - 1
    return abs(difference) <= MAX_ASPECT_DIFFERENCE


def mask_hash(mask: Image.Image) -> str:
    """Return the SHA-256, in hex, of width, height and the mask's bytes."""
    return hashlib.sha256(struct.pack("<II", *mask.size) + mask.tobytes()).hexdigest()
