"""Caches of text embeddings, latents and conditioning images, addressed by content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lorakit.core.progress import track_progress
from lorakit.data import mask_cache, tensor_cache
from lorakit.data.conditioning import ConditioningInputs, record_conditioning
from lorakit.data.items import DatasetItem
from lorakit.imaging import resize
from lorakit.models import base_model, vae
from lorakit.models.families.family import Conditioning, Family

Size = tuple[int, int]
Wanted = tuple[Any, ...]
"""(caption, size), and for families that read pictures the `Shown` too."""


class TextCache:
    """Text conditions of captions, addressed by caption and text encoders; and by the picture's size where
    the family's conditions depend on it."""

    def __init__(self, family: Family, base: Path, dtype: torch.dtype, folder: Path | None = None) -> None:
        self.family = family
        self._store = tensor_cache.TensorCache("text", folder)
        parts = base_model.component_hashes(base)
        self._encoders = {k: v for k, v in parts.items() if k.startswith(family.text_parts) or not k}
        self._dtype = str(dtype)

    def key(self, text: str, size: Size, pictures: ConditioningInputs | None = None) -> str:
        """The address of a caption's condition for a picture of `size` (width, height).

        Families that read the source with the caption must be told what is shown.
        """
        sized: dict[str, Any] = {"size": size} if self.family.sized else {}
        if self.family.reads and pictures is not None:
            sized |= {"shown": pictures.key}
        made = {"encoders": self._encoders, "dtype": self._dtype, "family": self.family.name}
        return tensor_cache.cache_key(caption=text, kind="text-1", **made, **sized)

    def missing(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """The captions with their sizes that have no sound entry, each entry once."""
        by_key = {self.key(*pair): pair for pair in wanted}
        return [pair for key, pair in by_key.items() if self._store.get(key) is None]

    def fill(self, wanted: Sequence[Wanted], pipe: Any, *, quiet: bool = False) -> None:
        """Encode and store captions."""
        for pair in track_progress(wanted, "captions", len(wanted), quiet=quiet):
            text, size, *rest = pair
            shown = rest[0].read() if rest and rest[0] and self.family.reads else None
            made = self.family.encode(pipe, [text], size, shown)[0]
            self._store.put(self.key(*pair), made, f"caption {text[:80]!r}")

    def get(self, text: str, size: Size, pictures: ConditioningInputs | None = None) -> Conditioning:
        """A condition that was filled in before."""
        return self._store.need(self.key(text, size, pictures))


class LatentCache:
    """Latents of images, addressed by decoded pixels, crop, size and autoencoder."""

    def __init__(
        self,
        folder: Path,
        base: Path,
        cache_folder: Path | None = None,
        settings: Mapping[str, Any] | None = None,
        hide: bool = False,
    ) -> None:
        """`settings` are the family's own for the autoencoder: the same files, otherwise read; `hide` paints
        what lies outside a picture's mask grey."""
        self.folder, self._settings, self._hide = folder, dict(settings or {}), hide
        self._store = tensor_cache.TensorCache("latents", cache_folder)
        self._vae = base_model.component_hashes(base).get("vae", "")

    def key(self, item: DatasetItem) -> str:
        """The address of an image's latent."""
        made: dict[str, Any] = {"vae": self._vae, "kind": "mean-2"}
        made |= {"settings": self._settings} if self._settings else {}
        made |= {"frames": item.frames} if item.frames else {}
        if self._hide and item.record.mask is not None:
            made["hidden"] = mask_cache.record_mask_hash(self.folder, item.record)
        return tensor_cache.cache_key(pixels=item.record.pixels, crop=item.crop, size=item.size, **made)

    def missing(self, items: Sequence[DatasetItem]) -> list[DatasetItem]:
        """The images that have no sound entry."""
        return [item for item in items if self._store.get(self.key(item)) is None]

    def fill(self, items: Sequence[DatasetItem], pipe: Any, *, quiet: bool = False) -> None:
        """Encode and store images; the posterior's mean, in the denoiser's units."""
        for item in track_progress(items, "latents", len(items), quiet=quiet):
            pixels = self._pixels(item)[None].float() / 127.5 - 1
            with torch.no_grad():
                mean, _ = vae.encode_latents(pipe.vae, pixels.to(pipe.vae.device, pipe.vae.dtype))
            self._store.put(self.key(item), {"latent": mean[0].float()}, item.record.file)

    def _pixels(self, item: DatasetItem) -> torch.Tensor:
        """uint8 (3, H, W), or (3, F, H, W) for bases that make clips."""
        record, box, size = item.record, item.crop, item.size
        if record.clip and item.frames:
            return resize.load_video_tensor(self.folder, record, box, size, item.frames)
        read = mask_cache.load_image_gray_unmasked if self._hide else resize.load_image_tensor
        picture = read(self.folder, record, box, size)
        return picture[:, None] if item.frames else picture

    def __getitem__(self, item: DatasetItem) -> torch.Tensor:
        return self._store.need(self.key(item))["latent"]


class ConditioningCache:
    """What the network is told of the pictures that images come with, addressed by their content."""

    def __init__(self, family: Family, folder: Path, base: Path, cache_folder: Path | None = None) -> None:
        self.family, self.folder = family, folder
        self._store = tensor_cache.TensorCache("pictures", cache_folder)
        self._made = {
            "vae": base_model.component_hashes(base).get("vae", ""),
            "family": family.name,
            "kind": "mean-1",
        }

    def shown(self, item: DatasetItem) -> ConditioningInputs:
        """The pictures that an item comes with; none in most families."""
        return record_conditioning(self.family, self.folder, item.record, item.crop, item.size)

    def _key(self, item: DatasetItem) -> str:
        return tensor_cache.cache_key(shown=self.shown(item).key, **self._made)

    def missing(self, items: Sequence[DatasetItem]) -> list[DatasetItem]:
        """The items with pictures that have no sound entry."""
        return [i for i in items if self.shown(i).count and self._store.get(self._key(i)) is None]

    def fill(self, items: Sequence[DatasetItem], pipe: Any, *, quiet: bool = False) -> None:
        """Encode and store the items' pictures."""
        for item in track_progress(items, "pictures", len(items), quiet=quiet):
            made = self.family.condition(pipe, self.shown(item).read())
            made = {name: value.float() for name, value in made.items()}
            self._store.put(self._key(item), made, item.record.file)

    def __getitem__(self, item: DatasetItem) -> Conditioning:
        return self._store.need(self._key(item)) if self.shown(item).count else {}
