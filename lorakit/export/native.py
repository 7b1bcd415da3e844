"""The published networks' own module names, which ComfyUI and the trainers built on them use.

One row a module: its name, and the modules of diffusers that lie in it one after the other. `{}` is a block's
number. Checked against ComfyUI 0.19 (its model classes) and diffusers 0.42 (the shapes).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

import torch

from lorakit.errors import DataError
from lorakit.export.changes import Change, LowRank

Row = tuple[str, tuple[str, ...]]

_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


def _row(native: str, block: str, *members: str) -> Row:
    return native, tuple(f"{block}.{member}" for member in members)


def _double(feed: tuple[str, str]) -> list[Row]:
    """Flux's blocks of two streams; `feed` names the feed-forward's layers."""
    block, ours = "double_blocks.{}", "transformer_blocks.{}"
    rows = [
        _row(f"{block}.img_attn.qkv", f"{ours}.attn", *_QKV),
        _row(f"{block}.txt_attn.qkv", f"{ours}.attn", *_ADDED),
        _row(f"{block}.img_attn.proj", f"{ours}.attn", "to_out.0"),
        _row(f"{block}.txt_attn.proj", f"{ours}.attn", "to_add_out"),
    ]
    for stream, ff in (("img_mlp", "ff"), ("txt_mlp", "ff_context")):
        rows += [_row(f"{block}.{stream}.{n}", f"{ours}.{ff}", f) for n, f in zip((0, 2), feed, strict=True)]
    return rows


_FLUX = [
    *_double(("net.0.proj", "net.2")),
    ("single_blocks.{}.linear1", tuple(f"single_transformer_blocks.{{}}.{m}" for m in (
        "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))),
    ("single_blocks.{}.linear2", ("single_transformer_blocks.{}.proj_out",)),
]  # fmt: skip
_FLUX_MODULATED = [
    ("double_blocks.{}.img_mod.lin", ("transformer_blocks.{}.norm1.linear",)),
    ("double_blocks.{}.txt_mod.lin", ("transformer_blocks.{}.norm1_context.linear",)),
    ("single_blocks.{}.modulation.lin", ("single_transformer_blocks.{}.norm.linear",)),
]
_FLUX2 = [
    *_double(("linear_in", "linear_out")),
    ("single_blocks.{}.linear1", ("single_transformer_blocks.{}.attn.to_qkv_mlp_proj",)),
    ("single_blocks.{}.linear2", ("single_transformer_blocks.{}.attn.to_out",)),
]


def _sd3() -> list[Row]:
    block, ours = "joint_blocks.{}", "transformer_blocks.{}"
    rows = [
        _row(f"{block}.x_block.attn.qkv", f"{ours}.attn", *_QKV),
        _row(f"{block}.context_block.attn.qkv", f"{ours}.attn", *_ADDED),
        _row(f"{block}.x_block.attn2.qkv", f"{ours}.attn2", *_QKV),
        _row(f"{block}.x_block.attn.proj", f"{ours}.attn", "to_out.0"),
        _row(f"{block}.context_block.attn.proj", f"{ours}.attn", "to_add_out"),
        _row(f"{block}.x_block.attn2.proj", f"{ours}.attn2", "to_out.0"),
    ]
    for stream, ff in (("x_block", "ff"), ("context_block", "ff_context")):
        rows += [
            _row(f"{block}.{stream}.mlp.fc1", f"{ours}.{ff}", "net.0.proj"),
            _row(f"{block}.{stream}.mlp.fc2", f"{ours}.{ff}", "net.2"),
        ]
    return rows


def _auraflow() -> list[Row]:
    double, single = "double_layers.{}.attn", "single_layers.{}.attn"
    ours, alone = "joint_transformer_blocks.{}", "single_transformer_blocks.{}"
    rows: list[Row] = []
    for letter, own, added in (("q", "to_q", "add_q_proj"), ("k", "to_k", "add_k_proj"),
                               ("v", "to_v", "add_v_proj"), ("o", "to_out.0", "to_add_out")):  # fmt: skip
        rows += [
            (f"{double}.w2{letter}", (f"{ours}.attn.{own}",)),
            (f"{double}.w1{letter}", (f"{ours}.attn.{added}",)),
            (f"{single}.w1{letter}", (f"{alone}.attn.{own}",)),
        ]
    for native, own in (("c_fc1", "linear_1"), ("c_fc2", "linear_2"), ("c_proj", "out_projection")):
        rows += [
            (f"double_layers.{{}}.mlpX.{native}", (f"{ours}.ff.{own}",)),
            (f"double_layers.{{}}.mlpC.{native}", (f"{ours}.ff_context.{own}",)),
            (f"single_layers.{{}}.mlp.{native}", (f"{alone}.ff.{own}",)),
        ]
    return rows


def _lumina(attention: str, feed: tuple[str, str, str]) -> list[Row]:
    rows: list[Row] = []
    for block in ("layers.{}", "context_refiner.{}", "noise_refiner.{}"):
        rows += [
            _row(f"{block}.attention.qkv", f"{block}.{attention}", *_QKV),
            _row(f"{block}.attention.out", f"{block}.{attention}", "to_out.0"),
        ]
        rows += [
            (f"{block}.feed_forward.w{n}", (f"{block}.feed_forward.{own}",)) for n, own in enumerate(feed, 1)
        ]
    return rows


def _hunyuan_image() -> list[Row]:
    native, ours = (
        "txt_in.individual_token_refiner.blocks.{}",
        "context_embedder.token_refiner.refiner_blocks.{}",
    )
    return [
        *_FLUX,
        _row(f"{native}.self_attn.qkv", f"{ours}.attn", *_QKV),
        _row(f"{native}.self_attn.proj", f"{ours}.attn", "to_out.0"),
        _row(f"{native}.mlp.0", f"{ours}.ff", "net.0.proj"),
        _row(f"{native}.mlp.2", f"{ours}.ff", "net.2"),
    ]


def _hunyuan_dit() -> list[Row]:
    block = "blocks.{}"
    return [
        _row(f"{block}.attn1.Wqkv", f"{block}.attn1", *_QKV),
        _row(f"{block}.attn1.out_proj", f"{block}.attn1", "to_out.0"),
        _row(f"{block}.attn2.q_proj", f"{block}.attn2", "to_q"),
        _row(f"{block}.attn2.kv_proj", f"{block}.attn2", "to_k", "to_v"),
        _row(f"{block}.attn2.out_proj", f"{block}.attn2", "to_out.0"),
        _row(f"{block}.mlp.fc1", f"{block}.ff", "net.0.proj"),
        _row(f"{block}.mlp.fc2", f"{block}.ff", "net.2"),
    ]


def _pixart() -> list[Row]:
    native, ours = "blocks.{}", "transformer_blocks.{}"
    return [
        _row(f"{native}.attn.qkv", f"{ours}.attn1", *_QKV),
        _row(f"{native}.attn.proj", f"{ours}.attn1", "to_out.0"),
        _row(f"{native}.cross_attn.q_linear", f"{ours}.attn2", "to_q"),
        _row(f"{native}.cross_attn.kv_linear", f"{ours}.attn2", "to_k", "to_v"),
        _row(f"{native}.cross_attn.proj", f"{ours}.attn2", "to_out.0"),
        _row(f"{native}.mlp.fc1", f"{ours}.ff", "net.0.proj"),
        _row(f"{native}.mlp.fc2", f"{ours}.ff", "net.2"),
    ]


TABLES: dict[str, list[Row]] = {
    "sd3": _sd3(),
    "flux1": [*_FLUX, *_FLUX_MODULATED],
    "chroma": _FLUX,
    "longcat-image": [*_FLUX, *_FLUX_MODULATED],
    "flux2": _FLUX2,
    "auraflow": _auraflow(),
    "lumina2": _lumina("attn", ("linear_1", "linear_2", "linear_3")),
    "z-image": _lumina("attention", ("w1", "w2", "w3")),
    "hunyuan-image": _hunyuan_image(),
    "hunyuan-dit": _hunyuan_dit(),
    "pixart-sigma": _pixart(),
}
SAME = ("qwen-image", "hidream", "kandinsky5", "ernie-image")
"""Families whose own names are diffusers'."""


def _regex(template: str) -> re.Pattern[str]:
    return re.compile(r"(\d+)".join(re.escape(part) for part in template.split("{}")))


@cache
def _patterns(family: str | None) -> list[tuple[re.Pattern[str], re.Pattern[str], Row]]:
    return [(_regex(row[0]), _regex(row[0].replace(".", "_")), row) for row in TABLES.get(family or "", [])]


@cache
def _owners(family: str | None) -> list[tuple[re.Pattern[str], Row]]:
    return [(_regex(member), row) for row in TABLES.get(family or "", []) for member in row[1]]


def members(family: str | None, name: str) -> list[str] | None:
    """The diffusers modules within a native module, given with dots or underscores; None when unknown."""
    for dotted, underscored, row in _patterns(family):
        if match := dotted.fullmatch(name) or underscored.fullmatch(name):
            return [member.replace("{}", match[1]) for member in row[1]]
    return None


def owner(family: str | None, module: str) -> tuple[str, list[str]] | None:
    """The native module that holds a diffusers module, and all that lie in it."""
    for pattern, row in _owners(family):
        if match := pattern.fullmatch(module):
            return row[0].replace("{}", match[1]), [member.replace("{}", match[1]) for member in row[1]]
    return None


def split(change: Change, modules: Sequence[str], where: str) -> dict[str, Change]:
    """A native module's change as those of its members, cut along the outputs.

    The query is as tall as the layer is wide; key and value share what is left, where a feed-forward
    layer does not follow them. (Grouped attention has a shorter key and value.)
    """
    if len(modules) == 1:
        return {modules[0]: change}
    height, width = change.shape[0], change.shape[1]
    if not height:
        raise DataError(f"{change.kind} of a fused layer cannot be taken apart", where=where)
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


def fuse(changes: Mapping[str, LowRank], modules: Sequence[str], grouped: bool, where: str) -> LowRank:
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
    return LowRank(torch.cat([term.down.float() for term in there]), up)
