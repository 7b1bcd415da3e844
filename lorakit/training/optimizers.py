"""Optimizers by name, and the learning rates of their parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from lorakit.adapters import textual_inversion
from lorakit.config.recipe import OptimizerConfig
from lorakit.core.errors import ConfigError, first_line
from lorakit.training import optimizer_classes
from lorakit.training.flat_parameters import FlatParameters, OptimizerTensor
from lorakit.training.optimizer_state import (
    load_optimizer_state_dict,
    optimizer_parts,
    optimizer_state_dict,
)

_LORA_B = "lora_B.weight"
_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
_LOGGED_RATES = ("lr", "lr_lora_b", "lr_text_encoder", "lr_text_encoder_lora_b", "lr_embedding")
_CHANGED_STATE = ("state1", "state2", "absmax1", "absmax2", "unorm_vec")  # of bitsandbytes, by its steps
_TRIAL_STEPS = 8  # some optimizers do not move the parameters in their first five
_TRIAL_SIDE = 4


class CombinedOptimizer:
    """Several optimizers, each with parameters of its own, that step together."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Take a step with each part."""
        for part in self.parts:
            part.step()


RunOptimizer = torch.optim.Optimizer | CombinedOptimizer


def lr_multiplier(
    config: OptimizerConfig, multiplier: Callable[[str], float] = lambda name: 1.0
) -> Callable[[str], float]:
    """Return the multiplier of the learning rate of a parameter's name: `multiplier`, times that of LoRA+."""
    return lambda name: multiplier(name) * (config.loraplus_lr_ratio if name.endswith(_LORA_B) else 1.0)


def build_optimizer(parameters: FlatParameters, config: OptimizerConfig) -> RunOptimizer:
    """Build the recipe's optimizer over the parameters.

    Raises ConfigError for a class that is not installed or refuses its arguments, and for one that lorakit
    does not name if it cannot be resumed in the same bytes.
    """
    optimizer_classes.check_device(config.name, parameters.values.device)
    if config.name not in optimizer_classes.CLASSES:
        try_resuming(parameters, config)
    return _build(parameters, config)


def _build(parameters: FlatParameters, config: OptimizerConfig) -> RunOptimizer:
    if config.name == "muon":
        return _build_muon(parameters, config)
    options: dict[str, Any] = {}
    if config.name == "adamw":
        options["fused"] = parameters.values.device.type in _FUSED_DEVICES
    return optimizer_classes.construct(
        config.name, _param_groups(parameters.tensors, config), config, options
    )


def _build_muon(parameters: FlatParameters, config: OptimizerConfig) -> RunOptimizer:
    matrices = [tensor for tensor in parameters.tensors if _is_matrix(tensor)]
    others = [tensor for tensor in parameters.tensors if not _is_matrix(tensor)]
    adamw = config.model_copy(update={"options": {}})
    parts = [
        optimizer_classes.construct(name, _param_groups(tensors, config), settings)
        for name, tensors, settings in (("muon", matrices, config), ("adamw", others, adamw))
        if tensors
    ]
    return parts[0] if len(parts) == 1 else CombinedOptimizer(parts)


def _is_matrix(tensor: OptimizerTensor) -> bool:
    """Return True for what Muon is made for; the vectors of a new token are none, although they form a
    table."""
    return tensor.values.ndim == 2 and not textual_inversion.is_embedding_key(tensor.members[0].name)


def _param_groups(tensors: Iterable[OptimizerTensor], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the tensors grouped by the multiplier of their learning rate."""
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.lr_multiplier, []).append(tensor.values)
    return [
        {"params": group, "lr_multiplier": multiplier, "lr": config.lr * multiplier}
        for multiplier, group in groups.items()
    ]


def try_resuming(parameters: FlatParameters, config: OptimizerConfig) -> None:
    """Compare, on small tensors, an optimizer with a copy that is restored from a saved state.

    Raises ConfigError if the class cannot take a step, if its state cannot be saved, or if the restored one
    takes another step.
    """
    name = config.name
    shapes = {parameter.ndim: (_TRIAL_SIDE,) * parameter.ndim for _, parameter in parameters.named}
    first, second = (_trial_parameters(shapes.values(), parameters.values.device) for _ in range(2))
    straight, restored = _build(first, config), _build(second, config)
    try:
        for number in range(_TRIAL_STEPS):
            _trial_step(straight, first, number)
    except Exception as error:  # any code of a package runs here
        raise ConfigError(
            f"the optimizer {name} cannot take a step of this training: {first_line(error)}",
            where="optimizer.name",
            remedy="use another optimizer",
        ) from error
    second.values.copy_(first.values)
    load_optimizer_state_dict(restored, second, optimizer_state_dict(straight, first))
    for number in range(_TRIAL_STEPS, 2 * _TRIAL_STEPS):
        for optimizer, values in ((straight, first), (restored, second)):
            _trial_step(optimizer, values, number)
    if not torch.equal(first.values, second.values):
        raise ConfigError(
            f"the optimizer {name} takes other steps after its state is saved and restored, so that a run"
            " could not be resumed in the same bytes",
            where="optimizer.name",
            remedy="use another optimizer",
        )


def _trial_parameters(shapes: Iterable[tuple[int, ...]], device: torch.device) -> FlatParameters:
    generator = torch.Generator().manual_seed(0)
    named = [
        (f"trial {number}", torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)))
        for number, shape in enumerate(shapes)
    ]
    return FlatParameters(named, per_tensor=True)


def _trial_step(optimizer: RunOptimizer, parameters: FlatParameters, number: int) -> None:
    generator = torch.Generator().manual_seed(1 + number)
    for _, parameter in parameters.named:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)
    parameters.add_gradients()
    for part in optimizer_parts(optimizer):
        if hasattr(part, "train"):  # one that averages
            part.train()
    take_step(optimizer, parameters)
    parameters.zero_gradients()


def can_skip_on_device(optimizer: RunOptimizer) -> bool:
    """Return True if `take_step` can decide on the device whether a step counts, without a wait for it."""
    if _is_bitsandbytes(optimizer):
        library: Any = optimizer
        return not library.is_paged
    return type(optimizer) is torch.optim.AdamW and all(group["fused"] for group in optimizer.param_groups)


def take_step(
    optimizer: RunOptimizer, parameters: FlatParameters, is_finite: torch.Tensor | None = None
) -> None:
    """Update the parameters, except those of a network without gradients.

    `is_finite` is a boolean scalar on the device: if it is false, values and moments keep their bytes. Only
    for optimizers that `can_skip_on_device`. The steps that bitsandbytes counts include skipped ones.
    The `step` of bitsandbytes waits for the device after every tensor, so its update is called directly.
    """
    parameters.attach_gradients()
    library: Any = optimizer
    if _is_bitsandbytes(optimizer) and not library.is_paged:
        _take_bitsandbytes_step(library, is_finite)
    else:
        if is_finite is not None:
            library.found_inf = (~is_finite).float()
        library.step()
    parameters.refresh_copies()


@torch.no_grad()
def _take_bitsandbytes_step(optimizer: Any, is_finite: torch.Tensor | None) -> None:
    for group_index, group in enumerate(optimizer.param_groups):
        for index, values in enumerate(group["params"]):
            if values.grad is None:
                continue
            state = optimizer.state[values]
            if not state:
                optimizer.init_state(group, values, group_index, index)
                state = optimizer.state[values]
            changed = [values.data, *(state[key] for key in _CHANGED_STATE if key in state)]
            if is_finite is None:
                optimizer.update_step(group, values, group_index, index)
                continue
            before = [tensor.clone() for tensor in changed]
            optimizer.update_step(group, values, group_index, index)
            for tensor, old in zip(changed, before, strict=True):
                torch.where(is_finite, tensor, old, out=tensor)


def _is_bitsandbytes(optimizer: RunOptimizer) -> bool:
    return type(optimizer).__module__.startswith("bitsandbytes")


def groups_by_name(
    optimizer: RunOptimizer, parameters: FlatParameters, lr_name: Callable[[str], str]
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


def set_learning_rate(optimizer: RunOptimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_multiplier"]
