"""Edges of an image: Canny's, and the soft edges of a network (DexiNed)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lorakit.core.errors import ConfigError, first_line
from lorakit.imaging.opencv import load_opencv

MAX_THRESHOLD = 2040  # the largest gradient of 8-bit pixels: Sobel's 4 x 255, in x and y
_SIDE = 512  # pixels: the input of DexiNed
_MEAN = (103.5, 116.2, 123.6)  # of blue, green and red, which DexiNed was trained with


def canny(image: Image.Image, low: int = 100, high: int = 200) -> Image.Image:
    """Return white edges on black, RGB, of the image's size: `cv2.Canny` of its colors.

    A pixel with a gradient of at least `high` starts an edge, one of at least `low` continues it.
    """
    cv2 = load_opencv("--type canny")
    edges = cv2.Canny(np.asarray(image.convert("RGB")), low, high)
    return Image.fromarray(edges).convert("RGB")


class SoftEdgeDetector:
    """DexiNed in an ONNX file, such as that of OpenCV's model zoo. Edges are bright."""

    def __init__(self, file: str) -> None:
        self.file, self.where = Path(file).expanduser(), f"--model {file}"
        if not self.file.is_file():
            remedy = "give edge_detection_dexined_2024sep.onnx of OpenCV's model zoo (opencv/opencv_zoo)"
            raise ConfigError("there is no such file", where=self.where, remedy=remedy)
        cv2 = self._cv2 = load_opencv("--type softedge")
        try:
            self._network = cv2.dnn.readNetFromONNX(str(self.file))
        except cv2.error as error:
            message = f"OpenCV cannot load the model: {first_line(error)}"
            raise ConfigError(message, where=self.where, remedy="use DexiNed as an ONNX file") from error

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the edges, RGB, of the image's size; ConfigError if the model gives no map of them."""
        cv2 = self._cv2
        bgr = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
        try:
            self._network.setInput(cv2.dnn.blobFromImage(bgr, 1.0, (_SIDE, _SIDE), _MEAN))
            outputs = self._network.forward(self._network.getUnconnectedOutLayersNames())
        except cv2.error as error:
            message = f"the model takes no color image of {_SIDE} pixels: {first_line(error)}"
            raise ConfigError(message, where=self.where, remedy="use DexiNed as an ONNX file") from error
        logits = np.squeeze(outputs[-1])  # the last one joins those of all scales
        if logits.ndim != 2:
            message = f"the last output of the model has the shape {outputs[-1].shape}: no map of edges"
            raise ConfigError(message, where=self.where, remedy="use DexiNed as an ONNX file")
        edges = 1 / (1 + np.exp(-np.clip(logits, -60, 60)))
        low, high = edges.min(), edges.max()
        gray = (edges - low) / max(high - low, 1e-6) * 255
        whole = Image.fromarray(gray.round().astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
        return whole.convert("RGB")
