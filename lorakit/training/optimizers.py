"""Optimizers and learning-rate schedules.

The optimizer's state is saved and restored tensor by tensor, bit for bit: `load_state_dict` would cast it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lorakit.config.recipe import OptimizerConfig as Settings
from lorakit.core.errors import DataError

NamedParameters = Sequence[tuple[str, torch.nn.Parameter]]


def build_optimizer(
    parameters: NamedParameters, settings: Settings, factor: Callable[[str], float] = lambda name: 1.0
) -> torch.optim.Optimizer:
    """The recipe's optimizer over `parameters`; `factor` of a name multiplies its learning rate."""
    values = _param_groups(parameters, settings, factor)
    common: dict[str, Any] = {
        "lr": settings.lr,
        "betas": settings.betas,
        "weight_decay": settings.weight_decay,
    }
    if settings.name == "adamw":
        return torch.optim.AdamW(values, **common)
    import bitsandbytes as bnb

    # The library keeps tensors under 4,096 numbers in 32 bits, which would be most of a small adapter.
    return bnb.optim.AdamW8bit(values, **common, min_8bit_size=1)


def _param_groups(
    parameters: NamedParameters, settings: Settings, factor: Callable[[str], float]
) -> list[dict[str, Any]]:
    """Parameters by the factor of their learning rate, those of factor 1 first."""
    by_factor: dict[float, list[torch.nn.Parameter]] = {1.0: []}
    for name, parameter in parameters:
        ratio = settings.lora_plus_ratio if name.endswith("lora_B.weight") else 1.0
        by_factor.setdefault(ratio * factor(name), []).append(parameter)
    return [{"params": some, "factor": times} for times, some in by_factor.items() if some]


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """The rate of a step (counted from 0) of `steps`."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, steps - settings.warmup)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[settings.schedule]
    return settings.lr * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def optimizer_state_dict(
    optimizer: torch.optim.Optimizer, parameters: NamedParameters
) -> dict[str, torch.Tensor]:
    """The whole state, flat: `<parameter>|<entry>`; counters become int64 scalars."""
    flat = {}
    for name, parameter in parameters:
        for entry, value in optimizer.state.get(parameter, {}).items():
            # Cloned: 8-bit states share one quantisation map, and the safetensors format has no sharing.
            tensor = value.detach().clone() if isinstance(value, torch.Tensor) else torch.tensor(value)
            flat[f"{name}|{entry}"] = tensor
    return flat


def load_optimizer_state_dict(
    optimizer: torch.optim.Optimizer, parameters: NamedParameters, flat: Mapping[str, torch.Tensor]
) -> None:
    """Restore what `state_tensors` gave; a state of another optimizer or adapter is a `DataError`."""
    known = {f"{name}|" for name, _ in parameters}
    strange = [key for key in flat if key[: key.index("|") + 1] not in known]
    if strange:
        raise DataError("the optimizer state belongs to another adapter", where=", ".join(strange[:5]))
    moment = "state1" if type(optimizer).__module__.startswith("bitsandbytes") else "exp_avg"
    if flat and not any(key.endswith(f"|{moment}") for key in flat):
        raise DataError("the optimizer state belongs to another optimizer", where=min(flat))
    for name, parameter in parameters:
        prefix = f"{name}|"
        entries = {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
        for entry, tensor in entries.items():
            if entry in ("state1", "state2", "exp_avg", "exp_avg_sq") and tensor.shape != parameter.shape:
                raise DataError(
                    f"the optimizer state is {tuple(tensor.shape)}, the parameter {tuple(parameter.shape)}",
                )
            counter = tensor.ndim == 0 and tensor.dtype == torch.int64
            optimizer.state[parameter][entry] = int(tensor) if counter else tensor.to(parameter.device)
