"""Measurements on an image's pixels: perceptual hash, sharpness, letterbox bars and clipped tones.

Everything is measured on a reduced copy, so it costs little beside the decoding. The threshold comes from
photographs: 30 sharp ones have a sharpness of 412 and more, the same ones blurred by 1.5 pixels at most 68.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GrayImage = NDArray[np.float32]

MEASURE_SIDE = 448  # long side in pixels of the copy that is measured
TILE_SIDE = 64
MIN_SHARPNESS = 75.0
MIN_STD = 1.0  # gray levels (0..255): an image with a lower standard deviation shows nothing
CLIPPED_SHARE = 0.5  # share of pure black or white pixels worth a note
MIN_BORDER_SHARE = 0.02  # share of a side that a uniform bar must fill
_HASH_SIDE = 32


def quality_notes(image: Image.Image) -> list[str]:
    """Return notes (`code: text`) on what a person should look at; none of them excludes the image.

    `image` may be a reduced copy whose long side is at least MEASURE_SIDE.
    """
    gray = _downscaled_gray(image)
    notes = []
    if gray.std() < MIN_STD:
        notes.append("single_color: one color all over")
    elif min(gray.shape) >= TILE_SIDE and max(image.size) >= MEASURE_SIDE // 2:
        value = sharpness(gray)
        if value < MIN_SHARPNESS:
            notes.append(f"blurry: sharpness {value:.0f}, below {MIN_SHARPNESS:.0f}")
    for name, share in (("black", float((gray <= 1).mean())), ("white", float((gray >= 254).mean()))):
        if share >= CLIPPED_SHARE:
            notes.append(f"clipped_tones: {share:.0%} of the image is pure {name}")
    bars = letterbox_sides(gray)
    if bars:
        notes.append(f"letterbox: uniform bars at {bars}")
    return notes


def sharpness(gray: GrayImage) -> float:
    """Return the 90th percentile over tiles of the Laplacian's variance: a sharp subject is enough."""
    inner = gray[1:-1, 1:-1]
    laplacian = gray[1:-1, :-2] + gray[1:-1, 2:] + gray[:-2, 1:-1] + gray[2:, 1:-1] - 4 * inner
    rows, columns = (max(1, side // TILE_SIDE) for side in laplacian.shape)
    tiles = [
        float(tile.var())
        for band in np.array_split(laplacian, rows)
        for tile in np.array_split(band, columns, axis=1)
    ]
    return float(np.percentile(tiles, 90))


def letterbox_sides(gray: GrayImage) -> str:
    """Return the sides with uniform bars that end abruptly: "top and bottom", "left and right" or ""."""
    for name, rows in (("top and bottom", gray), ("left and right", gray.T)):
        first, last = _bar_rows(rows), _bar_rows(rows[::-1])
        needed = MIN_BORDER_SHARE * len(rows)
        same = abs(float(rows[0].mean()) - float(rows[-1].mean())) <= 4
        if first >= needed and last >= needed and same:
            return name
    return ""


def phash(image: Image.Image) -> str | None:
    """Return a perceptual hash: 16 hex digits, then 16 of the mirrored image; None for a single color.

    A bit says if one of the 8x8 lowest DCT coefficients of a 32x32 gray copy is above their median.
    """
    small = image.convert("L").resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    values = np.asarray(small, np.float64)
    if values.std() < MIN_STD:
        return None  # all images of one color would be duplicates of each other
    dct = _dct_matrix()
    low = (dct @ values @ dct.T)[:8, :8]
    mirrored = low * np.where(np.arange(8) % 2, -1.0, 1.0)  # odd horizontal frequencies change sign
    return "".join(np.packbits(part > np.median(part)).tobytes().hex() for part in (low, mirrored))


def _downscaled_gray(image: Image.Image) -> GrayImage:
    gray = image.convert("L")
    gray.thumbnail((MEASURE_SIDE, MEASURE_SIDE), Image.Resampling.BOX)
    return np.asarray(gray, np.float32)


def _bar_rows(rows: GrayImage) -> int:
    """Return the number of first rows of one tone if the next row differs from it along most of its width and
    the rows that follow do so at both ends, else 0: a shape before a plain background ends before them.
    """
    flat = (np.abs(rows - rows[0].mean()) <= 4).all(axis=1)
    if flat.all() or not flat[0]:
        return 0
    count = int(np.argmin(flat))
    # Reducing the image blurs the edge over one row, so the row after that one is compared.
    differs = np.abs(rows[min(count + 1, len(rows) - 1) :] - rows[0].mean()) >= 16
    end = max(1, rows.shape[1] // 20)
    near = differs[: max(1, len(rows) // 10)]
    reaches_ends = near[:, :end].any() and near[:, -end:].any()
    return count if differs[0].mean() >= 0.5 and reaches_ends else 0


@functools.cache
def _dct_matrix() -> NDArray[np.float64]:
    """Return the matrix of the DCT-II (not normalized)."""
    index = np.arange(_HASH_SIDE)
    return np.cos(np.pi * (2 * index[None, :] + 1) * index[:, None] / (2 * _HASH_SIDE))
