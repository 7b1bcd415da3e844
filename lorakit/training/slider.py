"""Concept sliders: an adapter whose strength moves an image between two opposite prompts, without any data.

The target is the base model's own prediction, moved along the difference of its predictions for the two
prompts: base(caption) + guidance_scale * (base(positive) - base(negative)). arXiv:2311.12092, equation 7.
There the noisy images come from denoising halfway; here the base model samples some images first, and noise
is added to these: they can be looked at, and are a dataset like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lorakit import manifest
from lorakit.config.recipe import Recipe, SliderConfig
from lorakit.core import checksums, storage
from lorakit.core.errors import ConfigError
from lorakit.data.batch_sampler import SampleIndex
from lorakit.data.dataset import TrainingSet
from lorakit.data.prompts import Prompt
from lorakit.imaging import decode
from lorakit.models import base_model
from lorakit.models.families.family import Family
from lorakit.sampling import pipeline
from lorakit.training.losses import DenoisingLoss, NoisedBatch
from lorakit.training.objective import Objective

SLIDER_FILE = "slider.json"  # written first: a folder that has it holds nothing of the user's


class SliderLoss(DenoisingLoss):
    """The loss of a slider's adapter, at the same noise and timesteps as any other loss."""

    def __call__(
        self, data: TrainingSet, samples: Sequence[SampleIndex], purpose: str, uniforms: Sequence[float]
    ) -> torch.Tensor:
        """Losses (B,) of samples that share one shape."""
        settings = self.recipe.slider
        assert settings is not None
        batch = self.add_noise(data, samples, purpose, uniforms)

        def with_prompt(prompt: str) -> NoisedBatch:
            return replace(batch, cond=data.batch(samples, self.device, lambda _: prompt).cond)

        positive, negative = (self.predict_without_adapter(with_prompt(p)).float() for p in settings.prompts)
        base_prediction = self.predict_without_adapter(batch).float()
        target = base_prediction + settings.guidance_scale * (positive - negative)
        return self.objective.loss(self.predict(batch), target, batch.timesteps)


def build_loss(
    recipe: Recipe, family: Family, pipe: Any, objective: Objective, device: torch.device
) -> DenoisingLoss:
    """The loss that a recipe asks for, of a base model with adapters that is loaded in `pipe`."""
    loss_class = SliderLoss if recipe.slider else DenoisingLoss
    return loss_class(recipe, family, pipe, objective, device)


def generate_slider_images(recipe: Recipe) -> Path | None:
    """Let the base model sample the images that a slider without a dataset trains on, once.

    Returns their folder, or None where there is nothing to sample: a folder with images of the user's own is
    a dataset like any other and is not changed. Raises ConfigError for images sampled for another slider.
    """
    settings, folder = recipe.slider, recipe.concepts[0].folder
    if settings is None:
        return None
    record = {
        "base": base_model.base_hash(base_model.resolve_base(recipe.base)),
        "resolution": recipe.resolution,
        "target_prompt": settings.target_prompt,
        "num_images": settings.num_images,
        "num_inference_steps": recipe.samples.num_inference_steps,
        "guidance_scale": recipe.samples.guidance_scale,
    }
    if not (folder / SLIDER_FILE).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            return None
        storage.write_json(folder / SLIDER_FILE, record)
    if storage.read_json(folder / SLIDER_FILE) != record:
        raise ConfigError(
            "these images were sampled for another slider",
            where=f"dataset: {folder}",
            remedy="choose another `out`, or undo the change of target prompt, base, resolution or samples",
        )
    if (folder / manifest.MANIFEST_FILE).is_file():
        return None
    _generate_images(recipe, settings, folder)
    return folder


def _generate_images(recipe: Recipe, settings: SliderConfig, folder: Path) -> None:
    prompt = Prompt(
        id="target",  # keys the noise of the samples
        prompt=settings.target_prompt,
        score_text=settings.target_prompt,
        seeds=tuple(range(settings.num_images)),
    )
    options = pipeline.SamplingOptions(
        num_inference_steps=recipe.samples.num_inference_steps,
        guidance_scale=recipe.samples.guidance_scale,
        size=(recipe.resolution, recipe.resolution),
    )
    records = []
    for sample in pipeline.SamplingPipeline(recipe.base).sample([prompt], options, "slider images"):
        file = storage.save_image(folder / f"{sample.seed:04d}.png", sample.image)
        records.append(
            manifest.Record(
                file=file.name,
                sha256=checksums.sha256_file(file),
                content_hash=decode.pixel_hash(sample.image),
                width=sample.image.width,
                height=sample.image.height,
                captions=(manifest.Caption(settings.target_prompt, "base"),),
            )
        )
    manifest.save_manifest(folder, records)  # last: if it is there, the images are complete
