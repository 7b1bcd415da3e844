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
_LORA_B = "lora_B.weight"
_LOGGED_RATES = ("lr", "lr_lora_b", "lr_text_encoder", "lr_text_encoder_lora_b", "lr_embedding")


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
        ratio = config.loraplus_lr_ratio if name.endswith(_LORA_B) else 1.0
        groups.setdefault(ratio * lr_multiplier(name), []).append(parameter)
    return [{"params": group, "lr_multiplier": multiplier} for multiplier, group in groups.items() if group]


def learning_rate(step: int, stage: range, config: OptimizerConfig) -> float:
    """The learning rate of a step, counted from 0, in the `stage` of the schedule that it belongs to.

    A run has one stage, and one more for each time that it was extended; only the first has the warmup.
    """
    warmup = config.warmup if stage.start == 0 else 0
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - stage.start - warmup) / max(1, len(stage) - warmup)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[config.schedule]
    return config.lr * factor


def groups_by_name(
    optimizer: torch.optim.Optimizer, parameters: NamedParameters, lr_name: Callable[[str], str]
) -> dict[str, dict[str, Any]]:
    """Return the parameter groups to log, by the name of their learning rate: `lr` first.

    `lr_name` maps a parameter to `lr`, `lr_text_encoder` or `lr_embedding`; the rate of the matrices B, where
    LoRA+ gives them another, ends in `_lora_b`. Without parameters of the name `lr`, the first group gets it.
    Groups with the learning rate of `lr` are left out.
    """
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in parameters:
        suffix = "_lora_b" if name.endswith(_LORA_B) else ""
        groups.setdefault(lr_name(name) + suffix, group_of[id(parameter)])
    ordered = sorted(groups, key=_LOGGED_RATES.index)
    first, *others = ordered
    named = {"lr": groups[first]}
    for name in others:
        like = (
            groups.get(name.removesuffix("_lora_b"), named["lr"]) if name.endswith("_lora_b") else named["lr"]
        )
        if groups[name]["lr_multiplier"] != like["lr_multiplier"]:
            named[name] = groups[name]
    return named


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
