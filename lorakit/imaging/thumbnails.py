"""Agreement of images pixel by pixel on small copies, also mirrored, cropped or of another brightness.

An image encoder calls two photos of one object similar; here only the same photo agrees. The small copies are
compared window by window, because a copy may be cropped, shifted a little or zoomed. Differences of
brightness and contrast do not count.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32  # of a thumbnail
GRID = 16  # cells a side that are compared
CHROMA_WEIGHT = 1.0  # of color differences against lightness
INNER_SHARE = 0.9  # of a sample's sides that is compared, so that it may be shifted against a reference
WINDOW_SCALES = (0.95, 0.9, 0.855, 0.81)  # of a reference's sides: a copy may be cropped by a tenth
MAX_OFFSET_STEP = 0.05  # of a reference's side between neighboring windows
SQUASHED_ASPECT = 1.35  # up to this ratio of the aspects an image may have been squashed instead of cropped
SAME_ASPECT = 1.04
_MIN_NORM = 1e-3  # of a window with any structure, per cell
FloatArray = NDArray[np.float32]


class Window(NamedTuple):
    """Left, top, width and height as shares of an image's sides."""

    left: float
    top: float
    width: float
    height: float


def thumbnail(image: Image.Image) -> FloatArray:
    """Return the image squashed to (`SIDE`, `SIDE`, 3), values 0 to 1."""
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=3.0)
    pixels: FloatArray = np.asarray(small, np.float32) / np.float32(255)
    return pixels


def agreement(
    samples: FloatArray, sample_aspects: FloatArray, references: FloatArray, aspects: FloatArray
) -> FloatArray:
    """Return the correlation (N, R), -1 to 1, of thumbnails with the window of each reference that fits best.

    The aspects (N,) and (R,) are the widths over the heights of the images.
    """
    result = np.full((len(samples), len(references)), -1.0, np.float32)
    inner = (1 - INNER_SHARE) / 2
    center = Window(inner, inner, INNER_SHARE, INNER_SHARE)
    sample_keys, reference_keys = np.round(np.log(sample_aspects), 2), np.round(np.log(aspects), 2)
    for sample_key in np.unique(sample_keys):
        rows = np.flatnonzero(sample_keys == sample_key)
        plain = _cells(samples[rows], center)
        mirrored = _cells(samples[rows][:, :, ::-1], center)
        for reference_key in np.unique(reference_keys):
            columns = np.flatnonzero(reference_keys == reference_key)
            best = np.full((len(rows), len(columns)), -1.0, np.float32)
            for window in _windows(float(np.exp(sample_key - reference_key))):
                cells = _cells(references[columns], window).T
                np.maximum(best, plain @ cells, out=best)
                np.maximum(best, mirrored @ cells, out=best)
            result[np.ix_(rows, columns)] = best
    return result


def _windows(ratio: float) -> Iterator[Window]:
    """Yield the windows of a reference to compare with a sample whose aspect is `ratio` times as wide."""
    for fitted in _fitted(ratio):
        for scale in WINDOW_SCALES:
            half = int(np.ceil((1 - scale) / (2 * MAX_OFFSET_STEP) - 1e-9))
            offsets = np.linspace(0, 1 - scale, 2 * half + 1)  # the center is one of them
            for left in offsets:
                for top in offsets:
                    yield Window(
                        fitted.left + float(left) * fitted.width,
                        fitted.top + float(top) * fitted.height,
                        scale * fitted.width,
                        scale * fitted.height,
                    )


def _fitted(ratio: float) -> Iterator[Window]:
    """Yield the largest windows of a sample's aspect, and the whole reference if the aspects are near."""
    if max(ratio, 1 / ratio) < SQUASHED_ASPECT:
        yield Window(0, 0, 1, 1)
    if max(ratio, 1 / ratio) < SAME_ASPECT:
        return
    side = min(ratio, 1 / ratio)
    for place in (0.0, 0.25, 0.5, 0.75, 1.0):
        offset = place * (1 - side)
        yield Window(offset, 0, side, 1) if ratio < 1 else Window(0, offset, 1, side)


def _cells(images: FloatArray, window: Window) -> FloatArray:
    """Return the cells of a window as vectors of length 1 (N, `GRID`^2 * 3); zero without any structure."""
    rows, columns = _averages(window.top, window.height), _averages(window.left, window.width)
    cells = np.einsum("gy,nyxc,hx->nghc", rows, images, columns, optimize=True)
    lightness = cells @ np.array([0.299, 0.587, 0.114], np.float32)
    blue, red = (CHROMA_WEIGHT * (cells[..., channel] - lightness) for channel in (2, 0))
    vectors = np.stack([lightness, blue, red], 1).reshape(len(images), 3, GRID * GRID)
    vectors = (vectors - vectors.mean(-1, keepdims=True)).reshape(len(images), -1)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    has_structure = norms > _MIN_NORM * GRID
    result: FloatArray = np.where(has_structure, vectors / np.maximum(norms, 1e-12), 0).astype(np.float32)
    return result


@functools.lru_cache(maxsize=256)
def _averages(start: float, length: float) -> FloatArray:
    """Return the weights (`GRID`, `SIDE`) that average the pixels under each cell of an interval."""
    edges = (start + length * np.arange(GRID + 1) / GRID) * SIDE
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(SIDE)[None]
    overlap = np.clip(np.minimum(high, pixels + 1) - np.maximum(low, pixels), 0, None)
    return (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)
