"""Face identity: the cosine of a face with the reference faces, by a face recognition model of the user.

The model is an ArcFace-like network (Deng et al., arXiv:1801.07698) in one file: it takes a face of 112
pixels whose values run from -1 to 1. With landmarks (a YuNet detector) the face is aligned as those networks
were trained; a detector that gives boxes only leaves it tilted, which costs some similarity on both sides. Of
several faces the largest counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lorakit.core.checksums import sha256_file
from lorakit.core.errors import ConfigError
from lorakit.imaging.faces import Face, load_face_detector
from lorakit.models.model_file import ModelFile

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_SIDE = 112
TEMPLATE = np.array(
    [[38.29, 51.70], [73.53, 51.50], [56.03, 71.74], [41.55, 92.37], [70.73, 92.20]], dtype=np.float64
)
"""Places of the eyes, the nose and the corners of the mouth in an aligned face of 112 pixels."""
_BOX_SCALE = 1.1  # a detector's box cuts the chin off
_OPTION, _DETECTOR_OPTION = "--face-model", "--face-detector"


class FaceEncoder:
    """Encodes the largest face of an image. A feature more than the model's says if there is one: 1 or 0."""

    def __init__(self, model: str, detector: str | None = None, device: str = "cpu") -> None:
        self.model = ModelFile(model, _OPTION, device)
        self.detect = load_face_detector(detector, _DETECTOR_OPTION if detector else _OPTION)
        self.detector_sha256 = sha256_file(detector) if detector else None
        self.side = self.model.side or DEFAULT_SIDE

    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return unit vectors and the flag (N, D + 1); zeros for an image without a face."""
        rows = [self._face_features(image.convert("RGB")) for image in images]
        size = next((len(row) for row in rows if row is not None), 0)
        if not size:
            size = len(self._encode(torch.zeros(1, 3, self.side, self.side)))
        features = torch.zeros(len(rows), size + 1)
        for index, row in enumerate(rows):
            if row is not None:
                features[index, :-1], features[index, -1] = torch.from_numpy(row), 1.0
        return features

    def describe(self) -> dict[str, Any]:
        """Return the settings that the features depend on, as JSON."""
        detector = "YuNet, aligned by landmarks" if self.detector_sha256 else "OpenCV's cascades, not aligned"
        return self.model.describe() | {
            "metric": "cosine of L2-normalised features of the largest face",
            "input_size": self.side,
            "detector": detector,
            "detector_sha256": self.detector_sha256,
        }

    def _face_features(self, image: Image.Image) -> NDArray[np.float32] | None:
        faces = self.detect(image)
        if not faces:
            return None
        face = crop_face(image, max(faces, key=lambda face: face.area), self.side)
        pixels = torch.from_numpy(np.asarray(face, np.float32) / 127.5 - 1).permute(2, 0, 1)
        return self._encode(pixels[None])

    def _encode(self, pixels: torch.Tensor) -> NDArray[np.float32]:
        outputs = self.model(pixels)
        if not outputs or outputs[0].size < 2:
            remedy = "use a face recognition model, such as an ArcFace ONNX file"
            raise ConfigError("the model gives no features", where=self.model.where, remedy=remedy)
        values: NDArray[np.float32] = outputs[0].reshape(-1).astype(np.float32)
        return values / max(float(np.linalg.norm(values)), 1e-12)


def crop_face(image: Image.Image, face: Face, side: int) -> Image.Image:
    """Return the face as a square of `side` pixels: aligned by its landmarks, else its box, enlarged."""
    from PIL import Image as images

    if face.landmarks is not None:
        matrix = _similarity_transform(TEMPLATE * (side / DEFAULT_SIDE), face.landmarks)
        return image.transform(
            (side, side), images.Transform.AFFINE, tuple(matrix.reshape(-1)), images.Resampling.BICUBIC
        )
    left, top, right, bottom = face.box
    half = _BOX_SCALE * max(right - left, bottom - top) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    box = tuple(round(value) for value in (x - half, y - half, x + half, y + half))
    return image.crop((box[0], box[1], box[2], box[3])).resize((side, side), images.Resampling.BICUBIC)


def _similarity_transform(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation, scale and shift (2, 3) that maps points (N, 2) best onto others."""
    rows = [[x, -y, 1, 0] for x, y in source] + [[y, x, 0, 1] for x, y in source]
    values = np.concatenate([target[:, 0], target[:, 1]])
    a, b, shift_x, shift_y = np.linalg.lstsq(np.array(rows), values, rcond=None)[0]
    return np.array([[a, -b, shift_x], [b, a, shift_y]])
