"""Conditioning images of a training image or a prompt, cropped and resized like the image to predict.

A source that has the aspect ratio of its image is cropped as the image is; any other is cropped around its
center. No file is decoded before its tensor is needed: `cache_key` tells which tensors they would be.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lorakit.core import checksums, dataset_paths
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.file_hashes import FileHashes
from lorakit.data import tensor_cache
from lorakit.data.prompts import Prompt
from lorakit.imaging import buckets, decode, masks, resize
from lorakit.imaging.decode import CropBox
from lorakit.manifest import ConditioningImage, Record
from lorakit.models.families.family import ConditioningTensors, Family

if TYPE_CHECKING:
    from PIL import Image

    from lorakit.data.items import DatasetItem

Size = tuple[int, int]


@dataclass(frozen=True)
class ConditioningInput:
    """One conditioning image: its type, the key of its pixels, and a function that loads them.

    `load` returns uint8 (channels, H, W).
    """

    type: str
    content_key: tuple[Any, ...]
    load: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class ConditioningInputs:
    """All conditioning images of one sample, `size` (width, height) each."""

    images: tuple[ConditioningInput, ...]
    size: Size

    @property
    def cache_key(self) -> str:
        """The key of what `load_tensors` returns."""
        keys = [[image.type, image.content_key] for image in self.images]
        return tensor_cache.cache_key(images=keys, size=self.size)

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.images)

    def load_tensors(self) -> ConditioningTensors:
        """Load the images by type, uint8 (N, channels, H, W)."""
        by_type: dict[str, list[torch.Tensor]] = defaultdict(list)
        for image in self.images:
            by_type[image.type].append(image.load())
        return {image_type: torch.stack(tensors) for image_type, tensors in by_type.items()}


def record_conditioning(
    family: Family, folder: Path, record: Record, crop: CropBox, size: Size, frame: int | None = None
) -> ConditioningInputs:
    """Return the conditioning images that a family takes with a training image, or a video's first `frame`.

    `crop` and `size` (width, height) are those of the training image.
    """
    spec = family.conditioning
    inputs = []
    for image in record.conditioning_images:
        if image.type in spec.accepted:
            box = _conditioning_crop(image, record.size, crop, size)
            load = partial(_load_image, dataset_paths.file_path(folder, image.file), box, size)
            inputs.append(ConditioningInput(image.type, (image.sha256, box), load))
    if spec.source_is_image and not any(one.type == "source" for one in inputs):
        inputs.append(_own_source(folder, record, crop, size, frame))
    if "mask" in spec.accepted and record.mask is not None:
        load = partial(_load_record_mask, folder, record, crop, size)
        inputs.append(ConditioningInput("mask", (record.mask_content_hash, record.mask, crop), load))
    return ConditioningInputs(tuple(inputs), size)


def prompt_conditioning(family: Family, prompt: Prompt, size: Size) -> ConditioningInputs:
    """Return the conditioning images of a prompt, cropped around their centers to the aspect of `size`."""
    accepted = family.conditioning.accepted
    image_type = next((name for name in accepted if name != "mask"), None)
    inputs = []
    for file in prompt.images if image_type else ():
        load = partial(_load_image, file, None, size)
        inputs.append(ConditioningInput(image_type or "", (checksums.sha256_file(file),), load))
    if "mask" in accepted and prompt.mask:
        load = partial(_load_prompt_mask, prompt.mask, size)
        inputs.append(ConditioningInput("mask", (checksums.sha256_file(prompt.mask),), load))
    return ConditioningInputs(tuple(inputs), size)


# ---- checks before any work -------------------------------------------------------------------------------


def conditioning_types(records: Sequence[Record], *, generated: bool) -> set[str]:
    """Return the types of the user's conditioning images and, with `generated`, of the generated ones."""
    images = (image for record in records for image in record.conditioning_images)
    return {image.type for image in images if generated or not image.is_generated}


def without_unused_images(
    family: Family, records: Sequence[Record], log: Callable[[str], None] = lambda text: None
) -> list[Record]:
    """Return the records without generated conditioning images of a type that the family does not take.

    Their number is logged. The user's own images stay: `check_record_conditioning` refuses them.
    """
    accepted, unused = family.conditioning.accepted, Counter[str]()
    kept = []
    for record in records:
        images = tuple(
            image for image in record.conditioning_images if image.type in accepted or not image.is_generated
        )
        unused.update(image.type for image in record.conditioning_images if image not in images)
        kept.append(replace(record, conditioning_images=images))
    for image_type, number in sorted(unused.items()):
        log(f"{number} generated images of type {image_type} are not used: {family.title} takes none")
    return kept


def check_record_conditioning(family: Family, folder: Path, records: Sequence[Record]) -> None:
    """Check that every image has the conditioning images that the base model needs, unchanged, and no others.

    Raises DataError.
    """
    where, spec = str(folder), family.conditioning
    for image_type in spec.accepted:
        without = [record.file for record in records if not _has_conditioning(record, image_type)]
        optional = image_type not in spec.required and (len(without) == len(records) or spec.source_is_image)
        if without and not optional:
            raise DataError(
                f"{len(without)} of {len(records)} images have no {image_type}: {', '.join(without[:5])}",
                where=where,
                remedy=f"{family.title} needs one for each image; {_REMEDIES[image_type]}",
            )
    hashes = FileHashes.load(folder)
    for record in records:
        _check_types(family, record, where)
        for image in record.conditioning_images:
            _check_file(folder, image, hashes)


def still_source_warnings(family: Family, items: Sequence[DatasetItem]) -> list[str]:
    """Warn about items of one frame that a family takes a video from: each would be its own source."""
    if not (family.is_video and family.conditioning.source_is_image):
        return []
    stills = [
        item
        for item in items
        if len(item.frame_indices) == 1 and not _has_conditioning(item.record, "source")
    ]
    if not stills:
        return []
    return [
        f"warning: {len(stills)} of {len(items)} images are their own source, first {stills[0].name}: a video"
        " from an image is learned from videos of several frames (`frames`, longer videos)"
    ]


def _check_types(family: Family, record: Record, where: str) -> None:
    """Raise DataError for a conditioning image that the family does not take, or one too many."""
    types = [image.type for image in record.conditioning_images]
    for image_type in dict.fromkeys(types):
        if image_type not in family.conditioning.accepted:
            raise DataError(
                f"{record.file!r} comes with a {image_type}, which {family.title} does not take",
                where=where,
                remedy=f"use a base model that takes a {image_type}, or a folder of these images without it",
            )
        several = family.conditioning.multiple_sources and image_type == "source"
        if types.count(image_type) > 1 and not several:
            raise DataError(
                f"{record.file!r} has {types.count(image_type)} images of type {image_type}, "
                f"{family.title} takes one",
                where=where,
                remedy="keep one, or use a base model that takes several, such as Flux.2",
            )


def check_prompt_conditioning(family: Family, prompts: Sequence[Prompt]) -> None:
    """Check that every prompt has the images that the base model needs for sampling; ConfigError if not."""
    spec = family.conditioning
    required = [name for name in spec.required if name != "mask"] or (
        ["source"] if spec.source_is_image else []
    )
    for prompt in prompts:
        where = f"prompt {prompt.id!r}"
        if required and not prompt.images:
            remedy = "add `image`, a path relative to the prompt file"
            raise ConfigError(f"{family.title} needs a {required[0]} image", where=where, remedy=remedy)
        if "mask" in spec.required and prompt.mask is None:
            remedy = "add `mask`, an image that is white where the model fills in"
            raise ConfigError(f"{family.title} needs a mask", where=where, remedy=remedy)
        if prompt.mask and "mask" not in spec.accepted:
            raise ConfigError(f"{family.title} takes no mask", where=where, remedy="remove `mask`")
        if len(prompt.images) > 1 and not spec.multiple_sources:
            raise ConfigError(f"{family.title} takes one image", where=where, remedy="give one path")


_REMEDIES = {
    "source": "put NAME.source.png beside NAME.png, or fill the column source_file_name, and prepare again",
    "control": "run `lorakit data control DIR --type canny`, or put NAME.control.png beside NAME.png",
    "mask": "put NAME-masklabel.png beside NAME.png, or run `lorakit data control DIR --type mask`",
}


def _has_conditioning(record: Record, image_type: str) -> bool:
    if image_type == "mask":
        return record.mask is not None
    return any(image.type == image_type for image in record.conditioning_images)


def _check_file(folder: Path, image: ConditioningImage, hashes: FileHashes) -> None:
    file = dataset_paths.file_path(folder, image.file)
    remedy = f"run `lorakit data prepare {folder}` again"
    try:
        same = hashes.sha256(image.file, file) == image.sha256
    except OSError as error:
        raise DataError(f"cannot read the {image.type}: {error}", where=str(file), remedy=remedy) from error
    if not same:
        message = f"the {image.type} has changed since the dataset was prepared"
        raise DataError(message, where=str(file), remedy=remedy)


# ---- reading ----------------------------------------------------------------------------------------------


def _conditioning_crop(image: ConditioningImage, image_size: Size, crop: CropBox, size: Size) -> CropBox:
    """Return the part of a conditioning image that corresponds to the crop of the training image."""
    own_size = image.width, image.height
    if not masks.same_aspect(own_size, image_size):
        return buckets.crop_box(own_size, size)
    left, right = _scaled_span((crop[0], crop[2]), image_size[0], own_size[0], size[0])
    top, bottom = _scaled_span((crop[1], crop[3]), image_size[1], own_size[1], size[1])
    return left, top, right, bottom


def _scaled_span(span: tuple[int, int], image_side: int, own_side: int, length: int) -> tuple[int, int]:
    """Return a span of the image's side on the other side.

    If it is `length` pixels long but for rounding, it has that length: the pixels are then not resampled.
    """
    start, end = (round(edge * own_side / image_side) for edge in span)
    if abs(end - start - length) > 1 or length > own_side:
        return start, end
    start = min(start, own_side - length)
    return start, start + length


def _own_source(
    folder: Path, record: Record, crop: CropBox, size: Size, frame: int | None
) -> ConditioningInput:
    """Return the training image, or one frame of the video, as the source."""
    if frame is None:
        load = partial(resize.load_image_tensor, folder, record, crop, size)
        return ConditioningInput("source", (record.content_hash, crop), load)
    load = partial(_load_frame, folder, record, crop, size, frame)
    return ConditioningInput("source", (record.content_hash, crop, frame), load)


def _load_frame(folder: Path, record: Record, crop: CropBox, size: Size, frame: int) -> torch.Tensor:
    return resize.load_video_tensor(folder, record, crop, size, (frame,))[:, 0]


def _load_image(file: Path, box: CropBox | None, size: Size) -> torch.Tensor:
    image = decode.decode_image(file)
    return resize.crop_and_resize_tensor(np.array(image), box or buckets.crop_box(image.size, size), size)


def _load_record_mask(folder: Path, record: Record, crop: CropBox, size: Size) -> torch.Tensor:
    mask = masks.read_record_mask(folder, record)
    assert mask is not None
    return _binary_mask(mask, crop, size)


def _load_prompt_mask(file: Path, size: Size) -> torch.Tensor:
    mask = decode.decode_image(file, background=(0, 0, 0)).convert("L")
    return _binary_mask(mask, buckets.crop_box(mask.size, size), size)


def _binary_mask(mask: Image.Image, box: CropBox, size: Size) -> torch.Tensor:
    from PIL import Image as Pillow

    small = np.array(mask.resize(size, Pillow.Resampling.BILINEAR, box=box))
    return torch.from_numpy(np.where(small >= 128, 255, 0).astype(np.uint8))[None]
