"""Masks of the loss on the latents' grid, and images that are gray outside their mask."""

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
"""(H, W) of an image's latents by its size (width, height) in pixels."""


def record_mask_hash(folder: Path, record: Record) -> str | None:
    """Return the hash of a record's mask, None without one."""
    if record.mask_content_hash is None and (mask := masks.read_record_mask(folder, record)) is not None:
        return masks.mask_hash(mask)
    return record.mask_content_hash


def load_image_gray_unmasked(
    folder: Path, record: Record, crop: decode.CropBox, size: tuple[int, int]
) -> torch.Tensor:
    """Load an image as `resize.load_image_tensor` does, gray outside its mask: uint8 (3, H, W).

    Pixels become gray before resizing mixes neighbours, so no pixel outside has any influence.
    """
    mask = masks.read_record_mask(folder, record)
    if mask is None:
        return resize.load_image_tensor(folder, record, crop, size)
    pixels = np.array(decode.read_record_image(folder, record))
    pixels[np.asarray(mask) == 0] = GRAY_LEVEL
    return resize.crop_and_resize_tensor(pixels, crop, size)


class MaskCache:
    """Masks on the latents' grid, addressed by the mask's content, crop and grid."""

    def __init__(self, latent_sizes: LatentSizes, cache_folder: Path | None = None) -> None:
        self.latent_sizes = latent_sizes
        self._store = tensor_cache.TensorCache("masks", cache_folder)

    def key(self, item: DatasetItem) -> str:
        """Return the key of an item's mask."""
        mask = record_mask_hash(item.folder, item.record)
        grid = self.latent_sizes[item.bucket]
        return tensor_cache.cache_key(mask=mask, crop=item.crop, grid=grid, version="area-1")

    def fill(self, items: Sequence[DatasetItem], *, allow_empty: bool = False, quiet: bool = False) -> None:
        """Store the masks that are missing.

        Raises DataError for a mask that is black everywhere in its crop, unless `allow_empty`: such an image
        would have no loss.
        """
        masked = [item for item in items if item.record.mask is not None]
        absent = self._store.missing(map(self.key, masked))
        missing = [item for item in masked if self.key(item) in absent]
        with self._store.writing():
            for item in track_progress(missing, "masks", len(missing), quiet=quiet):
                group = "masks-" + "x".join(map(str, item.bucket))
                self._store.put(self.key(item), {"mask": self._latent_mask(item)}, item.name, group)
        for item in masked:
            if not allow_empty and not self._store.require(self.key(item))["mask"].any():
                raise DataError(
                    "the image's mask is black everywhere in its crop",
                    where=str(item.path),
                    remedy="change its crop or mask, exclude the image, or set masked_loss.unmasked_weight",
                )

    def _latent_mask(self, item: DatasetItem) -> torch.Tensor:
        """Return (1, H, W) in [0, 1]: the mean over each latent's pixels, so 0 only if all are outside."""
        mask = masks.read_record_mask(item.folder, item.record)
        assert mask is not None
        pixels = torch.from_numpy(np.array(mask.crop(item.crop))).float() / 255
        return adaptive_avg_pool2d(pixels[None], self.latent_sizes[item.bucket])

    def get(self, item: DatasetItem) -> torch.Tensor:
        """Return the mask (1, H, W) in [0, 1]; 1 everywhere for an image without a mask."""
        if item.record.mask is None:
            return torch.ones(1, *self.latent_sizes[item.bucket])
        return self._store.require(self.key(item))["mask"]
