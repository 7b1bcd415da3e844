"""The state of an optimizer as flat tensors, saved and restored bit for bit: `load_state_dict` would cast it.

`<parameter>|<entry>` is an entry of a parameter; counters are int64 scalars. What is neither, and what an
optimizer changes in its parameter groups, is JSON in the tensor `values`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lorakit.core.errors import ConfigError, DataError
from lorakit.core.strict_json import parse_json
from lorakit.training.flat_parameters import ALIGNMENT, FlatParameters, Member, OptimizerTensor

FlatState = dict[str, torch.Tensor]
VALUES = "values"
_SET_EACH_STEP = ("lr", "params", "lr_multiplier")
_SHAPED_LIKE_PARAMETER = ("state1", "state2", "exp_avg", "exp_avg_sq", "momentum_buffer", "z")


def optimizer_parts(optimizer: Any) -> list[torch.optim.Optimizer]:
    """Return the optimizers that one consists of: itself, or those of a `CombinedOptimizer`."""
    return list(getattr(optimizer, "parts", (optimizer,)))


def optimizer_state_dict(optimizer: Any, parameters: FlatParameters) -> FlatState:
    """Return the whole state, as copies on the CPU; ConfigError for a state that cannot be saved."""
    flat: FlatState = {}
    values: dict[str, Any] = {}
    states = _states(optimizer)
    for tensor in parameters.tensors:
        for entry, value in states.get(tensor.values, {}).items():
            for member in tensor.members:
                key = f"{member.name}|{entry}"
                if isinstance(value, torch.Tensor):
                    whole = value.detach().cpu()
                    part = whole if parameters.per_tensor else _elements(entry, whole, member)
                    flat[key] = _copy(part)
                elif isinstance(value, int) and not isinstance(value, bool):
                    flat[key] = torch.tensor(value)
                else:
                    values[key] = _pack(value, key, flat)
    for number, (group, defaults) in enumerate(_groups(optimizer)):
        for entry, value in group.items():
            if entry not in _SET_EACH_STEP and not _equal(value, defaults.get(entry)):
                values[f"group {number}|{entry}"] = _pack(value, f"group {number}|{entry}", flat)
    if values:
        text = json.dumps(values, sort_keys=True, allow_nan=False).encode()
        flat[VALUES] = torch.frombuffer(bytearray(text), dtype=torch.uint8).clone()
    return flat


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in the order of elements that a file has."""
    return tensor.clone(memory_format=torch.contiguous_format)


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
    optimizer: Any, parameters: FlatParameters, stored: Mapping[str, torch.Tensor]
) -> None:
    """Restore a state of `optimizer_state_dict`; one of another optimizer or adapter is a `DataError`."""
    values = _read_values(stored)
    groups = _groups(optimizer)
    known = {name for name, _ in parameters.named} | {f"group {number}" for number in range(len(groups))}
    owners = {key.partition("|")[0] for key in (*stored, *values) if key != VALUES}
    if unknown := sorted(owners - known):
        raise DataError("the optimizer state belongs to another adapter", where=", ".join(unknown[:5]))
    moment = "state1" if type(optimizer).__module__.startswith("bitsandbytes") else "exp_avg"
    if stored and not parameters.per_tensor and not any(key.endswith(f"|{moment}") for key in stored):
        raise DataError("the optimizer state belongs to another optimizer", where=min(stored))
    states, entries = _states(optimizer), _by_owner(stored, values)
    for tensor in parameters.tensors:
        own = entries.get(tensor.members[0].name, {})
        restored: dict[str, Any] = {}
        for entry, value in own.items():
            if not isinstance(value, torch.Tensor):
                restored[entry] = _unpack(value, stored, tensor.values.device)
            elif parameters.per_tensor:
                restored[entry] = _restored(entry, value, tensor)
            else:
                parts = [entries.get(member.name, {}).get(entry) for member in tensor.members]
                restored[entry] = _joined(entry, parts, tensor)
        if restored:
            states.setdefault(tensor.values, {}).update(restored)
    for number, (group, _) in enumerate(groups):
        for key, value in entries.get(f"group {number}", {}).items():
            group[key] = _unpack(value, stored, parameters.values.device)


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


def _by_owner(flat: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entries of each parameter and group; parts of lists are left to their lists."""
    owned: dict[str, dict[str, Any]] = {}
    for key, value in (*flat.items(), *values.items()):
        owner, _, entry = key.partition("|")
        if key != VALUES and "#" not in entry:
            owned.setdefault(owner, {})[entry] = value
    return owned


def _restored(entry: str, value: torch.Tensor, tensor: OptimizerTensor) -> torch.Tensor | int:
    """Return an entry of a parameter that has a state of its own; DataError if it has another shape."""
    shape = tensor.values.shape
    if entry in _SHAPED_LIKE_PARAMETER and value.shape[-len(shape) :] != shape:
        raise DataError(
            f"the optimizer state is of shape {tuple(value.shape)}, the parameter needs {tuple(shape)}",
            where=f"{tensor.members[0].name}|{entry}",
        )
    is_counter = value.ndim == 0 and value.dtype == torch.int64
    return int(value) if is_counter else value.to(tensor.values.device)


def _states(optimizer: Any) -> Any:
    """Return the state by parameter; parameters of a combined optimizer have that of their part."""
    parts = optimizer_parts(optimizer)
    return parts[0].state if len(parts) == 1 else _PartStates(parts)


class _PartStates:
    """The states of several optimizers by parameter."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._part_of = {p: part for part in parts for group in part.param_groups for p in group["params"]}

    def get(self, parameter: torch.nn.Parameter, default: Any) -> Any:
        return self._part_of[parameter].state.get(parameter, default)

    def setdefault(self, parameter: torch.nn.Parameter, default: Any) -> Any:
        return self._part_of[parameter].state.setdefault(parameter, default)


def _groups(optimizer: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the parameter groups, each with the defaults of its optimizer."""
    return [(group, part.defaults) for part in optimizer_parts(optimizer) for group in part.param_groups]


def _equal(value: Any, default: Any) -> bool:
    if isinstance(value, torch.Tensor) or isinstance(default, torch.Tensor):
        return value is default
    return type(value) is type(default) and bool(value == default)


def _pack(value: Any, key: str, flat: FlatState) -> Any:
    """Return a value as JSON; its tensors go into `flat`."""
    if isinstance(value, torch.Tensor):
        flat[f"{key}#"] = _copy(value.detach().cpu())
        return {"tensor": f"{key}#"}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{key}#{number}", flat) for number, item in enumerate(value)]
        return {type(value).__name__: items}
    raise ConfigError(
        f"the optimizer keeps a {type(value).__name__} in its state, which cannot be restored exactly",
        where="optimizer.name",
        remedy="use another optimizer",
    )


def _unpack(value: Any, flat: Mapping[str, torch.Tensor], device: torch.device) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return flat[content].to(device, copy=True)
    if kind == "float":
        return float(content)
    items = [_unpack(item, flat, device) for item in content]
    return tuple(items) if kind == "tuple" else items


def _read_values(flat: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    if VALUES not in flat:
        return {}
    parsed = parse_json(bytes(flat[VALUES].tolist()), "the optimizer state", remedy="use another checkpoint")
    return dict(parsed)
