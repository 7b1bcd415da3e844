"""Center crops on the subject of an image, found by saliency or by face detection.

Saliency is the spectral residual of Hou and Zhang (CVPR 2007): the log amplitude spectrum minus its smooth
part, transformed back, is large where the image stands out. On 120 off-center windows of photographs its
point is on average 0.12 of a side from the subject's center, the image's own center 0.15; on the 30
photographs themselves, with centered subjects, 0.07 and 0.045: so `center` is the default. Face detection
uses the cascades of OpenCV; without a face, saliency is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lorakit.core.errors import ConfigError
from lorakit.core.progress import track_progress
from lorakit.imaging import crops, decode, faces, opencv
from lorakit.imaging.buckets import CropBox, Point
from lorakit.manifest import Record

CROP_CENTERS = (crops.CENTER, "saliency", "face")
NO_FACE = "saliency_no_face"  # faces were looked for, there was none: saliency
_SALIENCY_SIDE = 64  # long side in pixels of the copy whose spectrum is computed; Hou and Zhang's scale
_CENTER_PRIOR_SIGMA = 0.3  # of the distance of subjects from the center, as a share of the side
_FACE_SIDE = 640  # long side in pixels of the copy in which faces are detected
Detector = Callable[[Image.Image], list[CropBox]]


def check_crop_center(crop: str) -> None:
    """Raise `ConfigError` for a value that is unknown or cannot work here."""
    if crop not in CROP_CENTERS:
        raise ConfigError(
            f"unknown crop {crop!r}", where="crop", remedy=f"use one of {', '.join(CROP_CENTERS)}"
        )
    if crop == "face":
        _face_detector()


def find_crop_centers(
    root: Path,
    records: Sequence[Record],
    crop: str,
    *,
    detector: Detector | None = None,
    quiet: bool = True,
) -> list[Record]:
    """Return the records with `focal_point` and `crop_source`; crops set by hand are not changed.

    The point of an earlier run is used again for an unchanged image.
    """
    check_crop_center("saliency" if detector else crop)
    todo = [record for record in records if not crops.has_user_crop(record)]
    if crop == crops.CENTER:
        updated = {record.file: _with_crop_center(record, None, None) for record in todo}
    else:
        detect = (detector or _face_detector()) if crop == "face" else None
        reusable = (crop, NO_FACE) if detect else (crop,)
        new = [record for record in todo if record.focal_point is None or record.crop_source not in reusable]
        updated = {}
        for record in track_progress(new, "crop centers", len(new), quiet=quiet):
            by, point = _locate_subject(decode.record_thumbnail(root, record, _FACE_SIDE), record, detect)
            updated[record.file] = _with_crop_center(record, by, point)
    return [updated.get(record.file, record) for record in records]


def _with_crop_center(record: Record, by: str | None, point: Point | None) -> Record:
    """Return the record without the crop around another point, which would count as set by hand."""
    if record.focal_point == point and record.crop_source == (by or crops.CENTER):
        return record
    return replace(record, focal_point=point, crop_source=by, crop=None)


def _locate_subject(image: Image.Image, record: Record, detect: Detector | None) -> tuple[str, Point]:
    """Return the source (face, saliency) and the point in pixels of the whole image."""
    boxes = detect(image) if detect else []
    if boxes:
        # The center of all faces, so that none of several is cut off.
        left, top = (min(box[i] for box in boxes) for i in (0, 1))
        right, bottom = (max(box[i] for box in boxes) for i in (2, 3))
        relative_center = (left + right) / 2 / image.width, (top + bottom) / 2 / image.height
    else:
        relative_center = salient_point(image)
    point = tuple(
        min(side - 1, int(part * side)) for part, side in zip(relative_center, record.size, strict=True)
    )
    by = "face" if boxes else NO_FACE if detect else "saliency"
    return by, (point[0], point[1])


def salient_point(image: Image.Image) -> tuple[float, float]:
    """Return the center of saliency as shares (0..1) of width and height; (0.5, 0.5) for a single color."""
    saliency_map = saliency(image)
    height, width = saliency_map.shape
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    # Photographers put the subject near the center; without this prior, a busy background wins.
    saliency_map = saliency_map * np.exp(
        -((x[None, :] - 0.5) ** 2 + (y[:, None] - 0.5) ** 2) / (2 * _CENTER_PRIOR_SIGMA**2)
    )
    weight = np.maximum(saliency_map - saliency_map.mean(), 0) ** 3  # cubed: the weak background is large
    total = float(weight.sum())
    if total <= 0:
        return 0.5, 0.5
    return float((weight.sum(axis=0) * x).sum()) / total, float((weight.sum(axis=1) * y).sum()) / total


def saliency(image: Image.Image) -> NDArray[np.float64]:
    """Return the spectral residual of lightness and two opponent colors; long side _SALIENCY_SIDE."""
    small = image.convert("RGB")
    small.thumbnail((_SALIENCY_SIDE, _SALIENCY_SIDE), Image.Resampling.BOX)
    red, green, blue = np.moveaxis(np.asarray(small, np.float64), 2, 0)
    total = np.zeros(red.shape)
    for channel in ((red + green + blue) / 3, red - green, blue - (red + green) / 2):
        if channel.std() >= 1.0:
            residual = _spectral_residual(channel)
            total += residual / residual.max()
    return total


def _spectral_residual(channel: NDArray[np.float64]) -> NDArray[np.float64]:
    spectrum = np.fft.fft2(channel - channel.mean())
    amplitude = np.log(np.abs(spectrum) + 1e-9)
    rest = amplitude - _convolve_separable(amplitude, np.ones(3) / 3, wrap=True)
    back = np.abs(np.fft.ifft2(np.exp(rest + 1j * np.angle(spectrum)))) ** 2
    return _convolve_separable(back, _gaussian_kernel(2.5), wrap=False)


def _gaussian_kernel(sigma: float) -> NDArray[np.float64]:
    radius = np.arange(-int(3 * sigma), int(3 * sigma) + 1)
    kernel = np.exp(-(radius**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def _convolve_separable(
    values: NDArray[np.float64], kernel: NDArray[np.float64], *, wrap: bool
) -> NDArray[np.float64]:
    """Convolve rows and columns; beyond the border, the array wraps around, or the edge repeats."""
    radius = len(kernel) // 2
    padded = np.pad(values, radius, mode="wrap" if wrap else "edge")
    rows = sum(weight * padded[i : i + len(values)] for i, weight in enumerate(kernel))
    columns = values.shape[1]
    return np.asarray(sum(weight * rows[:, i : i + columns] for i, weight in enumerate(kernel)))


@functools.cache
def _face_detector() -> Detector:
    try:
        detect = faces.load_face_detector(where="crop")
    except ConfigError as error:
        remedy = f"install one ({opencv.INSTALL}), or use --crop saliency"
        raise ConfigError("no face detector is installed", where="crop", remedy=remedy) from error
    return lambda image: [face.box for face in detect(image)]
