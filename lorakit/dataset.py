"""The training set: manifest records with their buckets, and their cached latents and text conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorakit import bases, cache, clips, manifest, masking, placement, resample, storage, vae
from lorakit.batches import EMPTY, Slot
from lorakit.errors import DataError
from lorakit.families.base import Cond, Family
from lorakit.families.video import Video
from lorakit.manifest import Record
from lorakit.progress import track
from lorakit.shown import Shown, of_record
from lorakit.trained_text import LiveText

Say = Callable[[str], None]
Change = Callable[[str], str]


@dataclass(frozen=True)
class Item:
    """One image as the model sees it: crop box in pixels of the upright image, size (width, height) after
    resizing. For bases that make clips, `frames` are the numbers of those kept; a picture has number 0."""

    record: Record
    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    frames: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """What samples of one batch share."""
        return (*self.size, len(self.frames)) if self.frames else self.size


@dataclass(frozen=True)
class Batch:
    """`latents` (B, C, H, W), of clips (B, C, F, H, W), the collated text condition, and the masks
    (B, 1, H, W) where they count."""

    latents: torch.Tensor
    cond: Cond
    mask: torch.Tensor | None = None


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

    The manifest's buckets are used when all of them suit the model's step and the largest the resolution (a
    dataset in tiers has smaller ones); otherwise new ones are chosen, by the same rule that `lorakit data
    bucket` uses. Crops that a person set stay.
    """
    area = resolution * resolution
    sizes = [record.bucket for record in records if record.bucket]
    own = len(sizes) == len(records) and not any(side % step for size in sizes for side in size)
    own = own and 0.8 <= max(width * height for width, height in sizes) / area <= 1.25
    chosen = records if own else placement.place(records, resolution, step, batch=batch)
    return [Item(r, placement.kept_box(r), r.bucket) for r in chosen if r.bucket], own


def with_frames(items: Sequence[Item], family: Family, pipe: Any, most: int) -> list[Item]:
    """The items with the frames that are kept of each, at most `most`; a base that makes pictures takes no
    clips."""
    if not isinstance(family, Video):
        if films := [item.record.file for item in items if item.record.clip]:
            raise DataError(
                f"{len(films)} clips, and {family.title} makes pictures: {', '.join(films[:5])}",
                where="dataset",
                remedy="use a base that makes clips, or set keep to false for them in manifest.jsonl",
            )
        return list(items)
    grid = family.frame_grid(pipe)
    kept = [clips.chosen(i.record.clip, family.fps, most, grid) if i.record.clip else (0,) for i in items]
    return [replace(item, frames=frames) for item, frames in zip(items, kept, strict=True)]


Size = tuple[int, int]
Wanted = tuple[Any, ...]
"""(caption, size), and for families that read pictures the `Shown` too."""


class TextCache:
    """Text conditions of captions, addressed by caption and text encoders; and by the picture's size where
    the family's conditions depend on it."""

    def __init__(self, family: Family, base: Path, dtype: torch.dtype, folder: Path | None = None) -> None:
        self.family = family
        self._store = cache.Cache("text", folder)
        parts = bases.part_hashes(base)
        self._encoders = {k: v for k, v in parts.items() if k.startswith(family.text_parts) or not k}
        self._dtype = str(dtype)

    def key(self, text: str, size: Size, pictures: Shown | None = None) -> str:
        """The address of a caption's condition for a picture of `size` (width, height).

        Families that read the source with the caption must be told what is shown.
        """
        sized: dict[str, Any] = {"size": size} if self.family.sized else {}
        if self.family.reads and pictures is not None:
            sized |= {"shown": pictures.key}
        made = {"encoders": self._encoders, "dtype": self._dtype, "family": self.family.name}
        return cache.key(caption=text, kind="text-1", **made, **sized)

    def missing(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """The captions with their sizes that have no sound entry, each entry once."""
        by_key = {self.key(*pair): pair for pair in wanted}
        return [pair for key, pair in by_key.items() if self._store.get(key) is None]

    def fill(self, wanted: Sequence[Wanted], pipe: Any, *, quiet: bool = False) -> None:
        """Encode and store captions."""
        for pair in track(wanted, "captions", len(wanted), quiet=quiet):
            text, size, *rest = pair
            shown = rest[0].read() if rest and rest[0] and self.family.reads else None
            made = self.family.encode(pipe, [text], size, shown)[0]
            self._store.put(self.key(*pair), made, f"caption {text[:80]!r}")

    def get(self, text: str, size: Size, pictures: Shown | None = None) -> Cond:
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
        self._store = cache.Cache("latents", cache_folder)
        self._vae = bases.part_hashes(base).get("vae", "")

    def key(self, item: Item) -> str:
        """The address of an image's latent."""
        made: dict[str, Any] = {"vae": self._vae, "kind": "mean-2"}
        made |= {"settings": self._settings} if self._settings else {}
        made |= {"frames": item.frames} if item.frames else {}
        if self._hide and item.record.mask is not None:
            made["hidden"] = masking.content(self.folder, item.record)
        return cache.key(pixels=item.record.pixels, crop=item.crop, size=item.size, **made)

    def missing(self, items: Sequence[Item]) -> list[Item]:
        """The images that have no sound entry."""
        return [item for item in items if self._store.get(self.key(item)) is None]

    def fill(self, items: Sequence[Item], pipe: Any, *, quiet: bool = False) -> None:
        """Encode and store images; the posterior's mean, in the denoiser's units."""
        for item in track(items, "latents", len(items), quiet=quiet):
            pixels = self._pixels(item)[None].float() / 127.5 - 1
            with torch.no_grad():
                mean, _ = vae.encode(pipe.vae, pixels.to(pipe.vae.device, pipe.vae.dtype))
            self._store.put(self.key(item), {"latent": mean[0].float()}, item.record.file)

    def _pixels(self, item: Item) -> torch.Tensor:
        """uint8 (3, H, W), or (3, F, H, W) for bases that make clips."""
        record, box, size = item.record, item.crop, item.size
        if record.clip and item.frames:
            return resample.film(self.folder, record, box, size, item.frames)
        read = masking.hidden if self._hide else resample.picture
        picture = read(self.folder, record, box, size)
        return picture[:, None] if item.frames else picture

    def __getitem__(self, item: Item) -> torch.Tensor:
        return self._store.need(self.key(item))["latent"]


class PictureCache:
    """What the network is told of the pictures that images come with, addressed by their content."""

    def __init__(self, family: Family, folder: Path, base: Path, cache_folder: Path | None = None) -> None:
        self.family, self.folder = family, folder
        self._store = cache.Cache("pictures", cache_folder)
        self._made = {"vae": bases.part_hashes(base).get("vae", ""), "family": family.name, "kind": "mean-1"}

    def shown(self, item: Item) -> Shown:
        """The pictures that an item comes with; none in most families."""
        return of_record(self.family, self.folder, item.record, item.crop, item.size)

    def _key(self, item: Item) -> str:
        return cache.key(shown=self.shown(item).key, **self._made)

    def missing(self, items: Sequence[Item]) -> list[Item]:
        """The items with pictures that have no sound entry."""
        return [i for i in items if self.shown(i).count and self._store.get(self._key(i)) is None]

    def fill(self, items: Sequence[Item], pipe: Any, *, quiet: bool = False) -> None:
        """Encode and store the items' pictures."""
        for item in track(items, "pictures", len(items), quiet=quiet):
            made = self.family.condition(pipe, self.shown(item).read())
            made = {name: value.float() for name, value in made.items()}
            self._store.put(self._key(item), made, item.record.file)

    def __getitem__(self, item: Item) -> Cond:
        return self._store.need(self._key(item)) if self.shown(item).count else {}


Texts = TextCache | LiveText


class TrainingSet:
    """Images and captions by index, as tensors."""

    def __init__(
        self,
        items: Sequence[Item],
        latents: LatentCache,
        text: Texts,
        pictures: PictureCache | None = None,
        masks: masking.MaskCache | None = None,
    ) -> None:
        self.items = [item for item in items for _ in range(item.record.repeats)]
        self._latents, self._text, self._pictures, self._masks = latents, text, pictures, masks
        # images with more pictures make longer sequences, and no batch holds both
        counts = [pictures.shown(item).count if pictures else 0 for item in self.items]
        self.shapes = [(*item.shape, 1 + count) for item, count in zip(self.items, counts, strict=True)]
        self.captions = [len(item.record.captions) for item in self.items]

    def caption(self, slot: Slot) -> str:
        """The caption that a slot is shown with."""
        return "" if slot.caption == EMPTY else self.items[slot.image].record.captions[slot.caption].text

    def batch(self, slots: Sequence[Slot], device: torch.device, change: Change | None = None) -> Batch:
        """The latents, conditions and masks of slots that share one shape; `change` is made to captions."""
        items = [self.items[slot.image] for slot in slots]
        latents = torch.stack([self._latents[item] for item in items])
        texts = [change(self.caption(slot)) if change else self.caption(slot) for slot in slots]
        cond = self._text.family.collate([self._cond(*pair) for pair in zip(items, texts, strict=True)])
        mask = torch.stack([self._masks.get(item) for item in items]).to(device) if self._masks else None
        return Batch(latents.to(device), {name: tensor.to(device) for name, tensor in cond.items()}, mask)

    def _cond(self, item: Item, text: str) -> Cond:
        """What one image is predicted from: its caption, and the pictures it comes with."""
        if self._pictures is None:
            return self._text.get(text, item.size)
        seen = [self._pictures.shown(item)] if self._text.family.reads else []
        return self._text.get(text, item.size, *seen) | self._pictures[item]
