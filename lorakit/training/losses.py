"""What images cost: noise keyed by position, the model's prediction, the objective's loss.

Besides the pictures' own loss, two that keep what the base knows: images of the class (DreamBooth's prior
preservation, arXiv:2208.12242), and predictions for captions without the trigger held at those of the base
without the adapter (differential output preservation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator

from lorakit import adapters
from lorakit.adapters import text_encoders
from lorakit.core import rng
from lorakit.data import batch_sampler
from lorakit.data.batch_sampler import SampleIndex
from lorakit.data.dataset import CaptionTransform
from lorakit.training import regularization
from lorakit.training.setup import Session

OFFSET_PURPOSES = ("noise", "class noise")
"""Purposes of noise that take the noise offset; looks and the probe measure without it."""
LossFn = Callable[[list[SampleIndex], list[float]], torch.Tensor]


@dataclass(frozen=True)
class LossTerm:
    """A share of a step's loss: `cost` gives losses (B,) of slots of one shape at uniform numbers that are
    keyed by `clock`."""

    data: Any
    slots: Sequence[SampleIndex]
    cost: LossFn
    clock: str
    weight: float


@dataclass(frozen=True)
class NoisedBatch:
    """What the network is shown, `noisy` at `t` with `cond`, and what it should say."""

    latents: torch.Tensor
    noise: torch.Tensor
    noisy: torch.Tensor
    t: torch.Tensor
    target: torch.Tensor
    cond: dict[str, torch.Tensor]
    mask: torch.Tensor | None
    encode: Callable[[], dict[str, torch.Tensor]]
    """`cond` once more, by text encoders that may have changed meanwhile."""


class TrainingLoss:
    """The loss of a session's model, for training and for looking alike."""

    def __init__(self, made: Session, accelerator: Accelerator) -> None:
        self.made, self.accelerator = made, accelerator
        self.class_seed = rng.derive_seed(made.recipe.train.seed, "class images")
        self.live = text_encoders.trains_text(made.recipe)
        # not any weight's: some stay in float32; asked once, as the answer walks through all modules
        self.dtype: torch.dtype = made.denoiser.dtype

    def __call__(self, data: Any, slots: list[SampleIndex], purpose: str, times: list[float]) -> torch.Tensor:
        """Losses (B,) of slots that share one shape; `times` are uniform numbers, one a slot.

        `purpose` keys the noise: "noise" for training, another word for what must not share it.
        """
        objective, settings = self.made.objective, self.made.recipe.objective.mask
        given = self.noised(data, slots, purpose, times)
        if settings is None or given.mask is None:
            return objective.loss(self.predict(given), given.target, given.t)
        base = self.untrained(given) if settings.prior and purpose == "noise" else None
        prediction = self.predict(given)
        inside = given.mask + settings.outside * (1 - given.mask)
        loss = objective.loss(prediction, given.target, given.t, inside)
        if base is not None:
            loss = loss + settings.prior * objective.loss(prediction, base, given.t, 1 - given.mask)
        return loss

    def extras(self, mine: Sequence[SampleIndex]) -> list[LossTerm]:
        """What a step's slots cost besides their own loss."""
        made, settings = self.made, self.made.recipe.objective
        parts = []
        if made.class_images is not None:
            data = made.class_images
            slots = [batch_sampler.sample_at(slot.position, data.captions, self.class_seed) for slot in mine]
            parts.append(LossTerm(data, slots, self._of_class, "class time", settings.class_weight))
        if settings.preserve:
            subject = [
                slot for slot in mine if regularization.replace_trigger(made.recipe, made.train.caption(slot))
            ]
            parts.append(LossTerm(made.train, subject, self._drift, "time", settings.preserve))
        return parts

    def _of_class(self, slots: list[SampleIndex], times: list[float]) -> torch.Tensor:
        return self(self.made.class_images, slots, "class noise", times)

    def _drift(self, slots: list[SampleIndex], times: list[float]) -> torch.Tensor:
        """How far the adapter moves predictions for captions without the trigger (B,)."""
        recipe = self.made.recipe
        given = self.noised(
            self.made.train,
            slots,
            "noise",
            times,
            lambda text: regularization.replace_trigger(recipe, text) or text,
        )
        base = self.untrained(given)
        return self.made.objective.loss(self.predict(given), base, given.t)

    def noised(
        self,
        data: Any,
        slots: Sequence[SampleIndex],
        purpose: str,
        times: Sequence[float],
        change: CaptionTransform | None = None,
    ) -> NoisedBatch:
        """Noise on the latents of slots that share one shape; `change` is made to their captions."""
        batch = data.batch(slots, self.accelerator.device, change)
        noise = self._noise(tuple(batch.latents.shape[1:]), slots, purpose)
        u = torch.tensor(times, dtype=torch.float32).to(self.accelerator.device)
        noisy, t, target = self.made.objective.noise(batch.latents, noise, u)
        again = lambda: data.batch(slots, self.accelerator.device, change).cond  # noqa: E731
        return NoisedBatch(batch.latents, noise, noisy, t, target, batch.cond, batch.mask, again)

    def _noise(self, shape: tuple[int, ...], slots: Sequence[SampleIndex], purpose: str) -> torch.Tensor:
        """Noise (B, *shape); for training with the recipe's offset, a constant in each channel."""
        seed, offset = self.made.recipe.train.seed, self.made.recipe.objective.noise_offset
        noise = torch.stack([rng.keyed_normal(shape, seed, purpose, slot.position) for slot in slots])
        if offset and purpose in OFFSET_PURPOSES:
            level = (shape[0], *[1] * (len(shape) - 1))
            levels = [rng.keyed_normal(level, seed, f"{purpose} offset", slot.position) for slot in slots]
            noise = noise + offset * torch.stack(levels)
        return noise.to(self.accelerator.device)

    def untrained(self, given: NoisedBatch) -> torch.Tensor:
        """The prediction of the base without the adapters, without gradient."""
        with torch.no_grad(), adapters.adapters_disabled(*self.made.networks.values()):
            return self.predict(replace(given, cond=given.encode()) if self.live else given)

    def predict(self, given: NoisedBatch) -> torch.Tensor:
        """The model's prediction (B, C, H, W)."""
        made, dtype = self.made, self.dtype
        cond = {name: v.to(dtype) if v.is_floating_point() else v for name, v in given.cond.items()}
        with self.accelerator.autocast():
            return made.family.predict(made.denoiser, given.noisy.to(dtype), given.t, cond)
