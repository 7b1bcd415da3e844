"""What a picture's pixels say about it: a perceptual hash, sharpness, borders and clipping.

Everything is measured on a reduced copy, so it costs little beside the decoding. The threshold comes from
photographs: 30 sharp ones have a sharpness of 412 and more, the same blurred by 1.5 pixels here 68 at most.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GrayImage = NDArray[np.float32]

MEASURE_SIDE = 448  # long side, in pixels, of the copy that is measured
TILE_SIDE = 64
MIN_SHARPNESS = 75.0
MIN_STD = 1.0  # levels of grey: a deviation below shows nothing
CLIPPED_SHARE = 0.5  # share of pure black or white pixels worth a note
MIN_BORDER_SHARE = 0.02  # share of a side that a uniform bar must fill
_HASH_SIDE = 32


def quality_notes(image: Image.Image) -> list[str]:
    """`code: text` lines on what a person should look at; nothing here makes an image unusable.

    `image` may be reduced already, to a long side of at least SCALE.
    """
    grey = _downscaled_gray(image)
    found = []
    if grey.std() < MIN_STD:
        found.append("flat: one colour all over")
    elif min(grey.shape) >= TILE_SIDE and max(image.size) >= MEASURE_SIDE // 2:
        value = sharpness(grey)
        if value < MIN_SHARPNESS:
            found.append(f"blurry: sharpness {value:.0f}, below {MIN_SHARPNESS:.0f}")
    for name, share in (("black", float((grey <= 1).mean())), ("white", float((grey >= 254).mean()))):
        if share >= CLIPPED_SHARE:
            found.append(f"clipped: {share:.0%} of the picture is pure {name}")
    bars = letterbox_sides(grey)
    if bars:
        found.append(f"border: uniform bars at {bars}")
    return found


def sharpness(grey: GrayImage) -> float:
    """90th percentile over tiles of the Laplacian's variance: a sharp subject on a soft ground is sharp."""
    inner = grey[1:-1, 1:-1]
    laplacian = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * inner
    rows, columns = (max(1, side // TILE_SIDE) for side in laplacian.shape)
    tiles = [
        float(tile.var())
        for band in np.array_split(laplacian, rows)
        for tile in np.array_split(band, columns, axis=1)
    ]
    return float(np.percentile(tiles, 90))


def letterbox_sides(grey: GrayImage) -> str:
    """Which opposite sides carry uniform bars that end abruptly ("top and bottom"); "" for none."""
    for name, turned in (("top and bottom", grey), ("left and right", grey.T)):
        first, last = _bar_rows(turned), _bar_rows(turned[::-1])
        needed = MIN_BORDER_SHARE * len(turned)
        same = abs(float(turned[0].mean()) - float(turned[-1].mean())) <= 4
        if first >= needed and last >= needed and same:
            return name
    return ""


def phash(image: Image.Image) -> str | None:
    """64-bit perceptual hash as 16 hex digits, then that of the mirrored picture; None for a flat picture.

    The signs of the 8x8 lowest DCT coefficients of a 32x32 grey copy against their median.
    """
    small = image.convert("L").resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    values = np.asarray(small, np.float64)
    if values.std() < MIN_STD:
        return None  # every flat picture would be the duplicate of every other
    dct = _dct_matrix()
    low = (dct @ values @ dct.T)[:8, :8]
    mirrored = low * np.where(np.arange(8) % 2, -1.0, 1.0)  # odd horizontal frequencies change sign
    return "".join(np.packbits(part > np.median(part)).tobytes().hex() for part in (low, mirrored))


def _downscaled_gray(image: Image.Image) -> GrayImage:
    grey = image.convert("L")
    grey.thumbnail((MEASURE_SIDE, MEASURE_SIDE), Image.Resampling.BOX)
    return np.asarray(grey, np.float32)


def _bar_rows(rows: GrayImage) -> int:
    """How many first rows are of one tone, when what follows differs along most of a row; else 0."""
    flat = (np.abs(rows - rows[0].mean()) <= 4).all(axis=1)
    if flat.all() or not flat[0]:
        return 0
    count = int(np.argmin(flat))
    # Reducing the picture blurs the edge over one row, so the picture is looked for in the row after it.
    beyond = rows[min(count + 1, len(rows) - 1)]
    return count if (np.abs(beyond - rows[0].mean()) >= 16).mean() >= 0.5 else 0


@functools.cache
def _dct_matrix() -> NDArray[np.float64]:
    """The DCT-II as a matrix (unnormalised)."""
    index = np.arange(_HASH_SIDE)
    return np.cos(np.pi * (2 * index[None, :] + 1) * index[:, None] / (2 * _HASH_SIDE))
