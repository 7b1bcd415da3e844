"""Module names of the published networks, which ComfyUI and trainers for these networks use.

One row for each module: its native name, and the diffusers modules that it consists of, in order. `{}` is the
number of a block. Checked against ComfyUI 0.19 (its model classes) and diffusers 0.42 (the shapes).
"""

from __future__ import annotations

from typing import NamedTuple


class NameRow(NamedTuple):
    """A native module, and its diffusers modules."""

    native: str
    members: tuple[str, ...]


_Row = tuple[str, tuple[str, ...]]

_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


def _row(native: str, block: str, *members: str) -> _Row:
    return native, tuple(f"{block}.{member}" for member in members)


def _double_stream_rows(feed_forward: tuple[str, str]) -> list[_Row]:
    """Return the rows of Flux's double-stream blocks; `feed_forward` names the layers in diffusers."""
    block, ours = "double_blocks.{}", "transformer_blocks.{}"
    rows = [
        _row(f"{block}.img_attn.qkv", f"{ours}.attn", *_QKV),
        _row(f"{block}.txt_attn.qkv", f"{ours}.attn", *_ADDED),
        _row(f"{block}.img_attn.proj", f"{ours}.attn", "to_out.0"),
        _row(f"{block}.txt_attn.proj", f"{ours}.attn", "to_add_out"),
    ]
    for stream, ff in (("img_mlp", "ff"), ("txt_mlp", "ff_context")):
        for number, layer in zip((0, 2), feed_forward, strict=True):
            rows.append(_row(f"{block}.{stream}.{number}", f"{ours}.{ff}", layer))
    return rows


def _outer_rows(*pairs: tuple[str, str]) -> list[_Row]:
    """Return the rows of modules outside blocks, from (native, diffusers) names."""
    return [(native, (ours,)) for native, ours in pairs]


def _embedder_rows(parent: str, layers: tuple[str, str], **names: str) -> list[_Row]:
    """Return the rows of embedders with two layers, which are in one `parent` module in diffusers."""
    return [
        (f"{native}.{layer}", (f"{parent}.{ours}_embedder.linear_{number}",))
        for native, ours in names.items()
        for number, layer in enumerate(layers, 1)
    ]


_FLUX = [
    *_double_stream_rows(("net.0.proj", "net.2")),
    ("single_blocks.{}.linear1", tuple(f"single_transformer_blocks.{{}}.{m}" for m in (
        "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))),
    ("single_blocks.{}.linear2", ("single_transformer_blocks.{}.proj_out",)),
]  # fmt: skip
_IN_OUT = ("in_layer", "out_layer")
_FLUX_ENDS = _outer_rows(
    ("img_in", "x_embedder"), ("txt_in", "context_embedder"), ("final_layer.linear", "proj_out")
)
_MODULATIONS = [
    ("double_blocks.{}.img_mod.lin", ("transformer_blocks.{}.norm1.linear",)),
    ("double_blocks.{}.txt_mod.lin", ("transformer_blocks.{}.norm1_context.linear",)),
    ("single_blocks.{}.modulation.lin", ("single_transformer_blocks.{}.norm.linear",)),
]
_FLUX1_ROWS = [
    *_FLUX,
    *_MODULATIONS,
    *_FLUX_ENDS,
    *_embedder_rows("time_text_embed", _IN_OUT, time_in="timestep", vector_in="text", guidance_in="guidance"),
    ("final_layer.adaLN_modulation.1", ("norm_out.linear",)),
]
_FLUX2 = [
    *_double_stream_rows(("linear_in", "linear_out")),
    ("single_blocks.{}.linear1", ("single_transformer_blocks.{}.attn.to_qkv_mlp_proj",)),
    ("single_blocks.{}.linear2", ("single_transformer_blocks.{}.attn.to_out",)),
    *_FLUX_ENDS,
    *_embedder_rows("time_guidance_embed", _IN_OUT, time_in="timestep", guidance_in="guidance"),
    *_outer_rows(
        ("double_stream_modulation_img.lin", "double_stream_modulation_img.linear"),
        ("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear"),
        ("single_stream_modulation.lin", "single_stream_modulation.linear"),
        ("final_layer.adaLN_modulation.1", "norm_out.linear"),
    ),
]
_CHROMA = [
    *_FLUX,
    *_FLUX_ENDS,
    ("distilled_guidance_layer.layers.{}.in_layer", ("distilled_guidance_layer.layers.{}.linear_1",)),
    ("distilled_guidance_layer.layers.{}.out_layer", ("distilled_guidance_layer.layers.{}.linear_2",)),
]


_MLP = ("mlp.0", "mlp.2")


def _sd3() -> list[_Row]:
    block, ours = "joint_blocks.{}", "transformer_blocks.{}"
    rows = [
        _row(f"{block}.x_block.attn.qkv", f"{ours}.attn", *_QKV),
        _row(f"{block}.context_block.attn.qkv", f"{ours}.attn", *_ADDED),
        _row(f"{block}.x_block.attn2.qkv", f"{ours}.attn2", *_QKV),
        _row(f"{block}.x_block.attn.proj", f"{ours}.attn", "to_out.0"),
        _row(f"{block}.context_block.attn.proj", f"{ours}.attn", "to_add_out"),
        _row(f"{block}.x_block.attn2.proj", f"{ours}.attn2", "to_out.0"),
    ]
    for stream, ff, norm in (("x_block", "ff", "norm1"), ("context_block", "ff_context", "norm1_context")):
        rows += [
            _row(f"{block}.{stream}.mlp.fc1", f"{ours}.{ff}", "net.0.proj"),
            _row(f"{block}.{stream}.mlp.fc2", f"{ours}.{ff}", "net.2"),
            (f"{block}.{stream}.adaLN_modulation.1", (f"{ours}.{norm}.linear",)),
        ]
    rows += _embedder_rows("time_text_embed", _MLP, t_embedder="timestep", y_embedder="text")
    return rows + _outer_rows(
        ("x_embedder.proj", "pos_embed.proj"),
        ("final_layer.linear", "proj_out"),
        ("final_layer.adaLN_modulation.1", "norm_out.linear"),
    )


def _auraflow() -> list[_Row]:
    double, single = "double_layers.{}.attn", "single_layers.{}.attn"
    ours, alone = "joint_transformer_blocks.{}", "single_transformer_blocks.{}"
    rows: list[_Row] = []
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
    rows += [
        ("double_layers.{}.modX.1", (f"{ours}.norm1.linear",)),
        ("double_layers.{}.modC.1", (f"{ours}.norm1_context.linear",)),
        ("single_layers.{}.modCX.1", (f"{alone}.norm1.linear",)),
    ]
    return rows + _outer_rows(
        ("cond_seq_linear", "context_embedder"),
        ("init_x_linear", "pos_embed.proj"),
        ("t_embedder.mlp.0", "time_step_proj.linear_1"),
        ("t_embedder.mlp.2", "time_step_proj.linear_2"),
        ("final_linear", "proj_out"),
        ("modF.1", "norm_out.linear"),
    )


def _lumina(attention: str, feed_forward: tuple[str, str, str]) -> list[_Row]:
    rows: list[_Row] = []
    for block in ("layers.{}", "context_refiner.{}", "noise_refiner.{}"):
        rows += [
            _row(f"{block}.attention.qkv", f"{block}.{attention}", *_QKV),
            _row(f"{block}.attention.out", f"{block}.{attention}", "to_out.0"),
        ]
        rows += [
            (f"{block}.feed_forward.w{number}", (f"{block}.feed_forward.{layer}",))
            for number, layer in enumerate(feed_forward, 1)
        ]
    return rows


def _hunyuan_image() -> list[_Row]:
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


def _hunyuan_dit() -> list[_Row]:
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


def _pixart() -> list[_Row]:
    native, ours = "blocks.{}", "transformer_blocks.{}"
    return [
        _row(f"{native}.attn.qkv", f"{ours}.attn1", *_QKV),
        _row(f"{native}.attn.proj", f"{ours}.attn1", "to_out.0"),
        _row(f"{native}.cross_attn.q_linear", f"{ours}.attn2", "to_q"),
        _row(f"{native}.cross_attn.kv_linear", f"{ours}.attn2", "to_k", "to_v"),
        _row(f"{native}.cross_attn.proj", f"{ours}.attn2", "to_out.0"),
        _row(f"{native}.mlp.fc1", f"{ours}.ff", "net.0.proj"),
        _row(f"{native}.mlp.fc2", f"{ours}.ff", "net.2"),
        *_embedder_rows("adaln_single.emb", _MLP, t_embedder="timestep", csize_embedder="resolution",
                    ar_embedder="aspect_ratio"),
        *_outer_rows(
            ("t_block.1", "adaln_single.linear"),
            ("y_embedder.y_proj.fc1", "caption_projection.linear_1"),
            ("y_embedder.y_proj.fc2", "caption_projection.linear_2"),
            ("x_embedder.proj", "pos_embed.proj"),
            ("final_layer.linear", "proj_out"),
        ),
    ]  # fmt: skip


_IDEOGRAM4 = [
    _row("layers.{}.attention.qkv", "layers.{}.attention", *_QKV),
    _row("layers.{}.attention.o", "layers.{}.attention", "to_out.0"),
    *[_row(f"layers.{{}}.feed_forward.w{n}", "layers.{}.feed_forward", f"w{n}") for n in (1, 2, 3)],
]


def _krea2() -> list[_Row]:
    rows = _outer_rows(
        ("first", "img_in"),
        ("last.linear", "final_layer.linear"),
        ("tmlp.0", "time_embed.linear_1"),
        ("tmlp.2", "time_embed.linear_2"),
        ("tproj.1", "time_mod_proj"),
        ("txtmlp.1", "txt_in.linear_1"),
        ("txtmlp.3", "txt_in.linear_2"),
        ("txtfusion.projector", "text_fusion.projector"),
    )
    for native, ours in (
        ("blocks.{}", "transformer_blocks.{}"),
        ("txtfusion.layerwise_blocks.{}", "text_fusion.layerwise_blocks.{}"),
        ("txtfusion.refiner_blocks.{}", "text_fusion.refiner_blocks.{}"),
    ):
        for name, own in (
            ("wq", "to_q"),
            ("wk", "to_k"),
            ("wv", "to_v"),
            ("wo", "to_out.0"),
            ("gate", "to_gate"),
        ):
            rows.append(_row(f"{native}.attn.{name}", f"{ours}.attn", own))
        rows += [_row(f"{native}.mlp.{name}", f"{ours}.ff", name) for name in ("down", "gate", "up")]
    return rows


def _wan() -> list[_Row]:
    block = "blocks.{}"
    rows = [
        _row(f"{block}.ffn.0", f"{block}.ffn", "net.0.proj"),
        _row(f"{block}.ffn.2", f"{block}.ffn", "net.2"),
        _row(f"{block}.cross_attn.k_img", f"{block}.attn2", "add_k_proj"),
        _row(f"{block}.cross_attn.v_img", f"{block}.attn2", "add_v_proj"),
    ]
    for native, ours in (("self_attn", "attn1"), ("cross_attn", "attn2")):
        for letter, own in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")):
            rows.append(_row(f"{block}.{native}.{letter}", f"{block}.{ours}", own))
    around = "condition_embedder"
    return rows + _outer_rows(
        ("text_embedding.0", f"{around}.text_embedder.linear_1"),
        ("text_embedding.2", f"{around}.text_embedder.linear_2"),
        ("time_embedding.0", f"{around}.time_embedder.linear_1"),
        ("time_embedding.2", f"{around}.time_embedder.linear_2"),
        ("time_projection.1", f"{around}.time_proj"),
        ("img_emb.proj.1", f"{around}.image_embedder.ff.net.0.proj"),
        ("img_emb.proj.3", f"{around}.image_embedder.ff.net.2"),
        ("head.head", "proj_out"),
    )


def _ltx() -> list[_Row]:
    return _outer_rows(
        ("patchify_proj", "proj_in"),
        ("adaln_single.linear", "time_embed.linear"),
        ("adaln_single.emb.timestep_embedder.linear_1", "time_embed.emb.timestep_embedder.linear_1"),
        ("adaln_single.emb.timestep_embedder.linear_2", "time_embed.emb.timestep_embedder.linear_2"),
    )


def _cosmos() -> list[_Row]:
    native, ours = "blocks.{}", "transformer_blocks.{}"
    rows = [
        _row(f"{native}.mlp.layer1", f"{ours}.ff", "net.0.proj"),
        _row(f"{native}.mlp.layer2", f"{ours}.ff", "net.2"),
    ]
    for attention, own in (("self_attn", "attn1"), ("cross_attn", "attn2")):
        rows += [
            _row(f"{native}.{attention}.{letter}_proj", f"{ours}.{own}", f"to_{letter}") for letter in "qkv"
        ]
        rows.append(_row(f"{native}.{attention}.output_proj", f"{ours}.{own}", "to_out.0"))
    for depth in (1, 2):
        rows += [
            _row(f"{native}.adaln_modulation_{name}.{depth}", f"{ours}.norm{number}", f"linear_{depth}")
            for number, name in enumerate(("self_attn", "cross_attn", "mlp"), 1)
        ]
        rows.append((f"final_layer.adaln_modulation.{depth}", (f"norm_out.linear_{depth}",)))
        rows.append((f"t_embedder.1.linear_{depth}", (f"time_embed.t_embedder.linear_{depth}",)))
    return rows + _outer_rows(("x_embedder.proj.1", "patch_embed.proj"), ("final_layer.linear", "proj_out"))


_ROWS: dict[str, list[_Row]] = {
    "anima": _cosmos(),
    "sd3": _sd3(),
    "flux1": _FLUX1_ROWS,
    "chroma": _CHROMA,
    "longcat-image": _FLUX1_ROWS,
    "flux2": _FLUX2,
    "auraflow": _auraflow(),
    "lumina2": _lumina("attn", ("linear_1", "linear_2", "linear_3")),
    "z-image": _lumina("attention", ("w1", "w2", "w3")),
    "hunyuan-image": _hunyuan_image(),
    "hunyuan-dit": _hunyuan_dit(),
    "pixart-sigma": _pixart(),
    "ideogram4": _IDEOGRAM4,
    "krea2": _krea2(),
    "wan": _wan(),
    "ltx-video": _ltx(),
    "hunyuan-video": [*_hunyuan_image(), *_MODULATIONS],
}
NATIVE_NAMES = {family: [NameRow(*row) for row in rows] for family, rows in _ROWS.items()}
"""Rows by family."""
DIFFUSERS_NAMED_FAMILIES = ("qwen-image", "hidream", "kandinsky5", "ernie-image")
"""Families whose native names are those of diffusers."""
SAME_NETWORK = {
    "flux1-kontext": "flux1",
    "flux1-fill": "flux1",
    "flux1-control": "flux1",
    "longcat-image-edit": "longcat-image",
    "pixart-alpha": "pixart-sigma",
    "qwen-image-edit": "qwen-image",
    "qwen-image-edit-plus": "qwen-image",
}
"""Families with the network of another one, except for the width of its first layer."""
