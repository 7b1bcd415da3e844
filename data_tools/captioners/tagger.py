"""Tags by taggers with a list of tags (selected_tags.csv): WD taggers and other models of timm.

The WD models were trained on square images padded with white, in the channel order blue, green, red. Size and
normalization are in the model's own config.json.
"""

from __future__ import annotations

import functools
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_tools.captioners.batch_size import BatchSize
from data_tools.captioners.captioner import (
    Captioner,
    CaptionFailure,
    CaptionRequest,
    CaptionResponse,
)
from data_tools.captioners.model_folder import ModelFolder
from data_tools.captioners.options import CaptionerOptions
from lorakit.core import input_files
from lorakit.core.errors import ConfigError, first_line
from lorakit.core.strict_csv import read_csv

TAGS_FILE = "selected_tags.csv"
GENERAL_CATEGORY, CHARACTER_CATEGORY = 0, 4  # 9 is the rating, which is not used
_WORD = re.compile(r"[a-z0-9]{2}", re.IGNORECASE)


@dataclass(frozen=True)
class _Tag:
    name: str
    category: int


class Tagger(Captioner):
    """A classifier whose classes are tags: characters first, then general tags, most probable first."""

    def __init__(self, model: ModelFolder, options: CaptionerOptions) -> None:
        from lorakit.models.device import default_device

        self.name, self.model_folder = model.name, model
        self.thresholds = {
            GENERAL_CATEGORY: options.threshold,
            CHARACTER_CATEGORY: options.character_threshold,
        }
        self.prompts = (f"general>={options.threshold:g} character>={options.character_threshold:g}",)
        self.tags = _read_tags(model)
        self.device = options.device or default_device().type
        self._batch = BatchSize(self.device, options.concurrency)

    @property
    def batch_size(self) -> int:
        return self._batch.value

    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        from lorakit.models.memory import is_out_of_memory

        try:
            scores = self.scores([request.image for request in requests])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise CaptionFailure("model_error", first_line(error)) from error
            self._batch.record_out_of_memory(len(requests))
            raise CaptionFailure("out_of_memory", "an image is too large for this device") from error
        if scores.shape[1] != len(self.tags):
            message = f"the model has {scores.shape[1]} classes, but {TAGS_FILE} has {len(self.tags)} tags"
            raise CaptionFailure("model_error", message, fatal=True)
        self._batch.record_success(len(requests))
        return [self._tags_above_threshold(row.tolist()) for row in scores]

    @abstractmethod
    def scores(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Return the probability of each tag in each image (N, number of tags)."""

    def _tags_above_threshold(self, scores: Sequence[float]) -> CaptionResponse:
        selected = [
            (tag.category != CHARACTER_CATEGORY, -score, tag.name)
            for tag, score in zip(self.tags, scores, strict=True)
            if score >= self.thresholds.get(tag.category, 2.0)
        ]
        names = tuple(name for _, _, name in sorted(selected))
        return CaptionResponse(", ".join(names), names)


class TimmTagger(Tagger):
    """A tagger of timm, in safetensors."""

    @functools.cached_property
    def model(self) -> Any:
        """The model, on its device."""
        import timm

        try:
            network = timm.create_model(f"local-dir:{self.model_folder.folder}", pretrained=True)
        except (RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                f"the tagger cannot be loaded: {first_line(error)}",
                where=f"captioner: {self.name}",
                remedy="download it again",
            ) from error
        return network.eval().requires_grad_(False).to(self.device)

    @functools.cached_property
    def transform(self) -> Any:
        """From an image to the pixels (3, H, W) of the model."""
        from timm.data import create_transform, resolve_data_config

        return create_transform(**resolve_data_config(self.model.pretrained_cfg, model=self.model))

    def scores(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        import torch

        pixels = torch.stack([self.transform(pad_to_square(image)) for image in images])
        with torch.inference_mode():
            scores = self.model(pixels[:, [2, 1, 0]].to(self.device)).float().sigmoid().cpu()  # RGB to BGR
        return np.asarray(scores.numpy())


def pad_to_square(image: Image.Image) -> Image.Image:
    """Return the image in the middle of a white square."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _read_tags(model: ModelFolder) -> list[_Tag]:
    path = model.folder / TAGS_FILE
    if not path.is_file():
        remedy = "use a tagger with a list of its tags, such as the WD taggers v3"
        raise ConfigError(f"the tagger has no {TAGS_FILE}", where=str(model.folder), remedy=remedy)
    try:
        rows = [row for _, row in read_csv(input_files.read_text(path), str(path))]
        return [_Tag(_display_name(row["name"]), int(row["category"])) for row in rows]
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"unreadable {TAGS_FILE}: {error}",
            where=str(path),
            remedy="it needs the columns name and category",
        ) from error


def _display_name(name: str) -> str:
    """Return a tag with spaces: `long_hair` is "long hair", but the faces `^_^` and `x_x` stay."""
    return name.replace("_", " ") if _WORD.search(name) else name
