"""A tiny network with an adapter and memory settings, and the numbers that it computes."""

from __future__ import annotations

import copy
from typing import Any

import torch

from lorakit import adapters
from lorakit.core import rng
from lorakit.models.memory import MemorySettings, placement, quantize
from lorakit.models.memory.placement import Placement
from tests import tiny
from tests.models.families.common import CAPTIONS, encoded, family_of, noise_for, two_timesteps


class PlacedNetwork:
    """A tiny network of a family on the CPU; without settings the plain path, which nothing wraps."""

    def __init__(
        self, name: str, settings: MemorySettings | None = None, *, quantization: str | None = None
    ) -> None:
        self.name, self.family = name, family_of(name)
        self.network: Any = copy.deepcopy(self.family.denoiser(tiny.tiny_pipeline(name)))
        if quantization:
            quantize.quantize_linear_layers(self.network, quantization, "cpu", torch.float32)
        adapters.inject_adapter(self.network, rank=2, alpha=2, targets=self.family.target_modules)
        for key, parameter in adapters.trainable_parameters(self.network):
            if key.endswith("lora_B.weight"):
                parameter.data.normal_(std=0.3, generator=rng.generator(0, "B", key))
        if settings is not None:
            placement.place(self.network, settings, torch.device("cpu"))
        self.network.train()
        self.cond = self.family.collate(encoded(name, CAPTIONS[:1]))

    @property
    def placement(self) -> Placement:
        placed = placement.placement_of(self.network)
        assert placed is not None
        return placed

    def predict(self, timestep: torch.Tensor) -> torch.Tensor:
        prediction: torch.Tensor = self.family.predict(
            self.network, noise_for(self.name), timestep, self.cond
        )
        return prediction

    def numbers(self, passes: int = 1) -> list[torch.Tensor]:
        """Return predictions in training and in sampling, interleaved, then the sums of the gradients."""
        results = []
        for _ in range(passes):
            for timestep in two_timesteps(self.family).split(1):
                prediction = self.predict(timestep)
                prediction.square().mean().backward()
                results.append(prediction.detach())
                with torch.no_grad():
                    results.append(self.predict(timestep))
        return results + [
            p.grad for _, p in adapters.trainable_parameters(self.network) if p.grad is not None
        ]


def assert_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    """Assert that two lists hold the same numbers bit by bit."""
    assert len(left) == len(right)
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
