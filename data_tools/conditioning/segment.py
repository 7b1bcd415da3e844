"""Masks from a word: CLIPSeg or SAM 3 (transformers) marks what a text names, such as "dog".

The masks lie in a hidden folder beside the images, so that no tool takes them for images; an image's own mask
(a file of the user's, or its alpha channel) is never replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_tools.captioners import ModelFolder
from data_tools.conditioning.masks import MASK_FOLDER, SEGMENTED, generated_mask_stem, with_mask, without_mask
from data_tools.scan import replace_notes
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.progress import track_progress
from lorakit.imaging import decode, masks
from lorakit.manifest import Record

MASK_NOT_FOUND = "mask_not_found"
_SIDE = 1024  # long side of what the model is shown; its own input is smaller


@dataclass(frozen=True)
class SegmentOptions:
    """`prompt` names what counts; a pixel does from a likelihood of `threshold` (0..1) on. `grow` widens the
    mask by that share of the longer side, because masks that cut into the subject teach its edge."""

    model: str
    prompt: str
    threshold: float = 0.4
    grow: float = 0.01
    device: str | None = None

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work."""
        if not self.prompt.strip():
            raise ConfigError("what shall be masked?", where="prompt", remedy="give a word, such as dog")
        if not 0 < self.threshold < 1 or not 0 <= self.grow <= 0.2:
            remedy = "use --threshold 0.4 --grow 0.01"
            raise ConfigError(
                "threshold is between 0 and 1, grow between 0 and 0.2", where="threshold", remedy=remedy
            )


class Segmenter:
    """A model that gives every pixel a likelihood to be what a text names."""

    def __init__(self, model: ModelFolder, device: str | None = None) -> None:
        import torch
        import transformers

        kinds = {
            "clipseg": "CLIPSegForImageSegmentation",
            "sam3": "Sam3Model",
            "sam3_lite_text": "Sam3LiteTextModel",
        }
        self.name, self.kind = model.name, str(model.config().get("model_type"))
        if self.kind not in kinds:
            remedy = f"use a model of type {', '.join(kinds)}"
            raise ConfigError(
                f"{self.kind} segments by no text", where=f"segmenter: {model.name}", remedy=remedy
            )
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.processor: Any = model.load(transformers.AutoProcessor, "segmenter")
        made = model.load(getattr(transformers, kinds[self.kind]), "segmenter", use_safetensors=True)
        self.model: Any = made.eval().requires_grad_(False).to(self.device)

    def likelihood(self, picture: Image.Image, prompt: str) -> Any:
        """(height, width) float32 of the picture's size, 0..1."""
        import torch

        inputs = self.processor(text=[prompt], images=[picture], return_tensors="pt").to(self.device)
        with torch.inference_mode():
            output = self.model(**{k: v for k, v in inputs.items() if k != "original_sizes"})
        if self.kind == "clipseg":
            logits = output.logits.reshape(1, 1, *output.logits.shape[-2:])
            found = logits.float().sigmoid()
        else:
            # Every instance with its score; a pixel is as likely as the best instance that has it.
            score = output.pred_logits.float().sigmoid().reshape(1, -1, 1, 1)
            if output.presence_logits is not None:
                score = score * output.presence_logits.float().sigmoid().reshape(1, 1, 1, 1)
            found = (score * output.pred_masks.float().sigmoid()).amax(dim=1, keepdim=True)
        size = picture.height, picture.width
        return (
            torch.nn.functional.interpolate(found, size, mode="bilinear", align_corners=False)[0, 0]
            .cpu()
            .numpy()
        )


def segment_images(
    root: Path, records: Sequence[Record], options: SegmentOptions, *, again: bool = False, quiet: bool = True
) -> list[Record]:
    """The records with masks of what `options.prompt` names; where nothing is found, a note says so."""
    options.check()
    segmenter = Segmenter(ModelFolder.find(options.model, "segmenter"), options.device)
    label = f"{SEGMENTED}: {options.prompt} ({segmenter.name})"
    todo = [
        r
        for r in records
        if r.keep and (r.mask is None or (_has_segmented_mask(r) and (again or r.mask_source != label)))
    ]
    made: dict[str, Record] = {}
    for record in track_progress(todo, "masks", len(todo), quiet=quiet):
        made[record.file] = _segment(root, record, segmenter, options, label)
    return [made.get(record.file, record) for record in records]


def _has_segmented_mask(record: Record) -> bool:
    return (record.mask_source or "").startswith(SEGMENTED)


def _segment(root: Path, record: Record, segmenter: Segmenter, options: SegmentOptions, label: str) -> Record:
    plain = replace_notes(record, (MASK_NOT_FOUND,), [])
    try:
        picture = decode.record_thumbnail(root, record, _SIDE)
    except DataError as error:
        return replace_notes(without_mask(plain), (MASK_NOT_FOUND,), [f"{MASK_NOT_FOUND}: {error.message}"])
    marked = segmenter.likelihood(picture, options.prompt) >= options.threshold
    if not marked.any():
        note = f"{MASK_NOT_FOUND}: nothing like {options.prompt!r} was found"
        return replace_notes(without_mask(plain), (MASK_NOT_FOUND,), [note])
    small = _dilate(Image.fromarray(marked * np.uint8(255)), options.grow)
    mask = small.resize(record.size, Image.Resampling.BILINEAR)
    file = f"{MASK_FOLDER}/{generated_mask_stem(record)}.png"
    storage.save_image(root / file, mask)
    return with_mask(plain, masks.load_mask_file(root / file, record.size), file, label)


def _dilate(mask: Image.Image, share: float) -> Image.Image:
    """The mask widened by a share of its longer side."""
    from PIL import ImageFilter

    reach = round(share * max(mask.size))
    return mask.filter(ImageFilter.MaxFilter(2 * reach + 1)) if reach else mask
