"""Masks as the loss takes them: on the grid of the latents, and pictures whose outside is painted grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from lorakit.core.errors import DataError
from lorakit.core.progress import track_progress
from lorakit.data import tensor_cache
from lorakit.data.items import DatasetItem
from lorakit.imaging import decode, masks, resize
from lorakit.manifest import Record

GRAY_LEVEL = 127  # the middle of [-1, 1], nearly
LatentSizes = Mapping[tuple[int, int], tuple[int, int]]
"""(H, W) of the latents of a picture, by its size (width, height) in pixels."""


def record_mask_hash(folder: Path, record: Record) -> str | None:
    """The hash of a record's mask, None without one."""
    if record.mask_pixels is None and (mask := masks.read_record_mask(folder, record)) is not None:
        return masks.mask_hash(mask)
    return record.mask_pixels


def load_image_gray_unmasked(
    folder: Path, record: Record, crop: decode.CropBox, size: tuple[int, int]
) -> torch.Tensor:
    """`resample.picture` with what lies outside the mask painted grey before anything is mixed by resizing,
    so that no pixel outside changes a bit: uint8 (3, H, W)."""
    mask = masks.read_record_mask(folder, record)
    if mask is None:
        return resize.load_image_tensor(folder, record, crop, size)
    pixels = np.array(decode.read_record_image(folder, record))
    pixels[np.asarray(mask) == 0] = GRAY_LEVEL
    return resize.crop_and_resize_tensor(pixels, crop, size)


class MaskCache:
    """Masks on the latents' grid, addressed by the mask's content, crop and grid."""

    def __init__(self, folder: Path, grids: LatentSizes, cache_folder: Path | None = None) -> None:
        self.folder, self.grids = folder, grids
        self._store = tensor_cache.TensorCache("masks", cache_folder)

    def key(self, item: DatasetItem) -> str:
        """The address of an image's mask."""
        mask = record_mask_hash(self.folder, item.record)
        return tensor_cache.cache_key(mask=mask, crop=item.crop, grid=self.grids[item.size], kind="area-1")

    def fill(self, items: Sequence[DatasetItem], *, empty: bool = False, quiet: bool = False) -> None:
        """Store the masks that are missing. One that is black within its crop leaves nothing to learn: a
        `DataError` that names it, unless `empty` is allowed."""
        masked = [item for item in items if item.record.mask is not None]
        missing = [item for item in masked if self._store.get(self.key(item)) is None]
        for item in track_progress(missing, "masks", len(missing), quiet=quiet):
            self._store.put(self.key(item), {"mask": self._made(item)}, item.record.file)
        for item in masked:
            if not empty and not self._store.need(self.key(item))["mask"].any():
                raise DataError(
                    "the picture's mask is black within what is trained on",
                    where=str(self.folder / item.record.file),
                    remedy="change its crop or mask, leave the picture out, or give objective.mask.outside a"
                    " weight",
                )

    def _made(self, item: DatasetItem) -> torch.Tensor:
        """(1, H, W) in [0, 1]: the mean over each latent's pixels, so 0 only where all lie outside."""
        mask = masks.read_record_mask(self.folder, item.record)
        assert mask is not None
        pixels = torch.from_numpy(np.array(mask.crop(item.crop))).float() / 255
        return adaptive_avg_pool2d(pixels[None], self.grids[item.size])

    def get(self, item: DatasetItem) -> torch.Tensor:
        """(1, H, W) in [0, 1]; 1 everywhere for a picture without a mask."""
        if item.record.mask is None:
            return torch.ones(1, *self.grids[item.size])
        return self._store.need(self.key(item))["mask"]
