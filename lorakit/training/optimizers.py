"""Optimizers and learning-rate schedules.

The optimizer's state is saved and restored parameter by parameter, bit for bit: `load_state_dict` would cast
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lorakit.config.recipe import OptimizerConfig
from lorakit.core.errors import DataError
from lorakit.training.flat_parameters import ALIGNMENT, FlatParameters, Member, OptimizerTensor

_LORA_B = "lora_B.weight"
_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
_LOGGED_RATES = ("lr", "lr_lora_b", "lr_text_encoder", "lr_text_encoder_lora_b", "lr_embedding")


def lr_multiplier(
    config: OptimizerConfig, multiplier: Callable[[str], float] = lambda name: 1.0
) -> Callable[[str], float]:
    """Return the multiplier of the learning rate of a parameter's name: `multiplier`, times that of LoRA+."""
    return lambda name: multiplier(name) * (config.loraplus_lr_ratio if name.endswith(_LORA_B) else 1.0)


def build_optimizer(parameters: FlatParameters, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over the parameters."""
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for tensor in parameters.tensors:
        groups.setdefault(tensor.lr_multiplier, []).append(tensor.values)
    param_groups = [
        {"params": group, "lr_multiplier": multiplier, "lr": config.lr * multiplier}
        for multiplier, group in groups.items()
    ]
    common: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay}
    if config.name == "adamw":
        fused = parameters.values.device.type in _FUSED_DEVICES
        return torch.optim.AdamW(param_groups, **common, fused=fused)
    import bitsandbytes as bnb

    # The library keeps tensors of fewer than 4,096 elements in 32 bits, unless it is asked not to.
    return bnb.optim.AdamW8bit(param_groups, **common, min_8bit_size=1)


def take_step(optimizer: torch.optim.Optimizer, parameters: FlatParameters) -> None:
    """Update the parameters; those of a network without gradients stay as they are.

    The `step` of bitsandbytes waits for the device after every tensor, so its update is called directly.
    """
    parameters.attach_gradients()
    if not _is_bitsandbytes(optimizer) or optimizer.is_paged:  # type: ignore[attr-defined]
        optimizer.step()
        return
    library: Any = optimizer
    with torch.no_grad():
        for group_index, group in enumerate(optimizer.param_groups):
            for index, values in enumerate(group["params"]):
                if values.grad is not None:
                    if not optimizer.state[values]:
                        library.init_state(group, values, group_index, index)
                    library.update_step(group, values, group_index, index)


def _is_bitsandbytes(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.startswith("bitsandbytes")


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
    optimizer: torch.optim.Optimizer, parameters: FlatParameters, lr_name: Callable[[str], str]
) -> dict[str, dict[str, Any]]:
    """Return the parameter groups to log, by the name of their learning rate: `lr` first.

    `lr_name` maps a parameter to `lr`, `lr_text_encoder` or `lr_embedding`; the rate of the matrices B, where
    LoRA+ gives them another, ends in `_lora_b`. Without parameters of the name `lr`, the first group gets it.
    Groups with the learning rate of `lr` are left out.
    """
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    groups: dict[str, dict[str, Any]] = {}
    for tensor in parameters.tensors:
        for name in (member.name for member in tensor.members):
            suffix = "_lora_b" if name.endswith(_LORA_B) else ""
            groups.setdefault(lr_name(name) + suffix, group_of[id(tensor.values)])
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
    optimizer: torch.optim.Optimizer, parameters: FlatParameters
) -> dict[str, torch.Tensor]:
    """The whole state: `<parameter>|<entry>`, as copies on the CPU; counters become int64 scalars."""
    stored = {}
    for tensor in parameters.tensors:
        for entry, value in optimizer.state.get(tensor.values, {}).items():
            whole = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value)
            whole = whole.cpu()
            for member in tensor.members:
                part = _elements(entry, whole, member)
                stored[f"{member.name}|{entry}"] = part.clone()
    return stored


def _elements(entry: str, state: torch.Tensor, member: Member) -> torch.Tensor:
    """Return a parameter's part of one entry of the state; counters and tables belong to all parameters."""
    if _is_shared(entry, state):
        return state
    if _is_by_block(entry):
        return state[member.blocks]
    if state.dtype == torch.uint8:  # whole blocks: the elements behind the parameter have codes too
        return state.flatten()[member.blocks.start * ALIGNMENT : member.blocks.stop * ALIGNMENT]
    return state.flatten()[member.elements].view(member.shape)


def _is_shared(entry: str, state: torch.Tensor) -> bool:
    return state.ndim == 0 or entry.startswith("qmap")


def _is_by_block(entry: str) -> bool:
    return entry.startswith("absmax")


def load_optimizer_state_dict(
    optimizer: torch.optim.Optimizer, parameters: FlatParameters, stored: Mapping[str, torch.Tensor]
) -> None:
    """Restore a state of `optimizer_state_dict`; one of another optimizer or adapter is a `DataError`."""
    names = {name for name, _ in parameters.named}
    unknown = [key for key in stored if key[: key.index("|")] not in names]
    if unknown:
        raise DataError("the optimizer state belongs to another adapter", where=", ".join(unknown[:5]))
    moment = "state1" if _is_bitsandbytes(optimizer) else "exp_avg"
    if stored and not any(key.endswith(f"|{moment}") for key in stored):
        raise DataError("the optimizer state belongs to another optimizer", where=min(stored))
    entries_of: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in stored.items():
        name, entry = key.split("|", 1)
        entries_of.setdefault(name, {})[entry] = value
    for tensor in parameters.tensors:
        first = entries_of.get(tensor.members[0].name, {})
        for entry in first:
            parts = [entries_of.get(member.name, {}).get(entry) for member in tensor.members]
            optimizer.state[tensor.values][entry] = _joined(entry, parts, tensor)


def _joined(entry: str, parts: Sequence[torch.Tensor | None], tensor: OptimizerTensor) -> torch.Tensor | int:
    """Join the parts of one entry; one that is missing or has another shape is a DataError."""
    first = parts[0]
    assert first is not None
    if _is_shared(entry, first):
        is_counter = first.ndim == 0 and first.dtype == torch.int64
        return int(first) if is_counter else first.to(tensor.values.device)
    numel = tensor.values.numel()
    size = (numel // ALIGNMENT,) if _is_by_block(entry) else tensor.values.shape
    whole = torch.zeros(size, dtype=first.dtype)
    for part, member in zip(parts, tensor.members, strict=True):
        place = _elements(entry, whole, member)
        if part is None or part.shape != place.shape:
            shape = "missing" if part is None else f"of shape {tuple(part.shape)}"
            raise DataError(
                f"the optimizer state is {shape}, the parameter needs {tuple(place.shape)}",
                where=f"{member.name}|{entry}",
            )
        place.copy_(part)
    return whole.to(tensor.values.device)
