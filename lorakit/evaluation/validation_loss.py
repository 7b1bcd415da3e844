"""The loss of held-out images, at noise that is the same for every checkpoint; beside it that of images that
were trained on. The gap between them is what was learnt by heart."""

from __future__ import annotations

import functools
from typing import Any

import torch

from lorakit.adapters.text_encoders import UncachedTextEncoder
from lorakit.config.recipe import Recipe, SamplingConfig
from lorakit.core import rng
from lorakit.data import batch_sampler, caches
from lorakit.data.dataset import TrainingSet
from lorakit.sampling.pipeline import SamplingPipeline
from lorakit.training import run_plan, validation

MAX_VALIDATION_IMAGES = 32  # images of each kind


class ValidationLoss:
    """The images that a run held out, and as many that it trained on, ready for any checkpoint."""

    def __init__(self, made: Recipe, painter: SamplingPipeline) -> None:
        self.painter, self.seed = painter, made.train.seed
        only_data: dict[str, Any] = {
            "init_from": None,
            "class_images": None,
            "samples": SamplingConfig(),
            "export": [],
        }
        plan = run_plan.plan_training(made.model_copy(update=only_data), lambda text: None)
        held, trained = run_plan.split_held_out(plan.items, made)
        trained = sorted(trained, key=lambda i: rng.derive_seed(self.seed, "trained sample", i.record.pixels))
        parts = {
            "held out": held[:MAX_VALIDATION_IMAGES],
            "trained on": trained[: min(len(held), MAX_VALIDATION_IMAGES)],
        }
        cached = caches.TextCache(plan.family, plan.base, painter.dtype)
        text = UncachedTextEncoder(painter.family, painter.pipe) if painter.speaks_otherwise else cached
        # whole pictures: what lies outside a mask is held out too
        latents = caches.LatentCache(made.dataset, plan.base, settings=plan.family.vae_settings)
        pictures = caches.ConditioningCache(plan.family, made.dataset, plan.base)
        self.sets: dict[str, TrainingSet] = {}
        for name, items in parts.items():
            latents.fill(latents.missing(items), painter.pipe)
            if unseen := pictures.missing(items):
                pictures.fill(unseen, painter.pipe)
            captions = [
                (c.text, item.size, pictures.shown(item)) for item in items for c in item.record.captions
            ]
            if text is cached and (unknown := cached.missing(captions)):
                painter.with_text(functools.partial(cached.fill, unknown))
            self.sets[name] = TrainingSet(items, latents, text, pictures)
        self.objective = run_plan.build_objective(made, plan.family, painter.pipe)

    @property
    def empty(self) -> bool:
        """Whether the run held nothing out."""
        return not self.sets["held out"].items

    @torch.no_grad()
    def losses(self) -> dict[str, list[float]]:
        """The mean loss of each image of each kind, by the adapter that is loaded now."""
        return {
            name: [self._loss(images, index) for index in range(len(images.items))]
            for name, images in self.sets.items()
        }

    def _loss(self, images: TrainingSet, index: int) -> float:
        """One image at a noise level in each quarter, the same as during training."""
        painter, parts = self.painter, validation.NOISE_LEVELS_PER_IMAGE
        slots = [batch_sampler.SampleIndex(index * parts + part, index, 0) for part in range(parts)]
        batch = images.batch(slots, painter.device)
        shape = tuple(batch.latents.shape[1:])
        noise = torch.stack(
            [rng.keyed_normal(shape, self.seed, "validation", slot.position) for slot in slots]
        )
        times = [
            (part + rng.keyed_uniform(0, "validation time", slot.position)) / parts
            for part, slot in enumerate(slots)
        ]
        u = torch.tensor(times, dtype=torch.float32, device=painter.device)
        noisy, t, target = self.objective.noise(batch.latents, noise.to(painter.device), u)
        dtype = painter.dtype
        cond = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.cond.items()}
        prediction = painter.family.predict(painter.denoiser, noisy.to(dtype), t, cond)
        return float(self.objective.loss(prediction, target, t).mean())
