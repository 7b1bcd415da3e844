"""A model in one file, TorchScript or ONNX, as a function from pixels to arrays.

Neither format runs Python code of its author.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lorakit.core.checksums import sha256_file
from lorakit.core.errors import ConfigError, first_line

ONNX_SUFFIX = ".onnx"
_LOAD_ERRORS = (RuntimeError, ValueError, OSError, KeyError, TypeError)


class ModelFile:
    """A model that takes pixels (1, 3, H, W), float32; its outputs are arrays.

    `side` is the input's side in pixels if the file states one. `where` names the option in errors. Raises
    ConfigError for a file that is missing or cannot be loaded.
    """

    def __init__(self, file: str | Path, where: str, device: str = "cpu") -> None:
        self.file, self.where = Path(file), f"{where} {file}"
        if not self.file.is_file():
            raise ConfigError("there is no such file", where=self.where, remedy="check the path")
        self.weights_sha256 = sha256_file(self.file)
        self.side: int | None = None
        if self.file.suffix.lower() == ONNX_SUFFIX:
            self._session = self._open_onnx()
            self._module = None
        else:
            self._session, self._module = None, self._open_torchscript(device)
        self.device = device

    def __call__(self, pixels: torch.Tensor) -> list[NDArray[np.float32]]:
        """Return all outputs for one image (1, 3, H, W); ConfigError if the model does not take it."""
        try:
            if self._session is not None:
                name = self._session.get_inputs()[0].name
                return [np.asarray(value) for value in self._session.run(None, {name: pixels.numpy()})]
            with torch.inference_mode():
                output: Any = self._module(pixels.to(self.device))  # type: ignore[misc]
        except Exception as error:  # onnxruntime has its own kinds
            size = " x ".join(map(str, pixels.shape))
            message = f"the model does not take an image of {size}: {first_line(error)}"
            remedy = "use a model with one input, an RGB image"
            raise ConfigError(message, where=self.where, remedy=remedy) from error
        tensors = list(output.values()) if isinstance(output, dict) else output
        tensors = list(tensors) if isinstance(tensors, list | tuple) else [tensors]
        return [tensor.float().cpu().numpy() for tensor in tensors if isinstance(tensor, torch.Tensor)]

    def describe(self) -> dict[str, Any]:
        """Return name and hash, as JSON."""
        return {"model": self.file.name, "weights_sha256": self.weights_sha256}

    def _open_onnx(self) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            remedy = "pip install onnxruntime, or use a TorchScript file"
            raise ConfigError("ONNX files cannot be read here", where=self.where, remedy=remedy) from error
        try:
            session = onnxruntime.InferenceSession(str(self.file), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has its own kinds
            raise self._broken(error) from error
        sides = session.get_inputs()[0].shape[-2:]
        self.side = sides[0] if all(isinstance(side, int) for side in sides) else None
        return session

    def _open_torchscript(self, device: str) -> Any:
        try:
            return torch.jit.load(str(self.file), map_location=device).eval()
        except _LOAD_ERRORS as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> ConfigError:
        message = f"the model cannot be loaded: {first_line(error)}"
        return ConfigError(message, where=self.where, remedy="use a TorchScript or an ONNX file")
