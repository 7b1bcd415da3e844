"""Optimizers and learning-rate schedules.

The optimizer's state is saved and restored tensor by tensor, bit for bit: `load_state_dict` would cast it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lorakit.config.recipe import OptimizerConfig
from lorakit.core.errors import DataError

NamedParameters = Sequence[tuple[str, torch.nn.Parameter]]


def build_optimizer(
    parameters: NamedParameters,
    config: OptimizerConfig,
    lr_multiplier: Callable[[str], float] = lambda name: 1.0,
) -> torch.optim.Optimizer:
    """The recipe's optimizer over `parameters`; `lr_multiplier` of a name multiplies its learning rate."""
    groups = _param_groups(parameters, config, lr_multiplier)
    common: dict[str, Any] = {
        "lr": config.lr,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
    }
    if config.name == "adamw":
        return torch.optim.AdamW(groups, **common)
    import bitsandbytes as bnb

    # The library keeps tensors of fewer than 4,096 elements in 32 bits: most of a small adapter.
    return bnb.optim.AdamW8bit(groups, **common, min_8bit_size=1)


def _param_groups(
    parameters: NamedParameters, config: OptimizerConfig, lr_multiplier: Callable[[str], float]
) -> list[dict[str, Any]]:
    """Parameters grouped by the multiplier of their learning rate, those of 1 first."""
    groups: dict[float, list[torch.nn.Parameter]] = {1.0: []}
    for name, parameter in parameters:
        ratio = config.loraplus_lr_ratio if name.endswith("lora_B.weight") else 1.0
        groups.setdefault(ratio * lr_multiplier(name), []).append(parameter)
    return [{"params": group, "lr_multiplier": multiplier} for multiplier, group in groups.items() if group]


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The learning rate of a step, counted from 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, total_steps - config.warmup)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[config.schedule]
    return config.lr * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_multiplier"]


def optimizer_state_dict(
    optimizer: torch.optim.Optimizer, parameters: NamedParameters
) -> dict[str, torch.Tensor]:
    """The whole state, flat: `<parameter>|<entry>`; counters become int64 scalars."""
    flat = {}
    for name, parameter in parameters:
        for entry, value in optimizer.state.get(parameter, {}).items():
            # Cloned: 8-bit states share one quantization map, and the safetensors format has no sharing.
            tensor = value.detach().clone() if isinstance(value, torch.Tensor) else torch.tensor(value)
            flat[f"{name}|{entry}"] = tensor
    return flat


def load_optimizer_state_dict(
    optimizer: torch.optim.Optimizer, parameters: NamedParameters, flat: Mapping[str, torch.Tensor]
) -> None:
    """Restore a state of `optimizer_state_dict`; one of another optimizer or adapter is a `DataError`."""
    prefixes = {f"{name}|" for name, _ in parameters}
    unknown = [key for key in flat if key[: key.index("|") + 1] not in prefixes]
    if unknown:
        raise DataError("the optimizer state belongs to another adapter", where=", ".join(unknown[:5]))
    moment = "state1" if type(optimizer).__module__.startswith("bitsandbytes") else "exp_avg"
    if flat and not any(key.endswith(f"|{moment}") for key in flat):
        raise DataError("the optimizer state belongs to another optimizer", where=min(flat))
    for name, parameter in parameters:
        prefix = f"{name}|"
        entries = {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
        for entry, tensor in entries.items():
            if entry in ("state1", "state2", "exp_avg", "exp_avg_sq") and tensor.shape != parameter.shape:
                raise DataError(
                    f"the optimizer state has the shape {tuple(tensor.shape)}, the parameter"
                    f" {tuple(parameter.shape)}",
                    where=name,
                )
            counter = tensor.ndim == 0 and tensor.dtype == torch.int64
            optimizer.state[parameter][entry] = int(tensor) if counter else tensor.to(parameter.device)
