"""Where the eye goes in a picture: the point around which a crop is laid, by saliency or by faces.

Saliency is the spectral residual of Hou and Zhang (CVPR 2007): what remains of the log amplitude spectrum
when its smooth part is taken away shows, transformed back, what stands out. On 120 off-centre windows of
photographs its point is 0.12 of a side from the subject's middle on average, the picture's own middle 0.15;
on the 30 photographs themselves, subjects in the middle, 0.07 and 0.045: so `centre` is the default. Faces
need OpenCV (`lorakit[faces]`), whose cascades come with it; without a face, saliency decides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lorakit.core.errors import ConfigError
from lorakit.core.progress import track_progress
from lorakit.imaging import crops, decode
from lorakit.imaging.buckets import CropBox, Point
from lorakit.manifest import Record

CROP_CENTERS = (crops.CENTRE, "saliency", "face")
NO_FACE = "no_face"  # faces were looked for, there was none: saliency
_SALIENCY_SIDE = 64  # long side of the copy whose spectrum is taken; Hou and Zhang's scale
_CENTER_PRIOR_SIGMA = 0.3  # how far from the middle subjects are, as a share of the side
_FACE_SIDE = 640  # long side of the copy in which faces are looked for
Detector = Callable[[Image.Image], list[CropBox]]


def check_crop_center(kind: str) -> None:
    """Raise `ConfigError` for a kind that is unknown or cannot work here."""
    if kind not in CROP_CENTERS:
        raise ConfigError(
            f"unknown crop {kind!r}", where="crop", remedy=f"use one of {', '.join(CROP_CENTERS)}"
        )
    if kind == "face":
        _face_detector()


def find_crop_centers(
    root: Path,
    records: Sequence[Record],
    kind: str,
    *,
    detector: Detector | None = None,
    quiet: bool = True,
) -> list[Record]:
    """The records with `focus` and `crop_by` by kind; crops set by hand are left alone.

    What an earlier run found for an unchanged picture is used again.
    """
    check_crop_center("saliency" if detector else kind)
    todo = [record for record in records if not crops.has_user_crop(record)]
    if kind == crops.CENTRE:
        found = {record.file: _with_crop_center(record, None, None) for record in todo}
    else:
        faces = (detector or _face_detector()) if kind == "face" else None
        known = (kind, NO_FACE) if faces else (kind,)
        new = [record for record in todo if record.focus is None or record.crop_by not in known]
        found = {}
        for record in track_progress(new, "looking where to crop", len(new), quiet=quiet):
            by, point = _locate_subject(decode.record_thumbnail(root, record, _FACE_SIDE), record, faces)
            found[record.file] = _with_crop_center(record, by, point)
    return [found.get(record.file, record) for record in records]


def _with_crop_center(record: Record, by: str | None, point: Point | None) -> Record:
    """The record to be cropped anew: an old crop around another point would look hand-set."""
    return replace(record, focus=point, crop_by=by, crop=None)


def _locate_subject(picture: Image.Image, record: Record, faces: Detector | None) -> tuple[str, Point]:
    """Who found it, and the point in pixels of the whole image."""
    boxes = faces(picture) if faces else []
    if boxes:
        # Around all faces, so that of a couple neither is cut.
        left, top = (min(box[i] for box in boxes) for i in (0, 1))
        right, bottom = (max(box[i] for box in boxes) for i in (2, 3))
        share = (left + right) / 2 / picture.width, (top + bottom) / 2 / picture.height
    else:
        share = salient_point(picture)
    point = tuple(min(side - 1, int(part * side)) for part, side in zip(share, record.size, strict=True))
    by = "face" if boxes else NO_FACE if faces else "saliency"
    return by, (point[0], point[1])


def salient_point(picture: Image.Image) -> tuple[float, float]:
    """The centre of what stands out, as shares (0..1) of width and height; the middle of a flat picture."""
    found = saliency(picture)
    height, width = found.shape
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    # Photographers put the subject near the middle; without that, a busy background wins.
    found = found * np.exp(
        -((x[None, :] - 0.5) ** 2 + (y[:, None] - 0.5) ** 2) / (2 * _CENTER_PRIOR_SIGMA**2)
    )
    weight = np.maximum(found - found.mean(), 0) ** 3  # cubed, because the weak background is large
    total = float(weight.sum())
    if total <= 0:
        return 0.5, 0.5
    return float((weight.sum(axis=0) * x).sum()) / total, float((weight.sum(axis=1) * y).sum()) / total


def saliency(picture: Image.Image) -> NDArray[np.float64]:
    """The spectral residual's map of lightness and two opponent colours, `_SIDE` along the long side."""
    small = picture.convert("RGB")
    small.thumbnail((_SALIENCY_SIDE, _SALIENCY_SIDE), Image.Resampling.BOX)
    red, green, blue = np.moveaxis(np.asarray(small, np.float64), 2, 0)
    total = np.zeros(red.shape)
    for channel in ((red + green + blue) / 3, red - green, blue - (red + green) / 2):
        if channel.std() >= 1.0:
            found = _spectral_residual(channel)
            total += found / found.max()
    return total


def _spectral_residual(channel: NDArray[np.float64]) -> NDArray[np.float64]:
    spectrum = np.fft.fft2(channel - channel.mean())
    amplitude = np.log(np.abs(spectrum) + 1e-9)
    rest = amplitude - _convolve_separable(amplitude, np.ones(3) / 3, wrap=True)
    back = np.abs(np.fft.ifft2(np.exp(rest + 1j * np.angle(spectrum)))) ** 2
    return _convolve_separable(back, _gaussian_kernel(2.5), wrap=False)


def _gaussian_kernel(sigma: float) -> NDArray[np.float64]:
    reach = np.arange(-int(3 * sigma), int(3 * sigma) + 1)
    kernel = np.exp(-(reach**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def _convolve_separable(
    values: NDArray[np.float64], kernel: NDArray[np.float64], *, wrap: bool
) -> NDArray[np.float64]:
    """Convolve rows and columns; a spectrum goes on at its other side, a picture with its edge."""
    reach = len(kernel) // 2
    padded = np.pad(values, reach, mode="wrap" if wrap else "edge")
    rows = sum(weight * padded[i : i + len(values)] for i, weight in enumerate(kernel))
    columns = values.shape[1]
    return np.asarray(sum(weight * rows[:, i : i + columns] for i, weight in enumerate(kernel)))


@functools.cache
def _face_detector() -> Detector:
    """OpenCV's frontal and profile cascades; OpenCV 5 has none any more."""
    try:
        import cv2

        cv2.CascadeClassifier  # noqa: B018
    except (ImportError, AttributeError) as error:
        remedy = "install one (pip install 'opencv-python-headless<5'), or use --crop saliency"
        raise ConfigError("no face detector is installed", where="crop", remedy=remedy) from error
    folder = Path(cv2.data.haarcascades)
    names = ("haarcascade_frontalface_default.xml", "haarcascade_profileface.xml")
    cascades: list[Any] = [cv2.CascadeClassifier(str(folder / name)) for name in names]

    def detect(picture: Image.Image) -> list[CropBox]:
        grey = np.asarray(picture.convert("L"))
        least = max(24, min(grey.shape) // 16)
        for cascade in cascades:
            boxes = cascade.detectMultiScale(grey, 1.1, 6, minSize=(least, least))
            if len(boxes):
                return [(int(x), int(y), int(x + w), int(y + h)) for x, y, w, h in boxes]
        return []

    return detect
