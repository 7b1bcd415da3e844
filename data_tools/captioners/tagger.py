"""Tags by WD taggers and other timm models that come with a list of tags (selected_tags.csv).

The WD models were trained on square pictures padded with white, in the channel order blue, green, red; the
repository's own configuration gives size and normalisation.
"""

from __future__ import annotations

import csv
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
from lorakit.core.errors import ConfigError

TAGS_FILE = "selected_tags.csv"
GENERAL_CATEGORY, CHARACTER_CATEGORY = 0, 4  # categories; 9 is the rating, which describes no picture
_WORD = re.compile(r"[a-z0-9]{2}", re.IGNORECASE)


@dataclass(frozen=True)
class _Tag:
    name: str
    category: int


class Tagger(Captioner):
    """A classifier whose classes are tags; general tags by falling likelihood, characters before them."""

    def __init__(self, model: ModelFolder, options: CaptionerOptions) -> None:
        import timm
        import torch
        from timm.data import create_transform, resolve_data_config

        self.name, self.batch = model.name, options.at_once
        self.limits = {GENERAL_CATEGORY: options.threshold, CHARACTER_CATEGORY: options.character_threshold}
        self.prompts = (f"general>={options.threshold:g} character>={options.character_threshold:g}",)
        self.tags = _read_tags(model)
        self.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            made = timm.create_model(f"local-dir:{model.folder}", pretrained=True)
        except (RuntimeError, ValueError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"the tagger cannot be loaded: {reason}",
                where=f"captioner: {model.name}",
                remedy="fetch it again",
            ) from error
        self.model: Any = made.eval().requires_grad_(False).to(self.device)
        self.transform: Any = create_transform(
            **resolve_data_config(self.model.pretrained_cfg, model=self.model)
        )

    def describe(self, asks: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        import torch

        pixels = torch.stack([self.transform(_pad_to_square(ask.picture)) for ask in asks])
        with torch.inference_mode():
            scores = self.model(pixels[:, [2, 1, 0]].to(self.device)).float().sigmoid().cpu()  # RGB to BGR
        if scores.shape[1] != len(self.tags):
            message = f"{scores.shape[1]} classes, but {TAGS_FILE} names {len(self.tags)} tags"
            raise CaptionFailure("model_error", message, hopeless=True)
        return [self._answer(row.tolist()) for row in scores]

    def _answer(self, scores: Sequence[float]) -> CaptionResponse:
        found = [
            (tag.category != CHARACTER_CATEGORY, -score, tag.name)
            for tag, score in zip(self.tags, scores, strict=True)
            if score >= self.limits.get(tag.category, 2.0)
        ]
        names = tuple(name for _, _, name in sorted(found))
        return CaptionResponse(", ".join(names), names)


def _pad_to_square(picture: Image.Image) -> Image.Image:
    side = max(picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _read_tags(model: ModelFolder) -> list[_Tag]:
    path = model.folder / TAGS_FILE
    if not path.is_file():
        remedy = "use a tagger that comes with its tags, such as the WD taggers of generation 3"
        raise ConfigError(f"the tagger has no {TAGS_FILE}", where=str(model.folder), remedy=remedy)
    with open(path, encoding="utf-8", newline="") as file:
        try:
            rows = [_Tag(_display_name(row["name"]), int(row["category"])) for row in csv.DictReader(file)]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"unreadable {TAGS_FILE}: {error}",
                where=str(path),
                remedy="it needs the columns name and category",
            ) from error
    return rows


def _display_name(name: str) -> str:
    """A tag as people write it: `long_hair` is long hair, but `^_^` and `x_x` are faces."""
    return name.replace("_", " ") if _WORD.search(name) else name
