"""What a run reads again and again and computes once: captions, latents, pictures beside them, masks."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from lorakit.adapters import text_encoders
from lorakit.config.recipe import Recipe
from lorakit.data import caches, conditioning, dataset, mask_cache, prompts
from lorakit.data.items import DatasetItem
from lorakit.models import loading
from lorakit.sampling import generate
from lorakit.training import regularization
from lorakit.training.run_plan import LogFn, TrainingPlan


class TrainingCaches:
    """The caches of one run, filled one part of the base after the other."""

    def __init__(self, recipe: Recipe, plan: TrainingPlan, device: torch.device, say: LogFn) -> None:
        self.recipe, self.plan, self.device, self.say = recipe, plan, device, say
        self.text_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        family, base, mask = plan.family, plan.base, recipe.objective.mask
        self.text = caches.TextCache(family, base, self.text_dtype)
        settings, hide = family.vae_settings, mask is not None and mask.hide
        self.latents = caches.LatentCache(recipe.dataset, base, settings=settings, hide=hide)
        self.pictures = caches.ConditioningCache(family, recipe.dataset, base)
        self.masks = mask_cache.MaskCache(recipe.dataset, plan.grids) if mask else None
        others = recipe.class_images or recipe.dataset
        self.class_latents = caches.LatentCache(others, base, settings=settings)
        self.class_pictures = caches.ConditioningCache(family, others, base)

    def fill(self) -> None:
        """Compute what is missing."""
        plan, mask = self.plan, self.recipe.objective.mask
        if not text_encoders.trains_text(self.recipe):
            self._fill_text()
        for items, latents, pictures in (
            (plan.items, self.latents, self.pictures),
            (plan.class_items, self.class_latents, self.class_pictures),
        ):
            self._fill_pixels(items, latents, pictures)
        if mask and self.masks:
            self.masks.fill(plan.items, empty=mask.outside + mask.prior > 0)

    def images(self, items: Sequence[DatasetItem], text: dataset.TextSource) -> dataset.TrainingSet:
        """Some of the dataset's images, ready to train on."""
        return dataset.TrainingSet(items, self.latents, text, self.pictures, self.masks)

    def class_images(self, text: dataset.TextSource) -> dataset.TrainingSet | None:
        """The images of the class, if there are any."""
        items = self.plan.class_items
        return dataset.TrainingSet(items, self.class_latents, text, self.class_pictures) if items else None

    def encoded(self) -> generate.EncodedPrompts:
        """The conditions of the prompts to sample."""
        wanted = self.plan.prompts
        asked = [self._asked(prompt, prompt.prompt) for prompt in wanted]
        positive = [{**self.text.get(*one), **one[2].read()} for one in asked]
        negative = [self.text.get(*self._asked(prompt, prompt.negative or "")) for prompt in wanted]
        return generate.EncodedPrompts(wanted, positive, negative)

    def _fill_text(self) -> None:
        """Encode the captions, the prompts, and what else training meets."""
        plan = self.plan
        wanted: list[caches.Wanted] = []
        for items, pictures in ((plan.items, self.pictures), (plan.class_items, self.class_pictures)):
            pairs = [(caption.text, item) for item in items for caption in item.record.captions]
            pairs += regularization.extra_captions(self.recipe, items)
            wanted += [(caption, item.size, pictures.shown(item)) for caption, item in pairs]
        for prompt in plan.prompts:
            wanted += [self._asked(prompt, prompt.prompt), self._asked(prompt, prompt.negative or "")]
        if missing := self.text.missing(wanted):
            loading.run_with_text_encoders(
                plan.family,
                plan.base,
                functools.partial(self.text.fill, missing),
                dtype=self.text_dtype,
                device=self.device,
                say=self.say,
            )

    def _asked(self, prompt: prompts.Prompt, text: str) -> caches.Wanted:
        """A prompt's text, or that of its negative, for the pictures that are sampled."""
        size = (self.plan.resolution, self.plan.resolution)
        return text, size, conditioning.prompt_conditioning(self.plan.family, prompt, size)

    def _fill_pixels(
        self,
        items: Sequence[DatasetItem],
        latents: caches.LatentCache,
        pictures: caches.ConditioningCache,
    ) -> None:
        missing, unseen = latents.missing(items), pictures.missing(items)
        if missing or unseen:
            family, base = self.plan.family, self.plan.base
            pipe = family.load(base, dtype=torch.float32, device=self.device, only={"vae"})
            if missing:
                latents.fill(missing, pipe)
            if unseen:
                pictures.fill(unseen, pipe)
            del pipe
            loading.free_memory(self.device)
