"""Colour and transparency of a decoded picture: any pixel type to 8-bit sRGB, alpha to one mask."""

from __future__ import annotations

import functools
import io
import struct

import numpy as np
from PIL import Image, ImageCms

Color = tuple[int, int, int]  # sRGB, 0-255

# What Pillow's parsers raise on damaged input; anything else is a defect of ours and must surface.
PARSE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
)


class UnsupportedBitDepth(Exception):
    """Pixel values whose white level nobody can know."""


def alpha_channel(image: Image.Image) -> Image.Image | None:
    """The transparency as an 8-bit mask, from an alpha channel, a palette or a colour key."""
    if image.mode == "La":  # premultiplied grey: Pillow converts it to LA only
        image = image.convert("LA")
    if image.mode == "I;16" and isinstance(key := image.info.get("transparency"), int):
        return Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return None
    return image.convert("RGBA").getchannel("A")


def to_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """Colour channels -> 8-bit sRGB, through the embedded ICC profile when there is a usable one."""
    if image.mode.startswith(("I", "F")):
        image = _scale_depth(image)
        notes.append("depth: 16 bits scaled to 8")
    elif image.mode == "LAB":
        return _convert(image, _transform(None, "LAB"))
    elif image.mode in ("P", "PA", "RGBA", "RGBa", "RGBX", "HSV", "YCbCr"):
        # A palette with transparency goes by RGBA, or Pillow would warn and could mix the key colour in.
        image = (image.convert("RGBA") if image.has_transparency_data else image).convert("RGB")
    elif image.mode in ("1", "LA", "La"):
        image = (image.convert("LA") if image.mode == "La" else image).convert("L")
    icc = image.info.get("icc_profile")
    if icc and image.mode == "L" and _is_rgb(icc):
        image = image.convert("RGB")
    transform = _usable_transform(icc, image.mode, notes) if icc else None
    if transform is None:
        if image.mode == "CMYK":
            notes.append("cmyk: no usable ICC profile, converted without one")
        return image.convert("RGB") if image.mode != "RGB" else image
    return _convert(image, transform)


def _is_rgb(icc: bytes) -> bool:
    """Whether a profile describes RGB; the colour space stands at byte 16 (ICC.1:2022, 7.2.6)."""
    return icc[16:20] == b"RGB "


def _scale_depth(image: Image.Image) -> Image.Image:
    """16-bit grey -> 8-bit grey, linearly (65535 -> 255), where Pillow's own convert would clip at 255."""
    values = np.asarray(image)
    if image.mode.startswith("F") or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise UnsupportedBitDepth(f"pixel type {image.mode} with values outside 0..65535 has no agreed white")
    scaled = Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    scaled.info = {key: image.info[key] for key in ("icc_profile",) if key in image.info}
    return scaled


def _usable_transform(icc: bytes, mode: str, notes: list[str]) -> ImageCms.ImageCmsTransform | None:
    """The transform for a profile, or None (with a note) when it is broken or made for other channels."""
    try:
        name, identity = _profile(icc, mode)
    except (ImageCms.PyCMSError, *PARSE_ERRORS):
        notes.append("broken_icc: the colour profile cannot be used, ignored")
        return None
    if identity:
        return None
    notes.append(f"icc: {name} converted to sRGB")
    return _transform(icc, mode)


@functools.lru_cache(maxsize=64)
def _profile(icc: bytes, mode: str) -> tuple[str, bool]:
    """A profile's name, and whether it is sRGB in effect: a probe of colours moves by at most 1/255."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    name = " ".join(ImageCms.getProfileDescription(profile).split()) or "unnamed profile"
    if mode == "CMYK":
        return name, False
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    if mode == "L":
        probe = Image.fromarray(levels[None])
    else:
        probe = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3))
    before = np.asarray(probe.convert("RGB"), np.int16)
    after = np.asarray(_convert(probe, _transform(icc, mode)), np.int16)
    return name, bool(np.abs(after - before).max() <= 1)


@functools.lru_cache(maxsize=64)
def _transform(icc: bytes | None, mode: str) -> ImageCms.ImageCmsTransform:
    """The transform of a profile (None: CIE Lab) to sRGB; PyCMSError when its channels are not `mode`'s."""
    source = ImageCms.createProfile("LAB") if icc is None else ImageCms.ImageCmsProfile(io.BytesIO(icc))
    intent = ImageCms.Intent.PERCEPTUAL
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", intent)


def _convert(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = transform.apply(image)
    converted.info.pop("icc_profile", None)
    return converted
