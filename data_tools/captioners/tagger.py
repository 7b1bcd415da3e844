"""Tags by WD taggers and other timm models with a list of tags (selected_tags.csv).

The WD models were trained on square images padded with white, in the channel order blue, green, red. Size and
normalization are in the model's own config.json.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from data_tools.captioners.captioner import (
    Captioner,
    CaptionFailure,
    CaptionRequest,
    CaptionResponse,
    ModelFolder,
)
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
        import timm
        from timm.data import create_transform, resolve_data_config

        from lorakit.models.device import default_device

        self.name, self.batch_size = model.name, options.concurrency
        self.thresholds = {
            GENERAL_CATEGORY: options.threshold,
            CHARACTER_CATEGORY: options.character_threshold,
        }
        self.prompts = (f"general>={options.threshold:g} character>={options.character_threshold:g}",)
        self.tags = _read_tags(model)
        self.device = options.device or default_device().type
        try:
            network = timm.create_model(f"local-dir:{model.folder}", pretrained=True)
        except (RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                f"the tagger cannot be loaded: {first_line(error)}",
                where=f"captioner: {model.name}",
                remedy="download it again",
            ) from error
        self.model: Any = network.eval().requires_grad_(False).to(self.device)
        self.transform: Any = create_transform(
            **resolve_data_config(self.model.pretrained_cfg, model=self.model)
        )

    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        import torch

        pixels = torch.stack([self.transform(_pad_to_square(request.image)) for request in requests])
        with torch.inference_mode():
            scores = self.model(pixels[:, [2, 1, 0]].to(self.device)).float().sigmoid().cpu()  # RGB to BGR
        if scores.shape[1] != len(self.tags):
            message = f"the model has {scores.shape[1]} classes, but {TAGS_FILE} has {len(self.tags)} tags"
            raise CaptionFailure("model_error", message, fatal=True)
        return [self._tags_above_threshold(row.tolist()) for row in scores]

    def _tags_above_threshold(self, scores: Sequence[float]) -> CaptionResponse:
        selected = [
            (tag.category != CHARACTER_CATEGORY, -score, tag.name)
            for tag, score in zip(self.tags, scores, strict=True)
            if score >= self.thresholds.get(tag.category, 2.0)
        ]
        names = tuple(name for _, _, name in sorted(selected))
        return CaptionResponse(", ".join(names), names)


def _pad_to_square(image: Image.Image) -> Image.Image:
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
