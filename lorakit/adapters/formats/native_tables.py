"""Module names of the published networks, which ComfyUI and trainers for these networks use.

One row for each module: its native name, and the diffusers modules that it consists of, in order. `{}` is the
number of a block. Checked against ComfyUI 0.30 (its model classes) and diffusers 0.42 (the shapes). Video
networks are in `native_video`.
"""

from __future__ import annotations

from lorakit.adapters.formats import native_video
from lorakit.adapters.formats.native_rows import (
    ADDED,
    FLUX_ROWS,
    IN_OUT,
    MLP,
    MODULATION_ROWS,
    QKV,
    NameRow,
    Row,
    double_stream_rows,
    embedder_rows,
    outer_rows,
    row,
)

_FLUX_ENDS = outer_rows(
    ("img_in", "x_embedder"), ("txt_in", "context_embedder"), ("final_layer.linear", "proj_out")
)
_FLUX1_ROWS = [
    *FLUX_ROWS,
    *MODULATION_ROWS,
    *_FLUX_ENDS,
    *embedder_rows("time_text_embed", IN_OUT, time_in="timestep", vector_in="text", guidance_in="guidance"),
    ("final_layer.adaLN_modulation.1", ("norm_out.linear",)),
]
_FLUX2 = [
    *double_stream_rows(("linear_in", "linear_out")),
    ("single_blocks.{}.linear1", ("single_transformer_blocks.{}.attn.to_qkv_mlp_proj",)),
    ("single_blocks.{}.linear2", ("single_transformer_blocks.{}.attn.to_out",)),
    *_FLUX_ENDS,
    *embedder_rows("time_guidance_embed", IN_OUT, time_in="timestep", guidance_in="guidance"),
    *outer_rows(
        ("double_stream_modulation_img.lin", "double_stream_modulation_img.linear"),
        ("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear"),
        ("single_stream_modulation.lin", "single_stream_modulation.linear"),
        ("final_layer.adaLN_modulation.1", "norm_out.linear"),
    ),
]
_CHROMA = [
    *FLUX_ROWS,
    *_FLUX_ENDS,
    ("distilled_guidance_layer.layers.{}.in_layer", ("distilled_guidance_layer.layers.{}.linear_1",)),
    ("distilled_guidance_layer.layers.{}.out_layer", ("distilled_guidance_layer.layers.{}.linear_2",)),
]


def _sd3() -> list[Row]:
    block, ours = "joint_blocks.{}", "transformer_blocks.{}"
    rows = [
        row(f"{block}.x_block.attn.qkv", f"{ours}.attn", *QKV),
        row(f"{block}.context_block.attn.qkv", f"{ours}.attn", *ADDED),
        row(f"{block}.x_block.attn2.qkv", f"{ours}.attn2", *QKV),
        row(f"{block}.x_block.attn.proj", f"{ours}.attn", "to_out.0"),
        row(f"{block}.context_block.attn.proj", f"{ours}.attn", "to_add_out"),
        row(f"{block}.x_block.attn2.proj", f"{ours}.attn2", "to_out.0"),
    ]
    for stream, ff, norm in (("x_block", "ff", "norm1"), ("context_block", "ff_context", "norm1_context")):
        rows += [
            row(f"{block}.{stream}.mlp.fc1", f"{ours}.{ff}", "net.0.proj"),
            row(f"{block}.{stream}.mlp.fc2", f"{ours}.{ff}", "net.2"),
            (f"{block}.{stream}.adaLN_modulation.1", (f"{ours}.{norm}.linear",)),
        ]
    rows += embedder_rows("time_text_embed", MLP, t_embedder="timestep", y_embedder="text")
    return rows + outer_rows(
        ("x_embedder.proj", "pos_embed.proj"),
        ("final_layer.linear", "proj_out"),
        ("final_layer.adaLN_modulation.1", "norm_out.linear"),
    )


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
    rows += [
        ("double_layers.{}.modX.1", (f"{ours}.norm1.linear",)),
        ("double_layers.{}.modC.1", (f"{ours}.norm1_context.linear",)),
        ("single_layers.{}.modCX.1", (f"{alone}.norm1.linear",)),
    ]
    return rows + outer_rows(
        ("cond_seq_linear", "context_embedder"),
        ("init_x_linear", "pos_embed.proj"),
        ("t_embedder.mlp.0", "time_step_proj.linear_1"),
        ("t_embedder.mlp.2", "time_step_proj.linear_2"),
        ("final_linear", "proj_out"),
        ("modF.1", "norm_out.linear"),
    )


def _lumina(attention: str, feed_forward: tuple[str, str, str], ends: list[Row]) -> list[Row]:
    rows = [*ends]
    for block in ("layers.{}", "context_refiner.{}", "noise_refiner.{}"):
        rows += [
            row(f"{block}.attention.qkv", f"{block}.{attention}", *QKV),
            row(f"{block}.attention.out", f"{block}.{attention}", "to_out.0"),
        ]
        rows += [
            (f"{block}.feed_forward.w{number}", (f"{block}.feed_forward.{layer}",))
            for number, layer in enumerate(feed_forward, 1)
        ]
    return rows


def _hunyuan_dit() -> list[Row]:
    block = "blocks.{}"
    return [
        row(f"{block}.attn1.Wqkv", f"{block}.attn1", *QKV),
        row(f"{block}.attn1.out_proj", f"{block}.attn1", "to_out.0"),
        row(f"{block}.attn2.q_proj", f"{block}.attn2", "to_q"),
        row(f"{block}.attn2.kv_proj", f"{block}.attn2", "to_k", "to_v"),
        row(f"{block}.attn2.out_proj", f"{block}.attn2", "to_out.0"),
        row(f"{block}.mlp.fc1", f"{block}.ff", "net.0.proj"),
        row(f"{block}.mlp.fc2", f"{block}.ff", "net.2"),
    ]


def _pixart() -> list[Row]:
    native, ours = "blocks.{}", "transformer_blocks.{}"
    return [
        row(f"{native}.attn.qkv", f"{ours}.attn1", *QKV),
        row(f"{native}.attn.proj", f"{ours}.attn1", "to_out.0"),
        row(f"{native}.cross_attn.q_linear", f"{ours}.attn2", "to_q"),
        row(f"{native}.cross_attn.kv_linear", f"{ours}.attn2", "to_k", "to_v"),
        row(f"{native}.cross_attn.proj", f"{ours}.attn2", "to_out.0"),
        row(f"{native}.mlp.fc1", f"{ours}.ff", "net.0.proj"),
        row(f"{native}.mlp.fc2", f"{ours}.ff", "net.2"),
        *embedder_rows("adaln_single.emb", MLP, t_embedder="timestep", csize_embedder="resolution",
                    ar_embedder="aspect_ratio"),
        *outer_rows(
            ("t_block.1", "adaln_single.linear"),
            ("y_embedder.y_proj.fc1", "caption_projection.linear_1"),
            ("y_embedder.y_proj.fc2", "caption_projection.linear_2"),
            ("x_embedder.proj", "pos_embed.proj"),
            ("final_layer.linear", "proj_out"),
        ),
    ]  # fmt: skip


_IDEOGRAM4 = [
    row("layers.{}.attention.qkv", "layers.{}.attention", *QKV),
    row("layers.{}.attention.o", "layers.{}.attention", "to_out.0"),
    *[row(f"layers.{{}}.feed_forward.w{n}", "layers.{}.feed_forward", f"w{n}") for n in (1, 2, 3)],
]


def _krea2() -> list[Row]:
    rows = outer_rows(
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
            rows.append(row(f"{native}.attn.{name}", f"{ours}.attn", own))
        rows += [row(f"{native}.mlp.{name}", f"{ours}.ff", name) for name in ("down", "gate", "up")]
    return rows


_LUMINA_ENDS = outer_rows(
    ("t_embedder.mlp.0", "time_caption_embed.timestep_embedder.linear_1"),
    ("t_embedder.mlp.2", "time_caption_embed.timestep_embedder.linear_2"),
    ("cap_embedder.1", "time_caption_embed.caption_embedder.1"),
    ("layers.{}.adaLN_modulation.1", "layers.{}.norm1.linear"),
    ("noise_refiner.{}.adaLN_modulation.1", "noise_refiner.{}.norm1.linear"),
    ("final_layer.adaLN_modulation.1", "norm_out.linear_1"),
    ("final_layer.linear", "norm_out.linear_2"),
)
_Z_IMAGE_ENDS = outer_rows(
    ("x_embedder", "all_x_embedder.2-1"),
    ("final_layer.linear", "all_final_layer.2-1.linear"),
    ("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1"),
)
_HUNYUAN_DIT_ENDS = [
    *embedder_rows("time_extra_emb", MLP, t_embedder="timestep"),
    *embedder_rows("time_extra_emb", ("0", "2"), extra_embedder="extra"),
    *outer_rows(
        ("mlp_t5.0", "text_embedder.linear_1"),
        ("mlp_t5.2", "text_embedder.linear_2"),
        ("x_embedder.proj", "pos_embed.proj"),
        ("blocks.{}.default_modulation.1", "blocks.{}.norm1.linear"),
        ("final_layer.linear", "proj_out"),
        ("final_layer.adaLN_modulation.1", "norm_out.linear"),
        *((f"pooler.{name}_proj", f"time_extra_emb.pooler.{name}_proj") for name in "qkvc"),
    ),
]


def _cosmos() -> list[Row]:
    native, ours = "blocks.{}", "transformer_blocks.{}"
    rows = [
        row(f"{native}.mlp.layer1", f"{ours}.ff", "net.0.proj"),
        row(f"{native}.mlp.layer2", f"{ours}.ff", "net.2"),
    ]
    for attention, own in (("self_attn", "attn1"), ("cross_attn", "attn2")):
        rows += [
            row(f"{native}.{attention}.{letter}_proj", f"{ours}.{own}", f"to_{letter}") for letter in "qkv"
        ]
        rows.append(row(f"{native}.{attention}.output_proj", f"{ours}.{own}", "to_out.0"))
    for depth in (1, 2):
        rows += [
            row(f"{native}.adaln_modulation_{name}.{depth}", f"{ours}.norm{number}", f"linear_{depth}")
            for number, name in enumerate(("self_attn", "cross_attn", "mlp"), 1)
        ]
        rows.append((f"final_layer.adaln_modulation.{depth}", (f"norm_out.linear_{depth}",)))
        rows.append((f"t_embedder.1.linear_{depth}", (f"time_embed.t_embedder.linear_{depth}",)))
    return rows + outer_rows(("x_embedder.proj.1", "patch_embed.proj"), ("final_layer.linear", "proj_out"))


_ROWS: dict[str, list[Row]] = {
    "anima": _cosmos(),
    "sd3": _sd3(),
    "flux1": _FLUX1_ROWS,
    "chroma": _CHROMA,
    "longcat-image": [
        *[one for one in _FLUX1_ROWS if not one[1][0].startswith("time_text_embed")],
        *embedder_rows("time_embed", IN_OUT, time_in="timestep"),
    ],
    "flux2": _FLUX2,
    "auraflow": _auraflow(),
    "lumina2": _lumina("attn", ("linear_1", "linear_2", "linear_3"), _LUMINA_ENDS),
    "z-image": _lumina("attention", ("w1", "w2", "w3"), _Z_IMAGE_ENDS),
    "hunyuan-image": native_video.HUNYUAN_IMAGE_ROWS,
    "hunyuan-dit": [*_hunyuan_dit(), *_HUNYUAN_DIT_ENDS],
    "pixart-sigma": _pixart(),
    "ideogram4": _IDEOGRAM4,
    "krea2": _krea2(),
} | native_video.ROWS
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
    "wan-i2v": "wan",
}
"""Families with the network of another one, except for the width of its first layer."""
