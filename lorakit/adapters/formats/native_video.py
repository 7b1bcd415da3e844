"""Native module names of video networks, and of HunyuanImage, which has the blocks of HunyuanVideo.

One row for each module, as in `native_tables`. Checked against ComfyUI 0.30 and diffusers 0.42.
"""

from __future__ import annotations

from lorakit.adapters.formats.native_rows import (
    DOUBLE_MODULATION_ROWS,
    DOUBLE_ROWS,
    IN_OUT,
    QKV,
    SINGLE_MODULATION_ROWS,
    SINGLE_ROWS,
    Row,
    embedder_rows,
    outer_rows,
    row,
)


def _hunyuan() -> list[Row]:
    """Return the rows of all of Hunyuan's networks: double-stream blocks, text refiner and ends."""
    native, ours = (
        "txt_in.individual_token_refiner.blocks.{}",
        "context_embedder.token_refiner.refiner_blocks.{}",
    )
    around = "context_embedder.time_text_embed"
    return [
        *DOUBLE_ROWS,
        *DOUBLE_MODULATION_ROWS,
        row(f"{native}.self_attn.qkv", f"{ours}.attn", *QKV),
        row(f"{native}.self_attn.proj", f"{ours}.attn", "to_out.0"),
        row(f"{native}.mlp.0", f"{ours}.ff", "net.0.proj"),
        row(f"{native}.mlp.2", f"{ours}.ff", "net.2"),
        row(f"{native}.adaLN_modulation.1", ours, "norm_out.linear"),
        *outer_rows(
            ("img_in.proj", "x_embedder.proj"),
            ("txt_in.input_embedder", "context_embedder.proj_in"),
            ("txt_in.t_embedder.in_layer", f"{around}.timestep_embedder.linear_1"),
            ("txt_in.t_embedder.out_layer", f"{around}.timestep_embedder.linear_2"),
            ("txt_in.c_embedder.in_layer", f"{around}.text_embedder.linear_1"),
            ("txt_in.c_embedder.out_layer", f"{around}.text_embedder.linear_2"),
            ("final_layer.linear", "proj_out"),
            ("final_layer.adaLN_modulation.1", "norm_out.linear"),
        ),
    ]


_SINGLE = [*SINGLE_ROWS, *SINGLE_MODULATION_ROWS]
_SECOND_TEXT = outer_rows(*((f"byt5_in.fc{n}", f"context_embedder_2.linear_{n}") for n in (1, 2, 3)))
HUNYUAN_IMAGE_ROWS = [
    *_hunyuan(),
    *_SINGLE,
    *_SECOND_TEXT,
    *embedder_rows("time_guidance_embed", IN_OUT, time_in="timestep", guidance_in="guidance",
                   time_r_in="timestep_r"),
]  # fmt: skip
_HUNYUAN_VIDEO_ROWS = [
    *_hunyuan(),
    *_SINGLE,
    *embedder_rows("time_text_embed", IN_OUT, time_in="timestep", vector_in="text", guidance_in="guidance"),
]
_HUNYUAN_VIDEO_15_ROWS = [
    *_hunyuan(),
    *_SECOND_TEXT,
    *embedder_rows("time_embed", IN_OUT, time_in="timestep"),
    *outer_rows(
        ("vision_in.proj.1", "image_embedder.linear_1"), ("vision_in.proj.3", "image_embedder.linear_2")
    ),
]


def _wan() -> list[Row]:
    block = "blocks.{}"
    rows = [
        row(f"{block}.ffn.0", f"{block}.ffn", "net.0.proj"),
        row(f"{block}.ffn.2", f"{block}.ffn", "net.2"),
        row(f"{block}.cross_attn.k_img", f"{block}.attn2", "add_k_proj"),
        row(f"{block}.cross_attn.v_img", f"{block}.attn2", "add_v_proj"),
    ]
    for native, ours in (("self_attn", "attn1"), ("cross_attn", "attn2")):
        for letter, own in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")):
            rows.append(row(f"{block}.{native}.{letter}", f"{block}.{ours}", own))
    around = "condition_embedder"
    return rows + outer_rows(
        ("text_embedding.0", f"{around}.text_embedder.linear_1"),
        ("text_embedding.2", f"{around}.text_embedder.linear_2"),
        ("time_embedding.0", f"{around}.time_embedder.linear_1"),
        ("time_embedding.2", f"{around}.time_embedder.linear_2"),
        ("time_projection.1", f"{around}.time_proj"),
        ("img_emb.proj.1", f"{around}.image_embedder.ff.net.0.proj"),
        ("img_emb.proj.3", f"{around}.image_embedder.ff.net.2"),
        ("head.head", "proj_out"),
    )


def _ltx() -> list[Row]:
    return outer_rows(
        ("patchify_proj", "proj_in"),
        ("adaln_single.linear", "time_embed.linear"),
        ("adaln_single.emb.timestep_embedder.linear_1", "time_embed.emb.timestep_embedder.linear_1"),
        ("adaln_single.emb.timestep_embedder.linear_2", "time_embed.emb.timestep_embedder.linear_2"),
    )


def _cogvideox() -> list[Row]:
    """Return the rows of CogVideoX, whose native names are those of ComfyUI."""
    native, ours = "blocks.{}", "transformer_blocks.{}"
    return [
        *[row(f"{native}.{letter}", f"{ours}.attn1", f"to_{letter}") for letter in "qkv"],
        row(f"{native}.attn_out", f"{ours}.attn1", "to_out.0"),
        row(f"{native}.ff_proj", ours, "ff.net.0.proj"),
        row(f"{native}.ff_out", ours, "ff.net.2"),
        *[row(f"{native}.norm{n}.linear", ours, f"norm{n}.linear") for n in (1, 2)],
        *outer_rows(*((f"time_embedding_linear_{n}", f"time_embedding.linear_{n}") for n in (1, 2))),
        *outer_rows(*((f"ofs_embedding_linear_{n}", f"ofs_embedding.linear_{n}") for n in (1, 2))),
    ]


def _ltx2() -> list[Row]:
    """Return the rows of LTX-2 whose names differ: both streams' embedders and modulations."""
    embedders = {
        "adaln_single": "time_embed",
        "audio_adaln_single": "audio_time_embed",
        "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
        "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
        "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
        "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    }
    endings = ("linear", "emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2")
    rows = [(f"{native}.{end}", f"{ours}.{end}") for native, ours in embedders.items() for end in endings]
    return outer_rows(("patchify_proj", "proj_in"), ("audio_patchify_proj", "audio_proj_in"), *rows)


ROWS = {
    "wan": _wan(),
    "ltx-video": _ltx(),
    "ltx-2": _ltx2(),
    "hunyuan-video": _HUNYUAN_VIDEO_ROWS,
    "hunyuan-video-1.5": _HUNYUAN_VIDEO_15_ROWS,
    "cogvideox": _cogvideox(),
}
"""Rows by family; a family with the network of another one is in `native_tables.SAME_NETWORK`."""
