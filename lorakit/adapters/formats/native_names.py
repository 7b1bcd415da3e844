"""A published network's module names to diffusers' and back, and fused layers cut apart and put together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch

from lorakit.adapters.formats.delta_weights import DeltaWeight, DoraDelta, FullDelta, LoraDelta, OftDelta
from lorakit.adapters.formats.native_tables import DIFFUSERS_NAMED_FAMILIES, NATIVE_NAMES, NameRow
from lorakit.core.errors import DataError

__all__ = [
    "DIFFUSERS_NAMED_FAMILIES",
    "NATIVE_NAMES",
    "diffusers_modules",
    "fuse_low_rank",
    "native_module",
    "reorder_modulation",
    "split_fused",
]


def _regex(template: str) -> re.Pattern[str]:
    return re.compile(r"(\d+)".join(re.escape(part) for part in template.split("{}")))


@cache
def _patterns(family: str | None) -> list[tuple[re.Pattern[str], re.Pattern[str], NameRow]]:
    return [
        (_regex(row[0]), _regex(row[0].replace(".", "_")), row) for row in NATIVE_NAMES.get(family or "", [])
    ]


@cache
def _owner_patterns(family: str | None) -> list[tuple[re.Pattern[str], NameRow]]:
    return [(_regex(member), row) for row in NATIVE_NAMES.get(family or "", []) for member in row[1]]


def diffusers_modules(family: str | None, name: str) -> list[str] | None:
    """The diffusers modules within a native module, given with dots or underscores; None when unknown."""
    for dotted, underscored, row in _patterns(family):
        if match := dotted.fullmatch(name) or underscored.fullmatch(name):
            return _fill_block_number(match, row[1])
    return None


def is_block_module(family: str, name: str) -> bool:
    """Whether a native module lies in a numbered block; what lies around them is called alike by many."""
    return any(
        "{}" in row[0] and bool(dotted.fullmatch(name) or underscored.fullmatch(name))
        for dotted, underscored, row in _patterns(family)
    )


def native_module(family: str | None, module: str) -> tuple[str, list[str]] | None:
    """The native module that holds a diffusers module, and all that lie in it."""
    for pattern, row in _owner_patterns(family):
        if match := pattern.fullmatch(module):
            return _fill_block_number(match, row[:1])[0], _fill_block_number(match, row[1])
    return None


def _fill_block_number(match: re.Match[str], templates: Sequence[str]) -> list[str]:
    """Templates with the block's number; modules outside the blocks have none."""
    return [template.replace("{}", match[1]) if match.re.groups else template for template in templates]


def is_modulation_swapped(native: str, module: str, change: DeltaWeight) -> bool:
    """Whether a native module's two halves lie the other way round in the diffusers module it is."""
    path = module.removeprefix("transformer.")
    if native.replace(".", "_").endswith(path.replace(".", "_")):  # a file of diffusers' names
        return False
    last = path.endswith(".norm1_context.linear") and change.shape[0] == 2 * change.shape[1]
    return path == "norm_out.linear" or last


def reorder_modulation(native: str, module: str, change: DeltaWeight) -> DeltaWeight:
    """A change between a native module and the diffusers module it is: mostly the same.

    diffusers keeps scale and shift of the last modulation in the other order, and so those of a context that
    ends in the last block (its layer makes two numbers for each, not six). Swapping twice changes nothing.
    """
    if not is_modulation_swapped(native, module, change):
        return change
    height = change.shape[0]
    if isinstance(change, LoraDelta):
        return replace(change, up=change.up.roll(height // 2, 0))
    if isinstance(change, OftDelta) and change.side == "inputs":
        return change
    if isinstance(change, DoraDelta):
        magnitude = change.magnitude.roll(height // 2, 0) if change.by_output else change.magnitude
        return replace(change, inner=reorder_modulation(native, module, change.inner), magnitude=magnitude)
    if change.needs_base:
        raise DataError(f"{change.kind} of a modulation cannot be reordered", where=module)
    return FullDelta(change.delta().roll(height // 2, 0))


def split_fused(change: DeltaWeight, modules: Sequence[str], stem: str, where: str) -> dict[str, DeltaWeight]:
    """The change of a native module, in its file called `stem`, as its members', cut along the outputs.

    The query is as tall as the layer is wide; key and value share what is left, where a feed-forward
    layer does not follow them. (Grouped attention has a shorter key and value.)
    """
    if len(modules) == 1:
        return {modules[0]: reorder_modulation(stem, modules[0], change)}
    if isinstance(change, OftDelta) and change.side == "inputs":
        return dict.fromkeys(modules, change)
    if change.needs_base and not (
        isinstance(change, DoraDelta) and change.by_output and not change.inner.needs_base
    ):
        raise DataError(
            f"{change.kind} of a fused layer, whose parts depend on each other, cannot be taken apart",
            where=where,
            remedy="have its trainer write it in diffusers' layout, which keeps the parts",
        )
    height, width = change.shape[0], change.shape[1]
    match len(modules):
        case 2:
            sizes = [height // 2] * 2
        case 3:
            query = width if height > width else height // 3
            sizes = [query, (height - query) // 2, (height - query) // 2]
        case _:
            sizes = [width, width, width, height - 3 * width]
    if sum(sizes) != height or min(sizes) <= 0:
        raise DataError(f"{height} outputs are not those of {', '.join(modules)}", where=where)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return {m: change.rows(end - size, end) for m, size, end in zip(modules, sizes, ends, strict=True)}


def fuse_low_rank(
    changes: Mapping[str, LoraDelta], modules: Sequence[str], grouped: bool, where: str
) -> LoraDelta:
    """The members' changes as one of the native module: the ranks add up, the outputs lie below each other.

    A member without a change gets zeros, where its height is known.
    """
    if len(modules) == 1:
        return changes[modules[0]]
    there = [changes[m] for m in modules if m in changes]
    width = there[0].shape[1]
    heights: list[int] = []
    for place, module in enumerate(modules):
        if module in changes:
            heights.append(changes[module].shape[0])
        elif grouped and place:
            raise DataError(
                f"{module} is not adapted, so that its fused layer has an unknown height", where=where
            )
        else:
            heights.append(4 * width if place == 3 else width if len(modules) > 2 else there[0].shape[0])
    up = torch.zeros(sum(heights), sum(term.rank for term in there))
    row = column = 0
    for height, module in zip(heights, modules, strict=True):
        if (term := changes.get(module)) is not None:
            up[row : row + height, column : column + term.rank] = term.up.float() * term.scale
            column += term.rank
        row += height
    return LoraDelta(torch.cat([term.down.float() for term in there]), up)
