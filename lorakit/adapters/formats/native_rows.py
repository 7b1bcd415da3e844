"""Rows of the tables of native names: a native module, and the diffusers modules that it consists of.

`{}` is the number of a block.
"""

from __future__ import annotations

from typing import NamedTuple


class NameRow(NamedTuple):
    """A native module, and its diffusers modules."""

    native: str
    members: tuple[str, ...]


Row = tuple[str, tuple[str, ...]]

QKV = ("to_q", "to_k", "to_v")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
IN_OUT, MLP = ("in_layer", "out_layer"), ("mlp.0", "mlp.2")
"""Names of the two layers of embedders."""


def row(native: str, block: str, *members: str) -> Row:
    """Return the row of a native module whose members are in one block of diffusers."""
    return native, tuple(f"{block}.{member}" for member in members)


def outer_rows(*pairs: tuple[str, str]) -> list[Row]:
    """Return the rows of modules with one member each, from (native, diffusers) names."""
    return [(native, (ours,)) for native, ours in pairs]


def embedder_rows(parent: str, layers: tuple[str, str], **names: str) -> list[Row]:
    """Return the rows of embedders with two layers, which are in one `parent` module in diffusers."""
    return [
        (f"{native}.{layer}", (f"{parent}.{ours}_embedder.linear_{number}",))
        for native, ours in names.items()
        for number, layer in enumerate(layers, 1)
    ]


def double_stream_rows(feed_forward: tuple[str, str]) -> list[Row]:
    """Return the rows of Flux's double-stream blocks; `feed_forward` names the layers in diffusers."""
    block, ours = "double_blocks.{}", "transformer_blocks.{}"
    rows = [
        row(f"{block}.img_attn.qkv", f"{ours}.attn", *QKV),
        row(f"{block}.txt_attn.qkv", f"{ours}.attn", *ADDED),
        row(f"{block}.img_attn.proj", f"{ours}.attn", "to_out.0"),
        row(f"{block}.txt_attn.proj", f"{ours}.attn", "to_add_out"),
    ]
    for stream, ff in (("img_mlp", "ff"), ("txt_mlp", "ff_context")):
        for number, layer in zip((0, 2), feed_forward, strict=True):
            rows.append(row(f"{block}.{stream}.{number}", f"{ours}.{ff}", layer))
    return rows


DOUBLE_ROWS = double_stream_rows(("net.0.proj", "net.2"))
"""Flux.1's double-stream blocks, without modulation."""
SINGLE_ROWS = [
    row("single_blocks.{}.linear1", "single_transformer_blocks.{}", "attn.to_q", "attn.to_k", "attn.to_v",
        "proj_mlp"),
    row("single_blocks.{}.linear2", "single_transformer_blocks.{}", "proj_out"),
]  # fmt: skip
"""Flux.1's single-stream blocks, without modulation."""
DOUBLE_MODULATION_ROWS = outer_rows(
    ("double_blocks.{}.img_mod.lin", "transformer_blocks.{}.norm1.linear"),
    ("double_blocks.{}.txt_mod.lin", "transformer_blocks.{}.norm1_context.linear"),
)
SINGLE_MODULATION_ROWS = outer_rows(
    ("single_blocks.{}.modulation.lin", "single_transformer_blocks.{}.norm.linear")
)
FLUX_ROWS = [*DOUBLE_ROWS, *SINGLE_ROWS]
MODULATION_ROWS = [*DOUBLE_MODULATION_ROWS, *SINGLE_MODULATION_ROWS]
