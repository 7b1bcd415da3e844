"""Segmentation by a text: CLIPSeg or SAM 3 (transformers) gives each pixel the probability that it is what a
prompt names, such as "dog"."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lorakit.core import storage
from lorakit.core.errors import ConfigError, first_line

if TYPE_CHECKING:
    from PIL import Image

SEGMENTER_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_MODEL_CLASSES = {
    "clipseg": "CLIPSegForImageSegmentation",
    "sam3": "Sam3Model",
    "sam3_lite_text": "Sam3LiteTextModel",
}
_LOAD_ERRORS = (ValueError, OSError, KeyError, ImportError)


class TextSegmenter:
    """A model in a local folder; `name` is its name in errors. Raises ConfigError if it cannot be loaded."""

    def __init__(self, folder: Path, name: str, device: str | None = None) -> None:
        import transformers
        from transformers.utils import logging as hf_logging

        from lorakit.models.device import default_device

        self.name, self.model_type, where = name, _model_type(folder), f"segmenter: {name}"
        if self.model_type not in _MODEL_CLASSES:
            remedy = f"use a model of type {', '.join(_MODEL_CLASSES)}"
            raise ConfigError(f"{self.model_type} cannot segment by a text", where=where, remedy=remedy)
        self.device = device or default_device().type
        model_class = getattr(transformers, _MODEL_CLASSES[self.model_type])
        bars = hf_logging.is_progress_bar_enabled()
        hf_logging.disable_progress_bar()  # lorakit shows its own progress
        try:
            self.processor: Any = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
            network = model_class.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except _LOAD_ERRORS as error:
            message, remedy = f"the model cannot be loaded: {first_line(error)}", "download it again"
            raise ConfigError(message, where=where, remedy=f"{remedy}, or use another model") from error
        finally:
            if bars:
                hf_logging.enable_progress_bar()
        self.model: Any = network.eval().requires_grad_(False).to(self.device)

    def probability_map(self, image: Image.Image, prompt: str) -> NDArray[np.float32]:
        """Return probabilities (height, width) of the image's size."""
        import torch

        inputs = self.processor(text=[prompt], images=[image], return_tensors="pt").to(self.device)
        with torch.inference_mode():
            output = self.model(**{k: v for k, v in inputs.items() if k != "original_sizes"})
        if self.model_type == "clipseg":
            logits = output.logits.reshape(1, 1, *output.logits.shape[-2:])
            probabilities = logits.float().sigmoid()
        else:
            # Each instance has a score; a pixel gets the probability of its best instance.
            score = output.pred_logits.float().sigmoid().reshape(1, -1, 1, 1)
            if output.presence_logits is not None:
                score = score * output.presence_logits.float().sigmoid().reshape(1, 1, 1, 1)
            probabilities = (score * output.pred_masks.float().sigmoid()).amax(dim=1, keepdim=True)
        size = image.height, image.width
        resized = torch.nn.functional.interpolate(probabilities, size, mode="bilinear", align_corners=False)
        values: NDArray[np.float32] = resized[0, 0].cpu().numpy()
        return values


def _model_type(folder: Path) -> str:
    """Return the `model_type` of config.json; ConfigError for a folder without a model."""
    file = folder / "config.json"
    if not file.is_file():
        message = "not a model folder: it has no config.json"
        raise ConfigError(message, where=str(folder), remedy="check the path")
    config = storage.read_json(file, allow_infinity=True)
    if not isinstance(config, dict):
        message = "config.json is not a JSON object"
        raise ConfigError(message, where=str(file), remedy="download the model again")
    return str(config.get("model_type"))
