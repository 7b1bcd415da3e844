"""Masks by text segmentation: CLIPSeg or SAM 3 marks what a prompt names, such as "dog".

The masks are stored in a hidden folder beside the images, so that no tool uses them as images. A mask of the
user's (a file, or the alpha channel) is never replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.captioners import ModelFolder
from data_tools.conditioning.masks import MASK_FOLDER, SEGMENTED, generated_mask_stem, with_mask, without_mask
from data_tools.conditioning.update import Save, update_records
from data_tools.scan import replace_notes
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.imaging import decode, masks
from lorakit.manifest import Record
from lorakit.models.text_segmentation import TextSegmenter

MASK_NOT_FOUND = "mask_prompt_not_found"
MASK_COVERS_ALL = "mask_covers_all"
NOTES = (MASK_NOT_FOUND, MASK_COVERS_ALL)
_WHOLE = 0.99  # share of the image from which a mask selects nothing
_MAX_SIDE = 1024  # long side in pixels of the image for the model, whose own input is smaller


@dataclass(frozen=True)
class SegmentOptions:
    """`prompt` names the subject; pixels with a probability of at least `threshold` (0..1) are in the mask.

    `dilate` widens the mask by that share of its longer side, because a mask that cuts into the subject would
    be learned as its edge.
    """

    model: str
    prompt: str
    threshold: float = 0.4
    dilate: float = 0.01
    device: str | None = None

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work."""
        if not self.prompt.strip():
            raise ConfigError("the prompt is empty", where="prompt", remedy="name the subject, such as dog")
        if not 0 < self.threshold < 1 or not 0 <= self.dilate <= 0.2:
            remedy = "use --threshold 0.4 --dilate 0.01"
            raise ConfigError(
                "threshold must be between 0 and 1, dilate between 0 and 0.2",
                where="threshold",
                remedy=remedy,
            )


def segment_images(
    folder: Path,
    records: Sequence[Record],
    options: SegmentOptions,
    *,
    regenerate: bool = False,
    quiet: bool = True,
    save: Save | None = None,
) -> list[Record]:
    """Return the records with masks of what `options.prompt` names; if nothing is found, a note says so.

    `save` as in `update_records`.
    """
    options.check()
    model = ModelFolder.resolve(options.model, "segmenter")
    segmenter = TextSegmenter(model.folder, model.name, options.device)
    settings = f"{segmenter.name}, {options.threshold:g}, {options.dilate:g}"
    label = f"{SEGMENTED}: {options.prompt} ({settings})"
    todo = [
        r
        for r in records
        if r.keep and (r.mask is None or (_has_segmented_mask(r) and (regenerate or r.mask_source != label)))
    ]
    return update_records(
        records, todo, lambda record: _segment(folder, record, segmenter, options, label),
        label="masks", quiet=quiet, save=save,
    )  # fmt: skip


def _has_segmented_mask(record: Record) -> bool:
    return (record.mask_source or "").startswith(SEGMENTED)


def _segment(
    folder: Path, record: Record, segmenter: TextSegmenter, options: SegmentOptions, label: str
) -> Record:
    image = decode.record_thumbnail(folder, record, _MAX_SIDE)
    selected = segmenter.probability_map(image, options.prompt) >= options.threshold
    if not selected.any():
        note = f"{MASK_NOT_FOUND}: nothing like {options.prompt!r} was found"
        return replace_notes(without_mask(record), NOTES, [note])
    small = _dilate(Image.fromarray(selected * np.uint8(255)), options.dilate)
    mask = small.resize(record.size, Image.Resampling.BILINEAR)
    file = f"{MASK_FOLDER}/{generated_mask_stem(record)}.png"
    storage.save_image(folder / file, mask)
    share = float((np.asarray(mask) >= 128).mean())
    notes = [f"{MASK_COVERS_ALL}: {share:.1%} of the image is in the mask"] if share >= _WHOLE else []
    masked = with_mask(record, masks.load_mask_file(folder / file, record.size), file, label)
    return replace_notes(masked, NOTES, notes)


def _dilate(mask: Image.Image, share: float) -> Image.Image:
    """Return the mask widened by a share of its longer side."""
    from PIL import ImageFilter

    radius = round(share * max(mask.size))
    return mask.filter(ImageFilter.MaxFilter(2 * radius + 1)) if radius else mask
