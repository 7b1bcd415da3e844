"""Faces in an image: OpenCV's cascades, or a YuNet file, which finds tilted faces and five landmarks too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lorakit.core.errors import ConfigError, first_line
from lorakit.imaging.opencv import INSTALL, load_opencv

_LEAST_SIDES = 16  # the smallest face that is detected has this fraction of the image's shorter side
_MIN_SCORE = 0.7  # of YuNet


@dataclass(frozen=True)
class Face:
    """A face: left, top, right, bottom in pixels, and with YuNet five landmarks (5, 2): eyes, nose, mouth."""

    box: tuple[int, int, int, int]
    landmarks: NDArray[np.float64] | None = None

    @property
    def area(self) -> int:
        """The area of the box in pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


FaceDetector = Callable[[Image.Image], list[Face]]


def load_face_detector(file: str | Path | None = None, where: str = "face detector") -> FaceDetector:
    """Return YuNet from a file (ONNX), without one OpenCV's cascades of frontal and profile faces.

    Raises ConfigError if OpenCV is missing or the file cannot be loaded.
    """
    return _yunet(Path(file), where) if file else _cascades(where)


def _cascades(where: str) -> FaceDetector:
    cv2 = load_opencv(where)
    if not hasattr(cv2, "CascadeClassifier"):  # OpenCV 5 has none
        raise ConfigError("this OpenCV has no face cascades", where=where, remedy=INSTALL)
    folder = Path(cv2.data.haarcascades)
    names = ("haarcascade_frontalface_default.xml", "haarcascade_profileface.xml")
    cascades: list[Any] = [cv2.CascadeClassifier(str(folder / name)) for name in names]

    def detect(image: Image.Image) -> list[Face]:
        gray = np.asarray(image.convert("L"))
        smallest = max(24, min(image.size) // _LEAST_SIDES)
        for cascade in cascades:
            boxes = cascade.detectMultiScale(gray, 1.1, 6, minSize=(smallest, smallest))
            if len(boxes):
                return [Face((int(x), int(y), int(x + w), int(y + h))) for x, y, w, h in boxes]
        return []

    return detect


def _yunet(file: Path, where: str) -> FaceDetector:
    if not file.is_file():
        raise ConfigError("there is no such file", where=f"{where} {file}", remedy="use a YuNet ONNX file")
    cv2 = load_opencv(where)
    try:
        detector = cv2.FaceDetectorYN.create(str(file), "", (320, 320), _MIN_SCORE)
    except cv2.error as error:
        message = f"the face detector cannot be loaded: {first_line(error)}"
        raise ConfigError(message, where=f"{where} {file}", remedy="use a YuNet ONNX file") from error

    def detect(image: Image.Image) -> list[Face]:
        detector.setInputSize(image.size)
        _, rows = detector.detect(np.asarray(image.convert("RGB"))[:, :, ::-1].copy())
        faces = []
        for x, y, width, height, *points in [] if rows is None else rows.tolist():
            box = (int(x), int(y), int(x + width), int(y + height))
            faces.append(Face(box, np.array(points[:10]).reshape(5, 2)))
        return faces

    return detect
