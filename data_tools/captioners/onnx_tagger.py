"""WD taggers in ONNX: one file that takes square images, their channels last, as numbers from 0 to 255."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_tools.captioners.tagger import Tagger, pad_to_square
from lorakit.core.errors import ConfigError, first_line

MODEL_FILE = "model.onnx"
_PROVIDERS = ("CUDAExecutionProvider", "ROCMExecutionProvider", "CPUExecutionProvider")


class OnnxTagger(Tagger):
    """A tagger whose file returns probabilities; onnxruntime runs it, on a GPU if its package can."""

    @functools.cached_property
    def session(self) -> Any:
        """The session of onnxruntime; ConfigError for a file with another kind of input."""
        path = self.model_folder.folder / MODEL_FILE
        try:
            import onnxruntime
        except ImportError as error:
            remedy = 'pip install "lorakit[onnx]", or use a WD tagger v3, which has safetensors too'
            raise ConfigError("ONNX files cannot be read here", where=str(path), remedy=remedy) from error
        available = onnxruntime.get_available_providers()
        providers = [name for name in _PROVIDERS if name in available]
        if self.device == "cpu":
            providers = ["CPUExecutionProvider"]
        try:
            session = onnxruntime.InferenceSession(str(path), providers=providers)
        except Exception as error:  # onnxruntime has its own kinds
            message = f"the tagger cannot be loaded: {first_line(error)}"
            raise ConfigError(message, where=str(path), remedy="download it again") from error
        shape = session.get_inputs()[0].shape
        if len(shape) != 4 or shape[3] != 3 or not isinstance(shape[1], int) or shape[1] != shape[2]:
            size = " x ".join(map(str, shape))
            message = f"the tagger takes an input of {size}, not square images (N, side, side, 3)"
            remedy = "use a WD tagger; other taggers in ONNX prepare their images in ways of their own"
            raise ConfigError(message, where=str(path), remedy=remedy)
        return session

    def scores(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        model_input = self.session.get_inputs()[0]
        side = model_input.shape[1]
        squares = [pad_to_square(image).resize((side, side), Image.Resampling.BICUBIC) for image in images]
        pixels = np.stack([np.asarray(square, dtype=np.float32)[:, :, ::-1] for square in squares])  # BGR
        is_fixed = isinstance(model_input.shape[0], int)  # some files take one image at a time
        parts = [pixels[i : i + 1] for i in range(len(pixels))] if is_fixed else [pixels]
        try:
            return np.concatenate([self.session.run(None, {model_input.name: part})[0] for part in parts])
        except Exception as error:  # onnxruntime has its own kinds
            raise RuntimeError(first_line(error)) from error
