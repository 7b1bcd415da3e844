"""The pictures that a training image or a prompt comes with, brought to the shape of what is drawn.

A source of the image's own aspect is cropped as the image is; of another, its middle is taken. Nothing is
read before it is asked for: `key` says what would come.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.data import tensor_cache
from lorakit.data.prompts import Prompt
from lorakit.imaging import buckets, decode, masks, resize
from lorakit.imaging.decode import CropBox
from lorakit.manifest import ConditioningImage, Record
from lorakit.models.families.family import ConditioningTensors, Family

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]


@dataclass(frozen=True)
class ConditioningInput:
    """One picture: its kind, what decides its pixels, and how it is read as uint8 (channels, H, W)."""

    kind: str
    key: tuple[Any, ...]
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class ConditioningInputs:
    """The pictures of one sample, `size` (width, height) each."""

    parts: tuple[ConditioningInput, ...]
    size: Size

    @property
    def key(self) -> str:
        """The address of what `read` gives."""
        return tensor_cache.cache_key(pictures=[[part.kind, part.key] for part in self.parts], size=self.size)

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return len(self.parts)

    def read(self) -> ConditioningTensors:
        """The pictures by kind, uint8 (N, channels, H, W)."""
        found: dict[str, list[torch.Tensor]] = defaultdict(list)
        for part in self.parts:
            found[part.kind].append(part.read())
        return {kind: torch.stack(pictures) for kind, pictures in found.items()}


def record_conditioning(
    family: Family, folder: Path, record: Record, crop: CropBox, size: Size
) -> ConditioningInputs:
    """What a family is shown with a training image that is cropped to `crop` and resized to `size`."""
    parts = []
    for one in record.given:
        if one.kind in family.takes:
            box = _conditioning_crop(one, record.size, crop, size)
            read = partial(_load_image, folder / one.file, box, size)
            parts.append(ConditioningInput(one.kind, (one.sha256, box), read))
    if family.fills and not any(part.kind == "source" for part in parts):
        own = partial(resize.load_image_tensor, folder, record, crop, size)
        parts.append(ConditioningInput("source", (record.pixels, crop), own))
    if "mask" in family.takes and record.mask is not None:
        mask = partial(_recorded_mask, folder, record, crop, size)
        parts.append(ConditioningInput("mask", (record.mask_pixels, record.mask, crop), mask))
    return ConditioningInputs(tuple(parts), size)


def prompt_conditioning(family: Family, prompt: Prompt, size: Size) -> ConditioningInputs:
    """What a family is shown with a prompt: its pictures, the middle that has the aspect of `size`."""
    kind = next((kind for kind in family.takes if kind != "mask"), None)
    files = [prompt.image, *prompt.further] if kind and prompt.image else []
    parts = [
        ConditioningInput(kind or "", (storage.sha256_file(file),), partial(_load_image, file, None, size))
        for file in files
        if file
    ]
    if "mask" in family.takes and prompt.mask:
        parts.append(
            ConditioningInput(
                "mask", (storage.sha256_file(prompt.mask),), partial(_prompts_mask, prompt.mask, size)
            )
        )
    return ConditioningInputs(tuple(parts), size)


# ---- checks, before any work ------------------------------------------------------------------------------


def check_record_conditioning(family: Family, folder: Path, records: Sequence[Record]) -> None:
    """Every image must have the pictures that the base needs, and none that it cannot be shown.

    The files must be the recorded ones. Raises `DataError`, before any work.
    """
    where = str(folder)
    for kind in family.takes:
        bare = [record.file for record in records if not _has_kind(record, kind)]
        optional = kind not in family.needs and (len(bare) == len(records) or family.fills)
        if bare and not optional:
            raise DataError(
                f"{len(bare)} of {len(records)} images have no {kind}: {', '.join(bare[:5])}",
                where=where,
                remedy=f"{family.title} needs one for each; {_REMEDIES[kind]}",
            )
    for record in records:
        kinds = [one.kind for one in record.given]
        if strange := next((kind for kind in kinds if kind not in family.takes), None):
            raise DataError(
                f"{record.file!r} comes with a {strange}, which {family.title} cannot be shown",
                where=where,
                remedy=f"use a base that takes a {strange}, or a folder of these images without it",
            )
        for kind in set(kinds):
            if kinds.count(kind) > 1 and not (family.several and kind == "source"):
                remedy = "leave one, or use a base that takes several, such as Flux.2"
                message = (
                    f"{record.file!r} has {kinds.count(kind)} pictures as {kind}, {family.title} takes one"
                )
                raise DataError(message, where=where, remedy=remedy)
        for one in record.given:
            _check_file(folder, one)


def check_prompt_conditioning(family: Family, prompts: Sequence[Prompt]) -> None:
    """Every prompt must have the pictures that the base needs to draw; else a `ConfigError`."""
    for prompt in prompts:
        where = f"prompt {prompt.id!r}"
        pictured = [kind for kind in family.needs if kind != "mask"] or (["source"] if family.fills else [])
        if pictured and prompt.image is None:
            remedy = "give it `image`, a path relative to the prompt file"
            raise ConfigError(f"{family.title} draws from a {pictured[0]}", where=where, remedy=remedy)
        if "mask" in family.needs and prompt.mask is None:
            remedy = "give it `mask`, a picture that is white where it shall paint"
            raise ConfigError(f"{family.title} must be told where to paint", where=where, remedy=remedy)
        if prompt.mask and "mask" not in family.takes:
            raise ConfigError(f"{family.title} takes no mask", where=where, remedy="leave `mask` out")
        if prompt.further and not family.several:
            raise ConfigError(f"{family.title} takes one image", where=where, remedy="give one path")


_REMEDIES = {
    "source": "lay NAME.source.png beside NAME.png, or fill the column source_file_name, and prepare again",
    "control": "run `lorakit data control DIR --kind canny`, or lay NAME.control.png beside NAME.png",
    "mask": "lay NAME-masklabel.png beside NAME.png, or run `lorakit data control DIR --kind mask`",
}


def _has_kind(record: Record, kind: str) -> bool:
    return record.mask is not None if kind == "mask" else any(one.kind == kind for one in record.given)


def _check_file(folder: Path, one: ConditioningImage) -> None:
    file = folder / one.file
    remedy = f"run `lorakit data prepare {folder}` again"
    try:
        same = storage.sha256_file(file) == one.sha256
    except OSError as error:
        raise DataError(f"cannot read the {one.kind}: {error}", where=str(file), remedy=remedy) from error
    if not same:
        message = f"the {one.kind} has changed since the dataset was prepared"
        raise DataError(message, where=str(file), remedy=remedy)


# ---- reading ----------------------------------------------------------------------------------------------


def _conditioning_crop(one: ConditioningImage, whole: Size, crop: CropBox, size: Size) -> CropBox:
    """The part of a given picture that belongs to the image's crop."""
    own = one.width, one.height
    if not masks.same_aspect(own, whole):
        return buckets.crop_box(own, size)
    x, y = own[0] / whole[0], own[1] / whole[1]
    return round(crop[0] * x), round(crop[1] * y), round(crop[2] * x), round(crop[3] * y)


def _load_image(file: Path, box: CropBox | None, size: Size) -> torch.Tensor:
    image = decode.decode_image(file)
    return resize.crop_and_resize_tensor(np.array(image), box or buckets.crop_box(image.size, size), size)


def _recorded_mask(folder: Path, record: Record, crop: CropBox, size: Size) -> torch.Tensor:
    mask = masks.read_record_mask(folder, record)
    assert mask is not None
    return _binary_mask(mask, crop, size)


def _prompts_mask(file: Path, size: Size) -> torch.Tensor:
    mask = decode.decode_image(file, background=(0, 0, 0)).convert("L")
    return _binary_mask(mask, buckets.crop_box(mask.size, size), size)


def _binary_mask(mask: Image.Image, box: CropBox, size: Size) -> torch.Tensor:
    from PIL import Image as Pillow

    small = np.array(mask.resize(size, Pillow.Resampling.BILINEAR, box=box))
    return torch.from_numpy(np.where(small >= 128, 255, 0).astype(np.uint8))[None]
