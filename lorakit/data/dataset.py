"""The training set: items with their latents, text embeddings, conditioning images and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lorakit.adapters.text_encoders import UncachedTextEncoder
from lorakit.data.batch_sampler import EMPTY_CAPTION, SampleIndex
from lorakit.data.caches import ConditioningCache, LatentCache, TextCache
from lorakit.data.items import DatasetItem
from lorakit.data.mask_cache import MaskCache
from lorakit.models.families.family import Conditioning

CaptionTransform = Callable[[str], str]


@dataclass(frozen=True)
class Batch:
    """`latents` (B, C, H, W), of clips (B, C, F, H, W), the collated text condition, and the masks
    (B, 1, H, W) where they count."""

    latents: torch.Tensor
    cond: Conditioning
    mask: torch.Tensor | None = None


TextSource = TextCache | UncachedTextEncoder


class TrainingSet:
    """Images and captions by index, as tensors."""

    def __init__(
        self,
        items: Sequence[DatasetItem],
        latents: LatentCache,
        text: TextSource,
        pictures: ConditioningCache | None = None,
        masks: MaskCache | None = None,
    ) -> None:
        self.items = [item for item in items for _ in range(item.record.repeats)]
        self._latents, self._text, self._pictures, self._masks = latents, text, pictures, masks
        # images with more pictures make longer sequences, and no batch holds both
        counts = [pictures.shown(item).count if pictures else 0 for item in self.items]
        self.shapes = [(*item.shape, 1 + count) for item, count in zip(self.items, counts, strict=True)]
        self.captions = [len(item.record.captions) for item in self.items]

    def caption(self, slot: SampleIndex) -> str:
        """The caption that a slot is shown with."""
        return (
            "" if slot.caption == EMPTY_CAPTION else self.items[slot.image].record.captions[slot.caption].text
        )

    def batch(
        self, slots: Sequence[SampleIndex], device: torch.device, change: CaptionTransform | None = None
    ) -> Batch:
        """The latents, conditions and masks of slots that share one shape; `change` is made to captions."""
        items = [self.items[slot.image] for slot in slots]
        latents = torch.stack([self._latents[item] for item in items])
        texts = [change(self.caption(slot)) if change else self.caption(slot) for slot in slots]
        cond = self._text.family.collate([self._cond(*pair) for pair in zip(items, texts, strict=True)])
        mask = torch.stack([self._masks.get(item) for item in items]).to(device) if self._masks else None
        return Batch(latents.to(device), {name: tensor.to(device) for name, tensor in cond.items()}, mask)

    def _cond(self, item: DatasetItem, text: str) -> Conditioning:
        """What one image is predicted from: its caption, and the pictures it comes with."""
        if self._pictures is None:
            return self._text.get(text, item.size)
        seen = [self._pictures.shown(item)] if self._text.family.reads else []
        return self._text.get(text, item.size, *seen) | self._pictures[item]
