"""The caches of a run, filled before training and, where entries are missing, before its evaluation: text
embeddings, latents, conditioning images, masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lorakit.adapters import text_encoders
from lorakit.config.recipe import Recipe
from lorakit.data import caches, conditioning, mask_cache, prompts
from lorakit.data.dataset import TextSource, TrainingSet
from lorakit.data.items import DatasetItem
from lorakit.models import device as devices
from lorakit.models import loading
from lorakit.models.families.family import Conditioning, Family
from lorakit.sampling import generate
from lorakit.training import regularization
from lorakit.training.run_plan import DataPlan, LogFn


class ImageCaches:
    """The latents and conditioning images of training items."""

    def __init__(self, family: Family, base_folder: Path, *, gray_unmasked: bool = False) -> None:
        self.family, self.base_folder = family, base_folder
        vae_overrides = family.latents.vae_overrides
        self.latents = caches.LatentCache(
            base_folder, vae_overrides=vae_overrides, gray_unmasked=gray_unmasked
        )
        self.conditioning = caches.ConditioningCache(family, base_folder)

    def fill(self, items: Sequence[DatasetItem], device: torch.device) -> None:
        """Encode missing images with the autoencoder, in float32, which is loaded only for this."""
        latents, conditioned = self.latents.missing(items), self.conditioning.missing(items)
        if not latents and not conditioned:
            return
        pipe = self.family.load(self.base_folder, dtype=torch.float32, device=device, only={"vae"})
        if latents:
            self.latents.fill(latents, pipe)
        if conditioned:
            self.conditioning.fill(conditioned, pipe)
        del pipe
        loading.free_memory(device)

    def text_request(self, caption: str, item: DatasetItem) -> caches.TextRequest:
        """The request for a caption's embeddings with an image."""
        return caches.TextRequest(caption, item.bucket, self.conditioning.conditioning_inputs(item))


class RunCaches:
    """The caches of one run, filled with one part of the base model in memory at a time."""

    def __init__(self, recipe: Recipe, plan: DataPlan, device: torch.device, log: LogFn) -> None:
        self.recipe, self.plan, self.device, self.log = recipe, plan, device, log
        self.text_dtype = devices.inference_dtype(device)
        family, base_folder, masked_loss = plan.family, plan.base_folder, recipe.objective.masked_loss
        self.text = caches.TextCache(family, base_folder, self.text_dtype)
        gray_unmasked = masked_loss is not None and masked_loss.gray_unmasked
        self.images = ImageCaches(family, base_folder, gray_unmasked=gray_unmasked)
        self.class_images = ImageCaches(family, base_folder)
        self.masks = mask_cache.MaskCache(plan.latent_sizes) if masked_loss else None

    def fill(
        self,
        items: Sequence[DatasetItem],
        class_items: Sequence[DatasetItem] = (),
        sample_prompts: Sequence[prompts.Prompt] = (),
        sample_resolution: int = 0,
    ) -> None:
        """Compute all entries that are missing for these images and prompts."""
        if not text_encoders.trains_text(self.recipe):
            self.fill_text(items, class_items, sample_prompts, sample_resolution)
        self.images.fill(items, self.device)
        self.class_images.fill(class_items, self.device)
        if self.masks and (masked_loss := self.recipe.objective.masked_loss):
            outside_counts = masked_loss.unmasked_weight + masked_loss.output_preservation > 0
            self.masks.fill(items, allow_empty=outside_counts)

    def fill_text(
        self,
        items: Sequence[DatasetItem],
        class_items: Sequence[DatasetItem] = (),
        sample_prompts: Sequence[prompts.Prompt] = (),
        sample_resolution: int = 0,
    ) -> None:
        """Encode all captions and prompts that are missing, with the text encoders loaded only for this."""
        requests = self._caption_requests(items, self.images)
        requests += self._caption_requests(class_items, self.class_images)
        for prompt in sample_prompts:
            requests += self._prompt_requests(prompt, sample_resolution)
        missing = self.text.missing(requests)
        if missing and (overflowing := self._encode_text(missing, self.text_dtype)):
            self.log(f"{len(overflowing)} texts overflow in half precision: encoded in float32")
            self._encode_text(overflowing, torch.float32)

    def _encode_text(
        self, requests: Sequence[caches.TextRequest], dtype: torch.dtype
    ) -> list[caches.TextRequest]:
        """Encode and store texts; returns those that overflow in `dtype`."""
        return loading.run_with_text_encoders(
            self.plan.family,
            self.plan.base_folder,
            lambda pipe: self.text.fill(requests, pipe, dtype),
            dtype=dtype,
            device=self.device,
            log=self.log,
        )

    def training_set(
        self, items: Sequence[DatasetItem], text: TextSource, *, repeated: bool = True
    ) -> TrainingSet:
        """Images of the run's dataset, ready to train on; to measure each once they are not `repeated`."""
        images = self.images
        return TrainingSet(items, images.latents, text, images.conditioning, self.masks, repeated=repeated)

    def class_image_set(self, items: Sequence[DatasetItem], text: TextSource) -> TrainingSet | None:
        """The class images, ready to train on; None if there are none."""
        if not items:
            return None
        return TrainingSet(items, self.class_images.latents, text, self.class_images.conditioning)

    def encoded_prompts(
        self, sample_prompts: Sequence[prompts.Prompt], resolution: int
    ) -> generate.EncodedPrompts:
        """The cached embeddings of the prompts to sample."""
        positive, negative = [], []
        for prompt in sample_prompts:
            request, negative_request = self._prompt_requests(prompt, resolution)
            images = request.conditioning.load_tensors() if request.conditioning else {}
            positive.append({**self._embeddings(request), **images})
            negative.append(self._embeddings(negative_request))
        return generate.EncodedPrompts(list(sample_prompts), positive, negative)

    def _embeddings(self, request: caches.TextRequest) -> Conditioning:
        return self.text.get(request.caption, request.size, request.conditioning)

    def _caption_requests(
        self, items: Sequence[DatasetItem], image_caches: ImageCaches
    ) -> list[caches.TextRequest]:
        """The captions of images, and those that the objective adds."""
        requests = [image_caches.text_request(c.text, item) for item in items for c in item.record.captions]
        extra = regularization.extra_captions(self.recipe, items)
        return requests + [image_caches.text_request(one.caption, one.item) for one in extra]

    def _prompt_requests(
        self, prompt: prompts.Prompt, resolution: int
    ) -> tuple[caches.TextRequest, caches.TextRequest]:
        """The requests for a prompt's embeddings and its negative prompt's, for square samples."""
        size = (resolution, resolution)
        images = conditioning.prompt_conditioning(self.plan.family, prompt, size)
        positive = caches.TextRequest(prompt.prompt, size, images)
        return positive, caches.TextRequest(prompt.negative or "", size, images)
