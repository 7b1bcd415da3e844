"""The caches of a run, filled before training and, where entries are missing, before its evaluation: text
embeddings, latents, conditioning images, masks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorakit.adapters import text_encoders
from lorakit.config.recipe import Recipe
from lorakit.data import caches, conditioning, mask_cache, prompts
from lorakit.data.dataset import TextSource, TrainingSet
from lorakit.data.items import DatasetItem
from lorakit.data.text_at_use import TextAtUse
from lorakit.models import device as devices
from lorakit.models import loading
from lorakit.models.families.family import Conditioning, Family
from lorakit.models.memory import format_bytes
from lorakit.models.truncated_texts import collect_truncations, truncation_summary
from lorakit.sampling import generate
from lorakit.training import regularization
from lorakit.training.caption_stream import CaptionStream
from lorakit.training.run_plan import DataPlan, LogFn

MAX_VARIED_BYTES = 8 << 30
"""Size of the embeddings of captions that change with each use, above which they are not cached."""
NUM_MEASURED_TEXTS = 8
"""Captions whose embeddings tell the size of all."""


class ImageCaches:
    """The latents and conditioning images of training items."""

    def __init__(
        self,
        family: Family,
        base_folder: Path,
        *,
        gray_unmasked: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.family, self.base_folder = family, base_folder
        vae_overrides = family.latents.vae_overrides
        self.latents = caches.LatentCache(
            base_folder, vae_overrides=vae_overrides, gray_unmasked=gray_unmasked, dtype=dtype
        )
        self.conditioning = caches.ConditioningCache(family, base_folder)

    def fill(self, items: Sequence[DatasetItem], device: torch.device) -> None:
        """Encode missing images with the autoencoder, in float32, which is loaded only for this."""
        latents, conditioned = self.latents.missing(items), self.conditioning.missing(items)
        if not latents and not conditioned:
            return
        needed = loading.conditioning_components(self.family, self.base_folder) if conditioned else {"vae"}
        pipe = self.family.load(self.base_folder, dtype=torch.float32, device=device, only=needed)
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
    """The caches of one run, filled with one part of the base model in memory at a time.

    `stream` has the captions of a training that change with each use; an evaluation uses none of them.
    """

    def __init__(
        self,
        recipe: Recipe,
        plan: DataPlan,
        device: torch.device,
        log: LogFn,
        stream: CaptionStream | None = None,
    ) -> None:
        self.recipe, self.plan, self.device, self.log = recipe, plan, device, log
        self.stream = stream
        self._varied: list[caches.TextRequest] | None = None
        self._at_use = False
        self.text_dtype = devices.inference_dtype(device)
        family, base_folder, masked_loss = plan.family, plan.base_folder, recipe.objective.masked_loss
        self.text = caches.TextCache(family, base_folder, self.text_dtype)
        gray_unmasked = masked_loss is not None and masked_loss.gray_unmasked
        # the precision of a run decides its latents' too: float16 could overflow
        dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
        self.images = ImageCaches(family, base_folder, gray_unmasked=gray_unmasked, dtype=dtype)
        self.class_images = ImageCaches(family, base_folder, dtype=dtype)
        self.masks = mask_cache.MaskCache(plan.latent_sizes) if masked_loss else None

    def fill(
        self,
        items: Sequence[DatasetItem],
        class_items: Sequence[DatasetItem] = (),
        sample_prompts: Sequence[prompts.Prompt] = (),
        sampling_settings: generate.SamplingSettings | None = None,
    ) -> None:
        """Compute all entries that are missing for these images and prompts."""
        if not text_encoders.trains_text(self.recipe):
            self.fill_text(items, class_items, sample_prompts, sampling_settings)
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
        sampling_settings: generate.SamplingSettings | None = None,
    ) -> None:
        """Encode all captions and prompts that are missing, with the text encoders loaded only for this."""
        requests = self._caption_requests(items, self.images)
        requests += self._caption_requests(class_items, self.class_images)
        if sampling_settings:
            for prompt in sample_prompts:
                requests += self._prompt_requests(prompt, sampling_settings.for_prompt(prompt).size)
        for dtype in dict.fromkeys((self.text_dtype, torch.float32)):
            if not (self.text.missing(requests) or self.text.missing(self._varied_requests())):
                return
            overflowing = loading.run_with_text_encoders(
                self.plan.family,
                self.plan.base_folder,
                functools.partial(self._fill_missing_text, requests, dtype),
                dtype=dtype,
                device=self.device,
                log=self.log,
            )
            if overflowing:
                self.log(f"{len(overflowing)} texts overflow in half precision: encoded in float32")

    def _fill_missing_text(
        self, requests: Sequence[caches.TextRequest], dtype: torch.dtype, pipe: Any
    ) -> list[caches.TextRequest]:
        """Encode and store missing texts; returns those that overflow in `dtype`."""
        with collect_truncations() as ignored_words:
            overflowing = self.text.fill(self.text.missing(requests), pipe, dtype)
            varied = self.text.missing(self._varied_requests())
            overflowing += self.text.fill(varied, pipe, dtype)
        if summary := truncation_summary(ignored_words):
            self.log(f"warning: {summary}; `lorakit data check` names their images")
        return overflowing

    @property
    def encodes_at_use(self) -> bool:
        """True if captions are encoded when they are used, and the text encoders stay in memory for it.

        All processes decide alike, by the number of texts and the size of the captions that are encoded.
        """
        self._varied_requests()
        return self._at_use

    def _varied_requests(self) -> list[caches.TextRequest]:
        """The captions to encode that change with each use; none if they are encoded when they are used."""
        if self._varied is None and self.stream is not None:
            self._decide(self.stream)
        return self._varied or []

    def _decide(self, stream: CaptionStream) -> None:
        keep, size = self.recipe.memory_config.keep_text_encoders, self._embedding_bytes(stream.items)
        if size is None:  # no caption is encoded yet
            return
        limit = {None: MAX_VARIED_BYTES // size, True: 0, False: None}[keep]
        requests: dict[str, caches.TextRequest] = {}
        for one in stream.varied_captions():
            request = self.images.text_request(one.caption, one.item)
            requests[self.text.key(request)] = request
            if limit is not None and len(requests) > limit:
                self._varied, self._at_use = [], True
                self.log(
                    "captions: the text encoders stay in memory and encode tags at each use"
                    + ("" if keep else f": their texts would fill more than {format_bytes(MAX_VARIED_BYTES)}")
                )
                return
        self._varied = list(requests.values())
        if requests:
            count, filled = f"{len(requests):,}", format_bytes(len(requests) * size)
            self.log(f"captions: {count} texts with other tags or another order, {filled} in the cache")

    def _embedding_bytes(self, items: Sequence[DatasetItem]) -> int | None:
        """The mean size of the embeddings of some captions; None if none is in the cache."""
        requests = [self.images.text_request(regularization.used_captions(i)[0], i) for i in items]
        stored = [self.text.find(request) for request in requests[:NUM_MEASURED_TEXTS]]
        sizes = [sum(t.nbytes for t in tensors.values()) for tensors in stored if tensors is not None]
        return max(1, sum(sizes) // len(sizes)) if sizes else None

    def lacks_text(self, item: DatasetItem) -> bool:
        """Return True if a caption of an item is not in the cache."""
        return bool(self.text.missing(self._caption_requests([item], self.images)))

    def text_at_use(self) -> TextAtUse:
        """Load the text encoders, to encode texts that are not in the cache when they are used."""
        pipe = loading.load_text_encoders(
            self.plan.family,
            self.plan.base_folder,
            dtype=self.text_dtype,
            device=self.device,
            log=self.log,
        )
        return TextAtUse(self.text, pipe)

    def training_set(
        self, items: Sequence[DatasetItem], text: TextSource, *, repeated: bool = True
    ) -> TrainingSet:
        """Images of the run's dataset, ready to train on; to measure each once they are not `repeated`."""
        images = self.images
        return TrainingSet(
            items,
            images.latents,
            text,
            images.conditioning,
            self.masks,
            repeated=repeated,
            kept_words=regularization.kept_words(self.recipe),
        )

    def class_image_set(self, items: Sequence[DatasetItem], text: TextSource) -> TrainingSet | None:
        """The class images, ready to train on; None if there are none."""
        if not items:
            return None
        return TrainingSet(
            items,
            self.class_images.latents,
            text,
            self.class_images.conditioning,
            kept_words=regularization.kept_words(self.recipe),
        )

    def encoded_prompts(
        self, sample_prompts: Sequence[prompts.Prompt], settings: generate.SamplingSettings
    ) -> generate.EncodedPrompts:
        """The cached embeddings of the prompts to sample."""
        positive, negative = [], []
        for prompt in sample_prompts:
            request, negative_request = self._prompt_requests(prompt, settings.for_prompt(prompt).size)
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
        requests = [
            image_caches.text_request(text, item)
            for item in items
            for text in regularization.used_captions(item)
        ]
        extra = regularization.extra_captions(self.recipe, items)
        return requests + [image_caches.text_request(one.caption, one.item) for one in extra]

    def _prompt_requests(
        self, prompt: prompts.Prompt, size: tuple[int, int]
    ) -> tuple[caches.TextRequest, caches.TextRequest]:
        """The requests for a prompt's embeddings and its negative prompt's, for samples of a size."""
        images = conditioning.prompt_conditioning(self.plan.family, prompt, size)
        positive = caches.TextRequest(prompt.prompt, size, images)
        return positive, caches.TextRequest(prompt.negative or "", size, images)
