"""Module names of published networks to diffusers' and back, and their fused layers split and fused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from lorakit.adapters.formats.delta_weights import DeltaWeight, DoraDelta, FullDelta, LoraDelta, OftDelta
from lorakit.adapters.formats.native_rows import NameRow
from lorakit.adapters.formats.native_tables import (
    DIFFUSERS_NAMED_FAMILIES,
    NATIVE_NAMES,
    SAME_NETWORK,
)
from lorakit.core.errors import DataError

__all__ = [
    "NATIVE_NAMES",
    "NativeModule",
    "diffusers_modules",
    "fuse_low_rank",
    "has_native_names",
    "native_module",
    "reorder_modulation",
    "split_fused",
]


GROUPED_QUERY_FAMILIES = ("lumina2",)
"""Families with grouped-query attention and fused layers: keys and values are narrower than queries."""


@dataclass(frozen=True)
class NativeModule:
    """A module of a published network, and the diffusers modules that it consists of, in order."""

    name: str
    members: list[str]


def has_native_names(family: str) -> bool:
    """Return True if the module names of a family's published network are known."""
    network = SAME_NETWORK.get(family, family)
    return network in NATIVE_NAMES or network in DIFFUSERS_NAMED_FAMILIES


def _rows(family: str | None) -> list[NameRow]:
    return NATIVE_NAMES.get(SAME_NETWORK.get(family or "", family or ""), [])


def _regex(template: str) -> re.Pattern[str]:
    return re.compile(r"(\d+)".join(re.escape(part) for part in template.split("{}")))


@cache
def _patterns(family: str | None) -> list[tuple[re.Pattern[str], re.Pattern[str], NameRow]]:
    return [(_regex(row.native), _regex(row.native.replace(".", "_")), row) for row in _rows(family)]


@cache
def _owner_patterns(family: str | None) -> list[tuple[re.Pattern[str], NameRow]]:
    return [(_regex(member), row) for row in _rows(family) for member in row.members]


# HunyuanVideo's published names, where ComfyUI's are other: `img_attn_qkv`, `mlp.fc1`, `modulation.linear`.
_HUNYUAN_NAMES = (
    (re.compile(r"(blocks\.\d+\.(?:img|txt|self)_attn)_(qkv|proj)$"), r"\1.\2"),
    (re.compile(r"(blocks[._]\d+[._](?:(?:img|txt)_)?mlp[._])fc1$"), r"\g<1>0"),
    (re.compile(r"(blocks[._]\d+[._](?:(?:img|txt)_)?mlp[._])fc2$"), r"\g<1>2"),
    (re.compile(r"((?:double|single)_blocks[._]\d+[._]\w+[._]lin)ear$"), r"\1"),
)


def diffusers_modules(family: str | None, name: str) -> list[str] | None:
    """Return the diffusers modules of a native module, named with dots or underscores; None if unknown."""
    modules = _modules_of(family, name)
    if modules is None and (other := _without_hunyuan_names(name)) != name:
        return _modules_of(family, other)
    return modules


def _without_hunyuan_names(name: str) -> str:
    for pattern, replacement in _HUNYUAN_NAMES:
        name = pattern.sub(replacement, name)
    return name


def _modules_of(family: str | None, name: str) -> list[str] | None:
    for dotted, underscored, row in _patterns(family):
        if match := dotted.fullmatch(name) or underscored.fullmatch(name):
            return _fill_block_number(match, row.members)
    return None


def is_block_module(family: str, name: str) -> bool:
    """Return True if a native module is in a numbered block; names outside blocks occur in many families."""
    names = {name, _without_hunyuan_names(name)}
    return any(
        "{}" in row.native and any(dotted.fullmatch(one) or underscored.fullmatch(one) for one in names)
        for dotted, underscored, row in _patterns(family)
    )


def native_module(family: str | None, module: str) -> NativeModule | None:
    """Return the native module that contains a diffusers module; None if the family has no such name."""
    for pattern, row in _owner_patterns(family):
        if match := pattern.fullmatch(module):
            (name,) = _fill_block_number(match, [row.native])
            return NativeModule(name, _fill_block_number(match, row.members))
    return None


def _fill_block_number(match: re.Match[str], templates: Sequence[str]) -> list[str]:
    """Return templates with the number of the block; modules outside blocks have no number."""
    return [template.replace("{}", match[1]) if match.re.groups else template for template in templates]


def is_modulation_swapped(native: str, module: str, delta: DeltaWeight) -> bool:
    """Return True if the two halves of a native module are in the other order in its diffusers module."""
    path = module.removeprefix("transformer.")
    if native.replace(".", "_").endswith(path.replace(".", "_")):  # the file has diffusers' names
        return False
    is_last_context = path.endswith(".norm1_context.linear") and delta.shape[0] == 2 * delta.shape[1]
    return path == "norm_out.linear" or is_last_context


def reorder_modulation(native: str, module: str, delta: DeltaWeight) -> DeltaWeight:
    """Convert a delta between a native module and its diffusers module, for most modules without change.

    diffusers stores scale and shift of the last modulation in the other order, and also those of a context
    stream that ends in the last block (its layer has two outputs for each channel, not six). The conversion
    is its own inverse.
    """
    if not is_modulation_swapped(native, module, delta):
        return delta
    height = delta.shape[0]
    if isinstance(delta, LoraDelta):
        return replace(delta, up=delta.up.roll(height // 2, 0))
    if isinstance(delta, OftDelta) and delta.side == "inputs":
        return delta
    if isinstance(delta, DoraDelta):
        magnitude = delta.magnitude.roll(height // 2, 0) if delta.is_per_output else delta.magnitude
        direction = reorder_modulation(native, module, delta.direction)
        return replace(delta, direction=direction, magnitude=magnitude)
    if delta.needs_base:
        raise DataError(f"{delta.method} of a modulation cannot be reordered", where=module)
    return FullDelta(delta.dense().roll(height // 2, 0))


def split_fused(delta: DeltaWeight, modules: Sequence[str], stem: str, where: str) -> dict[str, DeltaWeight]:
    """Split the delta of a native module, whose key has the stem `stem`, into those of its members.

    It is split along the outputs: the query has as many outputs as inputs, key and value share the rest
    equally (fewer with grouped-query attention), and a feed-forward layer, if it follows them, has the rest.
    Raises DataError if the number of outputs does not fit or the method cannot be split.
    """
    if len(modules) == 1:
        return {modules[0]: reorder_modulation(stem, modules[0], delta)}
    if isinstance(delta, OftDelta) and delta.side == "inputs":
        return dict.fromkeys(modules, delta)
    if delta.needs_base and not (
        isinstance(delta, DoraDelta) and delta.is_per_output and not delta.direction.needs_base
    ):
        raise DataError(
            f"{delta.method} of a fused layer cannot be split, because its outputs depend on each other",
            where=where,
            remedy="let its trainer write the diffusers layout, which does not fuse layers",
        )
    height, width = delta.shape[0], delta.shape[1]
    match len(modules):
        case 2:
            sizes = [height // 2] * 2
        case 3:
            query = width if height > width else height // 3
            sizes = [query, (height - query) // 2, (height - query) // 2]
        case _:
            sizes = [width, width, width, height - 3 * width]
    if sum(sizes) != height or min(sizes) <= 0:
        raise DataError(f"{height} outputs cannot be split into {', '.join(modules)}", where=where)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return {
        m: delta.slice_outputs(end - size, end) for m, size, end in zip(modules, sizes, ends, strict=True)
    }


def fuse_low_rank(
    deltas: Mapping[str, LoraDelta], modules: Sequence[str], is_grouped_query: bool, where: str
) -> LoraDelta:
    """Return the deltas of a native module's members as one: the ranks add up, the outputs are stacked.

    Members that share one A, because the layer was trained fused, keep its rank. A member without a delta
    gets zeros. Raises DataError if its number of outputs is unknown.
    """
    if len(modules) == 1:
        return deltas[modules[0]]
    present = [deltas[module] for module in modules if module in deltas]
    width = present[0].shape[1]
    heights: list[int] = []
    for index, module in enumerate(modules):
        if module in deltas:
            heights.append(deltas[module].shape[0])
        elif is_grouped_query and index:
            raise DataError(
                f"{module} is not adapted, so the number of outputs of its fused layer is unknown",
                where=where,
            )
        elif index == 3:  # the feed-forward layer
            heights.append(4 * width)
        else:
            heights.append(width if len(modules) > 2 else present[0].shape[0])
    shares_down = all(_is_equal(present[0].down, delta.down) for delta in present)
    rank = present[0].rank if shares_down else sum(delta.rank for delta in present)
    up = torch.zeros(sum(heights), rank)
    row = column = 0
    for height, module in zip(heights, modules, strict=True):
        if (delta := deltas.get(module)) is not None:
            up[row : row + height, column : column + delta.rank] = delta.up.float() * delta.scale
            column += 0 if shares_down else delta.rank
        row += height
    down = present[0].down.float() if shares_down else torch.cat([delta.down.float() for delta in present])
    return LoraDelta(down, up)


def _is_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and (
        first.data_ptr() == second.data_ptr() or torch.equal(first, second)
    )
