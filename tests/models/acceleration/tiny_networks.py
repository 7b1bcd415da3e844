"""Tiny denoisers with a trained-looking adapter, and their predictions and gradients."""

from __future__ import annotations

import torch

from lorakit import adapters
from lorakit.models.families import Conditioning
from lorakit.models.memory import MemorySettings, placement, quantize
from tests import tiny
from tests.models.families.common import CAPTIONS, encode_all, family_of, noise_for, two_timesteps


class Adapted:
    """A tiny pipeline's denoiser with an adapter, and inputs for it."""

    def __init__(self, name: str, settings: MemorySettings | None = None) -> None:
        self.family, pipe = family_of(name), tiny.build(name)
        self.denoiser = self.family.denoiser(pipe)
        settings = settings or MemorySettings()
        if settings.quantize:
            quantize.quantize_linear_layers(
                self.denoiser, settings.quantize, torch.device("cpu"), torch.float32
            )
        adapters.inject_adapter(self.denoiser, rank=2, alpha=2, targets=self.family.target_modules)
        self.parameters = adapters.trainable_parameters(self.denoiser)
        placement.place(self.denoiser, settings, torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        for key, parameter in self.parameters:
            if key.endswith("lora_B.weight"):
                parameter.data.normal_(std=0.1, generator=generator)
        self.inputs = [
            (
                noise_for(name, seed=seed),
                two_timesteps(self.family)[:1],
                self.family.collate(encode_all(name, pipe, [caption])),
            )
            for seed, caption in enumerate(CAPTIONS)
        ]

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The denoiser's prediction."""
        return self.family.predict(self.denoiser, latents, timesteps, cond)

    def gradients(self, number: int = 0) -> dict[str, torch.Tensor]:
        """The gradients of a loss of one of the inputs."""
        self.predict(*self.inputs[number]).square().mean().backward()
        gradients = {key: p.grad for key, p in self.parameters if p.grad is not None}
        for _, parameter in self.parameters:
            parameter.grad = None
        return gradients


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The distance of two sets of gradients, relative to their norm."""
    assert first.keys() == second.keys()
    squares = sum(float((first[key] - second[key]).square().sum()) for key in first)
    return float((squares / sum(float(value.square().sum()) for value in first.values())) ** 0.5)
