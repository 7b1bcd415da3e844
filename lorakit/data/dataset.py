"""The training set: items with their latents, text embeddings, conditioning latents and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lorakit.adapters.text_encoders import UncachedTextEncoder
from lorakit.data.batch_sampler import EMPTY_CAPTION, BatchShape, SampleIndex
from lorakit.data.caches import ConditioningCache, LatentCache, TextCache
from lorakit.data.caption_choice import CaptionChoice, caption_as_written, caption_choice, vary_tags
from lorakit.data.items import DatasetItem
from lorakit.data.mask_cache import MaskCache
from lorakit.data.text_at_use import TextAtUse
from lorakit.models import device as devices
from lorakit.models.families.family import Conditioning

CaptionTransform = Callable[[str], str]
TextSource = TextCache | TextAtUse | UncachedTextEncoder


@dataclass(frozen=True)
class Batch:
    """Tensors of samples that share one shape."""

    latents: torch.Tensor  # (B, C, H, W), of videos (B, C, F, H, W)
    cond: Conditioning  # collated text embeddings and conditioning latents
    mask: torch.Tensor | None = None  # (B, 1, H, W) in [0, 1], where masks weigh the loss

    def move(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Return the batch with all tensors moved by a function."""
        cond = {name: move(tensor) for name, tensor in self.cond.items()}
        return Batch(move(self.latents), cond, None if self.mask is None else move(self.mask))


def item_choices(items: Sequence[DatasetItem]) -> list[CaptionChoice]:
    """Return the choices for the captions of each item."""
    return [
        caption_choice(item.record.captions, item.caption_use, item.record.content_hash) for item in items
    ]


def sample_caption(item: DatasetItem, sample: SampleIndex, kept_words: Sequence[str] = ()) -> str:
    """Return the caption of a sample of an item; tags with one of `kept_words` are never left out."""
    if sample.caption_index == EMPTY_CAPTION:
        return ""
    text = item.record.captions[sample.caption_index].text
    if sample.tag_seed is None:
        return caption_as_written(text, item.caption_use)
    return vary_tags(text, item.caption_use, sample.tag_seed, kept_words)


class TrainingSet:
    """Images and captions by index, as tensors.

    `batch_shapes` and `caption_choices` have one entry for each item, with repeats if `repeated`. Tags with
    one of `kept_words` are never left out of a caption.
    """

    def __init__(
        self,
        items: Sequence[DatasetItem],
        latents: LatentCache,
        text: TextSource,
        conditioning: ConditioningCache | None = None,
        masks: MaskCache | None = None,
        *,
        repeated: bool = True,
        kept_words: Sequence[str] = (),
    ) -> None:
        self.items = [item for item in items for _ in range(item.repeats if repeated else 1)]
        self._latents, self._text, self._conditioning, self._masks = latents, text, conditioning, masks
        # images with more conditioning images make longer sequences, and no batch holds both
        counts = [conditioning.conditioning_inputs(item).count if conditioning else 0 for item in self.items]
        self.batch_shapes: list[BatchShape] = [
            (*item.batch_shape, 1 + count) for item, count in zip(self.items, counts, strict=True)
        ]
        self.caption_choices = item_choices(self.items)
        self.kept_words = kept_words
        self.text_multiple = 1
        """Texts with a mask are padded to a multiple of this many tokens."""

    def caption(self, sample: SampleIndex) -> str:
        """Return the caption of a sample, with its order of tags."""
        return sample_caption(self.items[sample.image_index], sample, self.kept_words)

    @property
    def is_cached(self) -> bool:
        """True if all tensors come from caches, so that a thread may load them ahead."""
        return isinstance(self._text, TextCache)

    @property
    def kept_text_encoders(self) -> list[torch.nn.Module]:
        """Text encoders that stay in memory only to encode captions at their use."""
        return self._text.networks if isinstance(self._text, TextAtUse) else []

    def sample_as_written(self, position: int, image_index: int) -> SampleIndex:
        """Return a sample with the caption of an image that is used most, without any change."""
        return SampleIndex(position, image_index, self.caption_choices[image_index].main_index)

    def loss_weights(self, samples: Sequence[SampleIndex]) -> list[float] | None:
        """Return the loss weights of the samples' concepts; None if all are 1."""
        weights = [self.items[sample.image_index].concept.weight for sample in samples]
        return None if all(weight == 1 for weight in weights) else weights

    def batch(
        self,
        samples: Sequence[SampleIndex],
        device: torch.device,
        caption_transform: CaptionTransform | None = None,
    ) -> Batch:
        """Return the tensors of samples that share one shape; `caption_transform` changes their captions."""
        batch = self.load_batch(samples, caption_transform)
        return batch.move(lambda tensor: devices.copy_to(tensor, device))

    def load_batch(
        self, samples: Sequence[SampleIndex], caption_transform: CaptionTransform | None = None
    ) -> Batch:
        """Return the tensors of samples that share one shape in host memory, as `batch` copies them."""
        items = [self.items[sample.image_index] for sample in samples]
        latents = torch.stack([self._latents[item] for item in items])
        captions = [self.caption(sample) for sample in samples]
        if caption_transform:
            captions = [caption_transform(caption) for caption in captions]
        pairs = zip(items, captions, strict=True)
        conds = [self._item_conditioning(item, caption) for item, caption in pairs]
        cond = self._text.family.collate(conds, self.text_multiple)
        mask = torch.stack([self._masks.get(item) for item in items]) if self._masks else None
        return Batch(latents.float(), cond, mask)

    def _item_conditioning(self, item: DatasetItem, caption: str) -> Conditioning:
        """Return the text embeddings of one caption and the conditioning latents of one item."""
        if self._conditioning is None:
            return self._text.get(caption, item.bucket)
        inputs = None
        if self._text.family.conditioning.read_by_text_encoder:
            inputs = self._conditioning.conditioning_inputs(item)
        return self._text.get(caption, item.bucket, inputs) | self._conditioning[item]
