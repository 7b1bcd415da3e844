"""Colors and transparency of a decoded image: any pixel type to 8-bit sRGB, alpha to one mask."""

from __future__ import annotations

import functools
import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

Color = tuple[int, int, int]  # sRGB, 0-255

# Errors of Pillow's parsers on damaged input; any other is a bug here and must not be hidden.
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
    RuntimeError,  # of the AVIF decoder
)


class UnsupportedBitDepth(Exception):
    """Pixel values whose white level is unknown."""


def alpha_channel(image: Image.Image) -> Image.Image | None:
    """Return the transparency as an 8-bit mask, from an alpha channel, a palette or a color key, or None."""
    if image.mode == "La":  # premultiplied gray: Pillow converts it to LA only
        image = image.convert("LA")
    if image.mode == "I;16" and isinstance(key := image.info.get("transparency"), int):
        return Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return None
    return image.convert("RGBA").getchannel("A")


def to_srgb(image: Image.Image, notes: list[str], *, has_other_encoding: bool = False) -> Image.Image:
    """Convert the color channels to 8-bit sRGB, with the embedded ICC profile if it is usable.

    With `has_other_encoding`, another description of the colors counts: a profile is ignored. Appends
    `code: text` lines to `notes`. Raises UnsupportedBitDepth.
    """
    if image.mode.startswith(("I", "F")):
        image = _scale_depth(image)
        notes.append("bit_depth: 16 bits scaled to 8")
    elif image.mode == "LAB":
        return _convert(image, _transform(None, "LAB"))
    elif image.mode in ("P", "PA", "RGBA", "RGBa", "RGBX", "HSV", "YCbCr"):
        # A palette with transparency is converted to RGBA first: otherwise Pillow warns, and may mix in
        # the key color.
        image = (image.convert("RGBA") if image.has_transparency_data else image).convert("RGB")
    elif image.mode in ("1", "LA", "La"):
        image = (image.convert("LA") if image.mode == "La" else image).convert("L")
    icc = None if has_other_encoding else image.info.get("icc_profile")
    if icc and image.mode == "L" and _device(icc) == b"RGB ":
        image = image.convert("RGB")
    elif icc and image.mode == "RGB" and _device(icc) == b"GRAY" and _is_gray(image):
        image = image.convert("L")  # Pillow reads 16-bit gray with alpha as RGBA
    transform = _usable_transform(icc, image.mode, notes) if icc else None
    if transform is None:
        if image.mode == "CMYK":
            notes.append("cmyk: no usable ICC profile, converted without one")
        return image.convert("RGB") if image.mode != "RGB" else image
    return _convert(image, transform)


def _device(icc: bytes) -> bytes:
    """Return the name of the color space of a profile's device (ICC.1:2022, 7.2.6)."""
    return icc[16:20]


def _is_gray(image: Image.Image) -> bool:
    """Return True if all pixels of an RGB image are gray."""
    red, green, blue = image.split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


def _scale_depth(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray linearly to 8 bits (65535 -> 255); Pillow's own conversion would clip at 255."""
    values = np.asarray(image)
    if image.mode.startswith("F"):
        raise UnsupportedBitDepth("floating-point pixels, whose white level the file does not state")
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise UnsupportedBitDepth("32-bit pixels, whose white level the file does not state")
    scaled = Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    scaled.info = {key: image.info[key] for key in ("icc_profile",) if key in image.info}
    return scaled


def _usable_transform(icc: bytes, mode: str, notes: list[str]) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of a profile, or None: sRGB already, broken, or made for other channels."""
    try:
        profile = _profile_info(icc, mode)
        transform = None if profile.is_srgb else _transform(icc, mode)
    except (ImageCms.PyCMSError, *PARSE_ERRORS):
        notes.append("broken_icc: the color profile cannot be used and is ignored")
        return None
    if transform is not None:
        notes.append(f"icc_converted: {profile.name} converted to sRGB")
    return transform


@dataclass(frozen=True)
class _ProfileInfo:
    """The name of a profile; `is_srgb` is True if it moves no color by more than 1/255."""

    name: str
    is_srgb: bool


@functools.lru_cache(maxsize=64)
def _profile_info(icc: bytes, mode: str) -> _ProfileInfo:
    """Read a profile and convert a grid of colors with it; PyCMSError if its channels are not `mode`'s."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    name = " ".join(ImageCms.getProfileDescription(profile).split()) or "unnamed profile"
    if mode == "CMYK":
        return _ProfileInfo(name, is_srgb=False)
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    if mode == "L":
        probe = Image.fromarray(levels[None])
    else:
        probe = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3))
    before = np.asarray(probe.convert("RGB"), np.int16)
    after = np.asarray(_convert(probe, _transform(icc, mode)), np.int16)
    return _ProfileInfo(name, is_srgb=bool(np.abs(after - before).max() <= 1))


@functools.lru_cache(maxsize=64)
def _transform(icc: bytes | None, mode: str) -> ImageCms.ImageCmsTransform:
    """Return the transform of a profile (None: CIE Lab) to sRGB; PyCMSError if it does not fit `mode`."""
    source = ImageCms.createProfile("LAB") if icc is None else ImageCms.ImageCmsProfile(io.BytesIO(icc))
    # Browsers do not compensate the black point of RGB, and compensate it for inks.
    is_ink = mode in ("CMYK", "LAB")
    intent = ImageCms.Intent.PERCEPTUAL if is_ink else ImageCms.Intent.RELATIVE_COLORIMETRIC
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", intent)


def _convert(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = transform.apply(image)
    converted.info.pop("icc_profile", None)
    return converted
