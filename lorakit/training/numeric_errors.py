"""The error of a run whose steps give NaN or infinity: the likely cause, and remedies that can still help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lorakit.config.recipe import Recipe
from lorakit.core.errors import NumericError
from lorakit.models import device as devices
from lorakit.models import non_finite
from lorakit.training.setup import Session

_WIDER = {"fp16": ("bf16", "fp32"), "bf16": ("fp32",), "fp32": ()}


def skipped_steps_error(session: Session, num_skipped: int, step: int) -> NumericError:
    """Return the error for more skipped steps than a run survives."""
    recipe, networks = session.recipe, session.pipe.components
    weight = non_finite.find_damaged_weight(networks)
    if weight and not _is_float16_overflow(networks, weight):
        return non_finite.damaged_weight_error(weight)
    options = precision_remedies(recipe, session.device)
    if not weight:
        options = [f"optimizer.lr={recipe.optimizer.lr / 10:g}", *options]
    cause = f": {weight} is too large for float16" if weight else ""
    return NumericError(
        f"{num_skipped} steps gave non-finite numbers{cause}",
        where=f"step {step}",
        remedy=f"start a new run, in another folder, with {' or '.join(options)}; checkpoints are kept",
    )


def untrained_error(session: Session) -> NumericError:
    """Return the error for a base model whose predictions are not finite before any training."""
    recipe, networks = session.recipe, session.pipe.components
    weight = non_finite.find_damaged_weight(networks)
    if weight and not _is_float16_overflow(networks, weight):
        return non_finite.damaged_weight_error(weight)
    options = precision_remedies(recipe, session.device)
    return NumericError(
        f"the base model predicts NaN or infinity in {recipe.train.precision}, before any training",
        where=weight or "base",
        remedy=f"set {' or '.join(options)}" if options else non_finite.NEW_DOWNLOAD,
    )


def precision_remedies(recipe: Recipe, device: torch.device) -> list[str]:
    """Return overrides for a wider precision than the recipe's; none if there is no such on the device."""
    supported = devices.supported_precisions(device)
    return [f"train.precision={p}" for p in _WIDER[recipe.train.precision] if p in supported]


def _is_float16_overflow(networks: Mapping[str, Any], weight: str) -> bool:
    """Return True for a float16 weight with infinity and no NaN: the number in the file may be finite."""
    component, _, name = weight.partition(".")
    tensors = dict(networks[component].named_parameters()) | dict(networks[component].named_buffers())
    return tensors[name].dtype == torch.float16 and not bool(tensors[name].isnan().any())
