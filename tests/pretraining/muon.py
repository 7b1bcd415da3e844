"""Muon: momentum with every matrix replaced by the nearest orthogonal one.

Source: K. Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024; the size of a step matches
AdamW's as in J. Liu et al., "Muon is scalable for LLM training", 2025. torch's own Muon supports neither
convolutions nor a stack of equal matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration


def newton_schulz(stack: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Return the nearest (semi-)orthogonal matrices (N, rows, columns), singular values about 0.7-1.2."""
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
    """Optimizer for weights of two or more dimensions; a convolution counts as a matrix (outputs, rest)."""

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
        """Update the weights; the learning rate is on the scale of AdamW's."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.flatten(1).shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

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
    model: torch.nn.Module, lr: float, *, vectors_lr: float | None = None, adamw_names: tuple[str, ...] = ()
) -> list[torch.optim.Optimizer]:
    """Return Muon for matrices, and AdamW for vectors and parameters whose name contains an `adamw_names`."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim >= 2 and min(parameter.flatten(1).shape) > 8
            (matrices if is_matrix and not any(part in name for part in adamw_names) else others).append(
                parameter
            )
    adamw = torch.optim.AdamW(others, lr=vectors_lr or lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, lr), adamw] if matrices else [adamw]
