"""The loss of a step: noise on the latents, the denoiser's prediction, the objective's loss.

`DenoisingLoss` is the one definition of it: training, the validation loss and the evaluation use the same.
`RegularizationLosses` are two terms that preserve what the base model knows: class images (DreamBooth's prior
preservation, arXiv:2208.12242), and predictions for captions without the trigger held at those of the base
model (differential output preservation).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorakit import adapters
from lorakit.adapters import text_encoders
from lorakit.config.recipe import Recipe
from lorakit.core import rng
from lorakit.data import batch_sampler
from lorakit.data.batch_sampler import SampleIndex
from lorakit.data.dataset import CaptionTransform, TrainingSet
from lorakit.models.acceleration.cuda_graphs import Network
from lorakit.models.families.family import Conditioning, Family
from lorakit.training import regularization
from lorakit.training.objective import Objective
from lorakit.training.prefetch import BatchRequest, LoadedBatch, Prefetcher

OFFSET_PURPOSES = ("noise", "class noise")
"""Purposes of noise that take the noise offset; validation and the sanity check measure without it."""
LossFn = Callable[[list[SampleIndex], list[float]], torch.Tensor]
"""Losses (B,) of samples of one shape at uniform numbers (B,) in [0, 1)."""


@dataclass(frozen=True)
class LossTerm:
    """One term of a step's loss: `weight` times the mean of `loss_fn` over `samples` of `data`.

    `noise_purpose` keys the noise, `timestep_purpose` the uniform numbers from which the timesteps come.
    `transform` changes captions.
    """

    data: TrainingSet
    samples: Sequence[SampleIndex]
    loss_fn: LossFn
    timestep_purpose: str
    weight: float
    noise_purpose: str = "noise"
    transform: CaptionTransform | None = None


@dataclass(frozen=True)
class NoisedBatch:
    """The denoiser's inputs and its target: latents and noise (B, C, ..., H, W), timesteps (B,)."""

    latents: torch.Tensor
    noise: torch.Tensor
    noisy_latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    cond: Conditioning
    mask: torch.Tensor | None  # (B, 1, H, W) in [0, 1]
    reencode_text: Callable[[], Conditioning]
    """Compute `cond` again, with text encoders whose adapters may have been switched off since."""


class DenoisingLoss:
    """The loss of a base model with adapters, loaded in `pipe`."""

    def __init__(
        self, recipe: Recipe, family: Family, pipe: Any, objective: Objective, device: torch.device
    ) -> None:
        self.recipe, self.family, self.objective, self.device = recipe, family, objective, device
        denoiser: Any = family.denoiser(pipe)
        self.denoiser = denoiser
        self.network: Network = functools.partial(family.predict, denoiser)
        """(noisy latents, timesteps, conditioning) -> prediction; replaced where passes are recorded."""
        self.networks = text_encoders.adaptable_networks(family, pipe)
        self.trains_text = text_encoders.trains_text(recipe)
        # not that of any one weight, for some stay in float32; read once, as it walks through all modules
        self.dtype: torch.dtype = denoiser.dtype
        self.prefetcher = Prefetcher(self.load, device)

    def __call__(
        self, data: TrainingSet, samples: Sequence[SampleIndex], purpose: str, uniforms: Sequence[float]
    ) -> torch.Tensor:
        """Losses (B,) of samples that share one shape; `uniforms` (B,) in [0, 1) give the timesteps.

        `purpose` keys the noise: "noise" for training, another word for noise that must differ from it.
        """
        settings = self.recipe.objective.masked_loss
        batch = self.add_noise(data, samples, purpose, uniforms)
        if settings is None or batch.mask is None:
            return self.objective.loss(self.predict(batch), batch.target, batch.timesteps)
        preserve = settings.output_preservation and purpose == "noise"
        base_prediction = self.predict_without_adapter(batch) if preserve else None
        prediction = self.predict(batch)
        weights = batch.mask + settings.unmasked_weight * (1 - batch.mask)
        loss = self.objective.loss(prediction, batch.target, batch.timesteps, weights)
        if base_prediction is not None:
            unmasked = self.objective.loss(prediction, base_prediction, batch.timesteps, 1 - batch.mask)
            loss = loss + settings.output_preservation * unmasked
        return loss

    def add_noise(
        self,
        data: TrainingSet,
        samples: Sequence[SampleIndex],
        purpose: str,
        uniforms: Sequence[float],
        transform: CaptionTransform | None = None,
    ) -> NoisedBatch:
        """Load samples that share one shape and add noise to their latents; `transform` changes captions."""
        request = BatchRequest.of(data, samples, purpose, uniforms, transform)
        loaded = self.prefetcher.take(request).copy_to(self.device)
        batch = loaded.batch
        noised = self.objective.mix(batch.latents, loaded.noise, loaded.levels)
        return NoisedBatch(
            latents=batch.latents,
            noise=loaded.noise,
            noisy_latents=noised.noisy_latents,
            timesteps=noised.timesteps,
            target=noised.target,
            cond=batch.cond,
            mask=batch.mask,
            reencode_text=lambda: data.batch(samples, self.device, transform).cond,
        )

    def load(self, request: BatchRequest) -> LoadedBatch:
        """Load samples, their noise and noise levels into host memory; a thread may do it."""
        batch = request.data.load_batch(request.samples, request.transform)
        noise = self._noise(tuple(batch.latents.shape[1:]), request.samples, request.purpose)
        u = torch.tensor(request.uniforms, dtype=torch.float32)
        return LoadedBatch(batch, noise, self.objective.sample_levels(u, batch.latents.shape))

    def _noise(self, shape: tuple[int, ...], samples: Sequence[SampleIndex], purpose: str) -> torch.Tensor:
        """Noise (B, *shape), keyed by position; in training with the recipe's offset of each channel."""
        seed, offset = self.recipe.train.seed, self.recipe.objective.noise_offset
        noise = torch.stack([rng.keyed_normal(shape, seed, purpose, s.position) for s in samples])
        if offset and purpose in OFFSET_PURPOSES:
            per_channel = (shape[0], *[1] * (len(shape) - 1))
            offsets = [rng.keyed_normal(per_channel, seed, f"{purpose} offset", s.position) for s in samples]
            noise = noise + offset * torch.stack(offsets)
        return noise

    def predict_without_adapter(self, batch: NoisedBatch) -> torch.Tensor:
        """The base model's prediction, without gradient."""
        with torch.no_grad(), adapters.adapters_disabled(*self.networks.values()):
            return self.predict(replace(batch, cond=batch.reencode_text()) if self.trains_text else batch)

    def predict(self, batch: NoisedBatch) -> torch.Tensor:
        """The denoiser's prediction, of the latents' shape."""
        cond = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in batch.cond.items()}
        return self.network(batch.noisy_latents.to(self.dtype), batch.timesteps, cond)


class RegularizationLosses:
    """The terms of a step's loss besides its samples' own: class images and output preservation."""

    def __init__(
        self, loss: DenoisingLoss, train_set: TrainingSet, class_image_set: TrainingSet | None
    ) -> None:
        self.loss, self.train_set, self.class_image_set = loss, train_set, class_image_set
        self.class_image_seed = regularization.class_image_seed(loss.recipe.train.seed)

    def terms(self, samples: Sequence[SampleIndex]) -> list[LossTerm]:
        """The terms that the recipe asks for beside these samples."""
        recipe, settings = self.loss.recipe, self.loss.recipe.objective
        terms = []
        if (data := self.class_image_set) is not None:
            class_samples = [
                batch_sampler.sample_at(s.position, data.caption_choices, self.class_image_seed)
                for s in samples
            ]
            weight = settings.prior_loss_weight
            terms.append(
                LossTerm(
                    data, class_samples, self._prior_preservation_loss, "class time", weight, "class noise"
                )
            )
        if weight := settings.output_preservation:
            with_trigger = [
                s for s in samples if regularization.replace_trigger(recipe, self.train_set.caption(s))
            ]
            loss_fn = self._output_preservation_loss
            terms.append(
                LossTerm(self.train_set, with_trigger, loss_fn, "time", weight, transform=self._no_trigger)
            )
        return terms

    def _no_trigger(self, caption: str) -> str:
        return regularization.replace_trigger(self.loss.recipe, caption) or caption

    def _prior_preservation_loss(self, samples: list[SampleIndex], uniforms: list[float]) -> torch.Tensor:
        assert self.class_image_set is not None
        return self.loss(self.class_image_set, samples, "class noise", uniforms)

    def _output_preservation_loss(self, samples: list[SampleIndex], uniforms: list[float]) -> torch.Tensor:
        """Losses (B,) of predictions for captions without the trigger, against those of the base model."""
        batch = self.loss.add_noise(self.train_set, samples, "noise", uniforms, self._no_trigger)
        base_prediction = self.loss.predict_without_adapter(batch)
        return self.loss.objective.loss(self.loss.predict(batch), base_prediction, batch.timesteps)
