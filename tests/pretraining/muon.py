"""Muon: momentum whose every matrix is replaced by the nearest orthogonal one.

Source: K. Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024; the step's size matches
AdamW's as in J. Liu et al., "Muon is scalable for LLM training", 2025. torch's own Muon takes neither
convolutions nor equal matrices in one stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration


def newton_schulz(stack: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices, singular values within about 0.7-1.2: (N, rows, columns)."""
    a, b, c = COEFFICIENTS
    x = stack.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(stack.dtype)


class Muon(torch.optim.Optimizer):
    """For weights of two and more dimensions; a convolution counts as a matrix (outputs, all else)."""

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; the learning rate means what it means for AdamW."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.flatten(1).shape, []).append(parameter)
            for alike in by_shape.values():
                self._update(alike, group)

    def _update(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        directions = []
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            state = self.state[parameter]
            average = state.setdefault("momentum", torch.zeros_like(parameter))
            average.lerp_(gradient, 1 - group["momentum"])
            directions.append(gradient.lerp(average, group["momentum"]).flatten(1))
        steps = newton_schulz(torch.stack(directions))
        scale = 0.2 * max(steps.shape[-2:]) ** 0.5
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(step.view_as(parameter), alpha=-group["lr"] * scale)


def build_optimizers(
    model: torch.nn.Module, lr: float, *, vectors_lr: float | None = None, plain: tuple[str, ...] = ()
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for vectors, tables and parameters whose name contains one of `plain`."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim >= 2 and min(parameter.flatten(1).shape) > 8
            (matrices if is_matrix and not any(part in name for part in plain) else others).append(parameter)
    adam = torch.optim.AdamW(others, lr=vectors_lr or lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, lr), adam] if matrices else [adam]
