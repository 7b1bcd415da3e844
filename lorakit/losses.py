"""What images cost: noise keyed by position, the model's prediction, the objective's loss."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from lorakit import keyed
from lorakit.batches import Slot
from lorakit.session import Session


class Loss:
    """The loss of a session's model, for training and for looking alike."""

    def __init__(self, made: Session, accelerator: Accelerator) -> None:
        self.made, self.accelerator = made, accelerator

    def __call__(self, data: Any, slots: list[Slot], purpose: str, times: list[float]) -> torch.Tensor:
        """Losses (B,) of slots that share one shape; `times` are uniform numbers, one a slot.

        `purpose` keys the noise: "noise" for training, another word for what must not share it.
        """
        made, device, seed = self.made, self.accelerator.device, self.made.recipe.train.seed
        batch = data.batch(slots, device)
        shape = tuple(batch.latents.shape[1:])
        noise = torch.stack([keyed.normal(shape, seed, purpose, slot.position) for slot in slots]).to(device)
        u = torch.tensor(times, dtype=torch.float32).to(device)
        noisy, t, target = made.objective.noise(batch.latents, noise, u)
        return made.objective.loss(self._predict(noisy, t, batch.cond), target, t)

    def _predict(self, noisy: torch.Tensor, t: torch.Tensor, cond: dict[str, torch.Tensor]) -> torch.Tensor:
        made = self.made
        dtype: torch.dtype = made.denoiser.dtype  # not any weight's: some stay in float32
        cond = {name: v.to(dtype) if v.is_floating_point() else v for name, v in cond.items()}
        with self.accelerator.autocast():
            return made.family.predict(made.denoiser, noisy.to(dtype), t, cond)
