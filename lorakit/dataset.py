"""The training set: manifest records with their buckets, and their cached latents and text conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorakit import bases, buckets, cache, images, manifest, storage, vae
from lorakit.batches import Slot
from lorakit.errors import DataError
from lorakit.families.base import Cond, Family
from lorakit.manifest import Record
from lorakit.progress import track

Say = Callable[[str], None]


@dataclass(frozen=True)
class Item:
    """One image as the model sees it: crop box in pixels of the upright image, size (width, height) after
    resizing."""

    record: Record
    crop: tuple[int, int, int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """`latents` (B, C, H, W) and the collated text condition."""

    latents: torch.Tensor
    cond: Cond


def read(folder: Path) -> list[Record]:
    """The records that are trained on; none, or one without a caption, is a `DataError`."""
    if not (folder / manifest.MANIFEST).is_file():
        raise DataError(
            "the dataset has no manifest.jsonl",
            where=str(folder),
            remedy=f"run `lorakit data prepare {folder}` (`lorakit train` does it by itself)",
        )
    records = [record for record in manifest.load(folder) if record.keep]
    if not records:
        raise DataError(
            "the dataset has no image to train on", where=str(folder), remedy="see report.html in the folder"
        )
    silent = [record.file for record in records if not record.captions]
    if silent:
        raise DataError(
            f"{len(silent)} images have no caption: {', '.join(silent[:5])}",
            where=str(folder),
            remedy=f"run `lorakit data caption {folder} --class-noun dog --trigger sks`, or write .txt files",
        )
    return records


def check_files(folder: Path, records: Sequence[Record]) -> None:
    """Every file must still be the one that the manifest describes."""
    for record in records:
        file = folder / record.file
        try:
            same = storage.sha256_file(file) == record.sha256
        except OSError as error:
            raise DataError(f"cannot read the image: {error}", where=str(file)) from error
        if not same:
            raise DataError(
                "the file has changed since the dataset was prepared",
                where=str(file),
                remedy=f"run `lorakit data prepare {folder}` again",
            )


def plan(records: Sequence[Record], resolution: int, step: int, batch: int) -> tuple[list[Item], bool]:
    """Each image's crop and size, and whether the manifest's own buckets served.

    The manifest's buckets are used when all of them suit the resolution and the model's step; otherwise new
    ones are chosen, by the same rule that `lorakit data bucket` uses.
    """
    area = resolution * resolution
    fitting = all(
        r.bucket
        and r.crop
        and 0.8 <= r.bucket[0] * r.bucket[1] / area <= 1.25
        and not any(n % step for n in r.bucket)
        for r in records
    )
    if fitting:
        return [Item(r, r.crop, r.bucket) for r in records if r.crop and r.bucket], True
    sizes = [(record.width, record.height) for record in records]
    chosen = buckets.plan(sizes, resolution=resolution, step=step, batch=batch)
    return [Item(r, a.crop, a.bucket) for r, a in zip(records, chosen, strict=True)], False


class TextCache:
    """Text conditions of captions, addressed by caption and text encoders."""

    def __init__(self, family: Family, base: Path, dtype: torch.dtype, folder: Path | None = None) -> None:
        self.family = family
        self._store = cache.Cache("text", folder)
        parts = bases.part_hashes(base)
        self._encoders = {
            k: v for k, v in parts.items() if k.startswith(("text_encoder", "tokenizer")) or not k
        }
        self._dtype = str(dtype)

    def key(self, text: str) -> str:
        """The address of a caption's condition."""
        return cache.key(
            caption=text, encoders=self._encoders, dtype=self._dtype, family=self.family.name, kind="text-1"
        )

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The distinct captions that have no sound entry."""
        return [text for text in dict.fromkeys(texts) if self._store.get(self.key(text)) is None]

    def fill(self, texts: Sequence[str], pipe: Any, *, quiet: bool = False) -> None:
        """Encode and store captions."""
        for text in track(texts, "captions", len(texts), quiet=quiet):
            self._store.put(self.key(text), self.family.encode(pipe, [text])[0], f"caption {text[:80]!r}")

    def __getitem__(self, text: str) -> Cond:
        return self._store.need(self.key(text))


class LatentCache:
    """Latents of images, addressed by decoded pixels, crop, size and autoencoder."""

    def __init__(self, folder: Path, base: Path, cache_folder: Path | None = None) -> None:
        self.folder = folder
        self._store = cache.Cache("latents", cache_folder)
        self._vae = bases.part_hashes(base).get("vae", "")

    def key(self, item: Item) -> str:
        """The address of an image's latent."""
        return cache.key(
            pixels=item.record.pixels, crop=item.crop, size=item.size, vae=self._vae, kind="mean-1"
        )

    def missing(self, items: Sequence[Item]) -> list[Item]:
        """The images that have no sound entry."""
        return [item for item in items if self._store.get(self.key(item)) is None]

    def fill(self, items: Sequence[Item], pipe: Any, *, quiet: bool = False) -> None:
        """Encode and store images; the posterior's mean, in the denoiser's units."""
        for item in track(items, "latents", len(items), quiet=quiet):
            picture = images.fit(images.read(self.folder, item.record), item.crop, item.size)
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
            with torch.no_grad():
                mean, _ = vae.encode(pipe.vae, pixels.to(pipe.vae.device, pipe.vae.dtype))
            self._store.put(self.key(item), {"latent": mean[0].float()}, item.record.file)

    def __getitem__(self, item: Item) -> torch.Tensor:
        return self._store.need(self.key(item))["latent"]


class TrainingSet:
    """Images and captions by index, as tensors."""

    def __init__(self, items: Sequence[Item], latents: LatentCache, text: TextCache) -> None:
        self.items = [item for item in items for _ in range(item.record.repeats)]
        self._latents, self._text = latents, text
        self.shapes = [item.size for item in self.items]
        self.captions = [len(item.record.captions) for item in self.items]

    def batch(self, slots: Sequence[Slot], device: torch.device) -> Batch:
        """The latents and conditions of slots that share one shape."""
        items = [self.items[slot.image] for slot in slots]
        latents = torch.stack([self._latents[item] for item in items])
        texts = [i.record.captions[s.caption].text for i, s in zip(items, slots, strict=True)]
        cond = self._text.family.collate([self._text[text] for text in texts])
        return Batch(latents.to(device), {name: tensor.to(device) for name, tensor in cond.items()})
