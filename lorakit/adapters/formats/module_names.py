"""Resolve the key of an adapter file to modules with diffusers' names: `<component>.<module>`.

Programs use different prefixes, separators and block names; they are distinguished by patterns, never by
trying what loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lorakit.adapters.formats import native_names

DENOISERS = ("unet", "transformer", "transformer_2")
"""The last is the second of two experts."""
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")

# Names of diffusers' modules that contain an underscore; every other underscore of kohya was a dot.
_UNDERSCORED_NAMES = """down_blocks up_blocks mid_block transformer_blocks single_transformer_blocks
joint_transformer_blocks double_stream_blocks single_stream_blocks visual_transformer_blocks
text_transformer_blocks mode_blocks txt_mode_blocks refiner_blocks layerwise_blocks noise_refiner
context_refiner token_refiner text_fusion image_cond to_q to_k to_v to_out to_q_t to_k_t to_v_t
to_out_t to_gate add_q_proj add_k_proj add_v_proj to_add_out to_query to_key to_value out_layer
in_layer to_qkv_mlp_proj self_attention cross_attention feed_forward ff_context ff_i ff_t img_mlp
txt_mlp img_mod txt_mod img_in txt_in shared_experts gate_layer proj_in proj_out proj_mlp conv_in
conv_out conv_shortcut conv_inverted conv_depth conv_point time_emb_proj time_embedding
add_embedding class_embedding linear_1 linear_2 linear_3 linear_in linear_out linear_fc2
out_projection gate_proj up_proj norm1_context norm_out adaLN_modulation adaln_modulation
adaln_single context_embedder context_embedder_2 x_embedder x_embedders pos_embed patch_embed
time_embed time_text_embed timestep_embedder text_embedder guidance_embedder time_guidance_embed
caption_projection time_extra_emb k_proj q_proj v_proj c_proj extra_embedder time_step_proj
t_embedder p_embedder pooled_embedder final_layer text_proj time_condition_embed condition_embedder
final_norm final_linear distilled_guidance_layer in_proj out_proj double_stream_modulation_img
double_stream_modulation_txt single_stream_modulation early_stream_modulations
single_stream_modulations image_projector glyph_projector prior_projector input_proj llm_cond_proj
t_embedding mlp_in mlp_out adaln_proj time_embeddings text_embeddings pooled_text_embeddings
visual_embeddings text_modulation visual_modulation time_caption_embed caption_embedder
all_x_embedder all_final_layer cap_embedder time_mod_proj
time_embedder image_embedder time_proj resolution_embedder aspect_ratio_embedder audio_attn1
audio_attn2 audio_ff audio_proj_in audio_proj_out audio_caption_projection audio_time_embed
audio_to_video_attn video_to_audio_attn av_cross_attn_audio_scale_shift
av_cross_attn_video_scale_shift av_cross_attn_audio_v2a_gate av_cross_attn_video_a2v_gate"""
_NAMES = frozenset(_UNDERSCORED_NAMES.split())
_WORD = re.compile(rf"(?:{'|'.join(sorted(_NAMES, key=len, reverse=True))}|[A-Za-z0-9-]+)(?=_|$)")

_CLIP = re.compile(
    r"(?:text_model_)?encoder_layers_(\d+)_(self_attn|mlp)_(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
)
_COMFY_TEXT = re.compile(r"text_encoders\.(clip_l|clip_h|clip_g|t5xxl)\.transformer\.(.+)")
_T5_INDEX = {"flux1": 1, "sd3": 2}
"""Index of the T5 text encoder in families with several."""
_UNET_FAMILIES = (None, "sd15", "sd15-inpaint", "sdxl", "sdxl-inpaint", "kolors")
_UNKNOWN_NATIVE = re.compile(
    r"(?:^|\.)(?:joint|double|single|context|x|input|output|middle)[._](?:blocks?|layers)\."
)
"""Names of native blocks; what no table resolves is not a module of diffusers."""
_T5 = re.compile(r"encoder_block_(\d+)_layer_(\d+)_(SelfAttention|DenseReluDense)_(q|k|v|o|wi_0|wi_1|wi|wo)")
_UNET = re.compile(r"down_blocks|up_blocks|mid_block|conv_in|conv_out|time_embedding|add_embedding")
_LDM_BLOCK = re.compile(
    r"(?P<input>input_blocks_(?P<i>\d+)_(?P<ip>[01])_(?P<it>.+))|(?P<middle>middle_block_(?P<mp>[012])_(?P<mt>.+))"
    r"|(?P<output>output_blocks_(?P<o>\d+)_(?P<op>[012])_(?P<ot>.+))"
)
_LDM_OUTER_MODULES = {
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
}
_LDM_RESNET_MODULES = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}


def kohya_to_dotted(name: str) -> str:
    """`down_blocks_0_attentions_1_proj_in` -> `down_blocks.0.attentions.1.proj_in`."""
    return ".".join(_WORD.findall(name))


def dotted_to_kohya(module: str) -> str:
    """Return a module's path with kohya's underscores."""
    return module.replace(".", "_")


def with_text_model_prefix(module: str) -> str:
    """Return a CLIP module's path with `text_model.`, which files have and new libraries do not."""
    return f"text_model.{module}" if module.startswith("encoder.layers.") else module


def resolve_key(stem: str, family: str | None) -> list[str] | None:
    """Return the modules that the stem of a key names, as `<component>.<module>`; None if it is unknown.

    `family` is needed for native names; a fused layer has several modules.
    """
    for prefix, number in (("lora_te_", 0), ("lora_te1_", 0), ("lora_te2_", 1), ("lora_te3_", 2)):
        if stem.startswith(prefix):
            module = _text_encoder_module(stem.removeprefix(prefix))
            return None if module is None else [f"{TEXT_ENCODERS[number]}.{module}"]
    if match := _COMFY_TEXT.fullmatch(stem):
        index = {"clip_g": 1, "t5xxl": _T5_INDEX.get(family or "", 0)}.get(match[1], 0)
        return [f"{TEXT_ENCODERS[index]}.{with_text_model_prefix(match[2])}"]
    for component in TEXT_ENCODERS:
        if stem.startswith(f"{component}."):
            return [f"{component}.{with_text_model_prefix(stem.removeprefix(f'{component}.'))}"]
    for component in DENOISERS:
        if stem.startswith(f"{component}."):
            return _resolve_dotted(stem.removeprefix(f"{component}."), component, family)
    for prefix in ("base_model.model.", "diffusion_model.", "model.diffusion_model."):
        if stem.startswith(prefix):
            return resolve_unprefixed_key(stem.removeprefix(prefix), family)
    for prefix in ("lora_unet_", "lora_transformer_", "lycoris_", "lora_prior_unet_"):
        if stem.startswith(prefix):
            return _resolve_underscored(stem.removeprefix(prefix), family)
    if "." in stem or stem in _NAMES or native_names.diffusers_modules(family, stem):
        return resolve_unprefixed_key(stem, family)
    return None


def resolve_unprefixed_key(path: str, family: str | None) -> list[str] | None:
    """Resolve a path without a component: files of peft, and native names."""
    if path.startswith(tuple(f"{part}." for part in (*DENOISERS, *TEXT_ENCODERS))):
        return resolve_key(path, family)
    if module := _ldm_unet_module(dotted_to_kohya(path)):
        return [f"unet.{module}"]
    return _resolve_dotted(path, "unet" if _is_unet_name(path, family) else "transformer", family)


def _is_unet_name(name: str, family: str | None) -> bool:
    return family in _UNET_FAMILIES and _UNET.match(name) is not None


def _resolve_dotted(path: str, component: str, family: str | None) -> list[str] | None:
    modules = None
    if component != "unet" and not native_names.native_module(family, path):
        modules = native_names.diffusers_modules(family, path)
    if modules is None and _UNKNOWN_NATIVE.search(path):
        return None
    return [f"{component}.{module}" for module in modules or [path]]


def _resolve_underscored(name: str, family: str | None) -> list[str] | None:
    if module := _ldm_unet_module(name):
        return [f"unet.{module}"]
    if _is_unet_name(name, family):
        return [f"unet.{kohya_to_dotted(name)}"]
    if modules := native_names.diffusers_modules(family, name):
        return [f"transformer.{module}" for module in modules]
    module = kohya_to_dotted(name)
    is_resolved = dotted_to_kohya(module) == name and not _UNKNOWN_NATIVE.search(module)
    return [f"transformer.{module}"] if is_resolved else None


def _text_encoder_module(name: str) -> str | None:
    if match := _CLIP.fullmatch(name):
        return "text_model.encoder.layers.{}.{}.{}".format(*match.groups())
    if match := _T5.fullmatch(name):
        return "encoder.block.{}.layer.{}.{}.{}".format(*match.groups())
    return "text_projection" if name == "text_projection" else None


def _ldm_unet_module(name: str) -> str | None:
    """Return the module of a U-Net key in Stable Diffusion's original numbering, two resnets a level."""
    if name in _LDM_OUTER_MODULES:
        return _LDM_OUTER_MODULES[name]
    match = _LDM_BLOCK.fullmatch(name)
    if match is None:
        return None
    if match["middle"]:
        part = int(match["mp"])
        return _unet_block_module(
            "mid_block", part // 2, "attentions" if part == 1 else "resnets", match["mt"]
        )
    if match["input"]:
        level, layer = divmod(int(match["i"]) - 1, 3)
        if layer == 2:
            return f"down_blocks.{level}.downsamplers.0.conv" if match["it"] == "op" else None
        return _unet_block_module(
            f"down_blocks.{level}", layer, "attentions" if match["ip"] == "1" else "resnets", match["it"]
        )
    level, layer = divmod(int(match["o"]), 3)
    if match["ot"] == "conv":
        return f"up_blocks.{level}.upsamplers.0.conv"
    return _unet_block_module(
        f"up_blocks.{level}", layer, "attentions" if match["op"] == "1" else "resnets", match["ot"]
    )


def _unet_block_module(block: str, layer: int, group: str, rest: str) -> str | None:
    inner = kohya_to_dotted(rest) if group == "attentions" else _LDM_RESNET_MODULES.get(rest)
    return f"{block}.{group}.{layer}.{inner}" if inner else None


def component_names(modules: Iterable[str]) -> list[str]:
    """Return the components of full module names, sorted."""
    return sorted({module.split(".", 1)[0] for module in modules})
