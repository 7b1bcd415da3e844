"""Modules of published networks that diffusers names in the same way, and their norms.

With the rows of `native_tables` these are all weights of a network, which a program that looks up every
weight reads. `{}` is a number, and `(a|b)` stands for several names. Names of ComfyUI 0.30's model classes.
"""

from __future__ import annotations

import itertools
import re

_QWEN = """time_text_embed.timestep_embedder.linear_(1|2) img_in txt_in norm_out.linear proj_out
transformer_blocks.{}.(img_mod.1|txt_mod.1|img_mlp.net.0.proj|img_mlp.net.2|txt_mlp.net.0.proj|txt_mlp.net.2)
transformer_blocks.{}.attn.(to_q|to_k|to_v|to_out.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"""
_HIDREAM_FF = "block.ff_i.(shared_experts|experts.{}).(w1|w2|w3)"
_LTX = """caption_projection.linear_(1|2) proj_out transformer_blocks.{}.ff.net.(0.proj|2)
transformer_blocks.{}.(attn1|attn2).(to_q|to_k|to_v|to_out.0)"""
_KANDINSKY_ATTENTION = "(to_query|to_key|to_value|out_layer)"
_SAME_NAMED = {
    "qwen-image": _QWEN,
    "hidream": f"""x_embedder.proj final_layer.linear final_layer.adaLN_modulation.1
        caption_projection.{{}}.linear
        t_embedder.timestep_embedder.linear_(1|2) p_embedder.pooled_embedder.linear_(1|2)
        (double|single)_stream_blocks.{{}}.block.adaLN_modulation.1
        (double|single)_stream_blocks.{{}}.block.attn1.(to_q|to_k|to_v|to_out)
        (double|single)_stream_blocks.{{}}.{_HIDREAM_FF} double_stream_blocks.{{}}.block.ff_t.(w1|w2|w3)
        double_stream_blocks.{{}}.block.attn1.(to_q_t|to_k_t|to_v_t|to_out_t)""",
    "kandinsky5": f"""time_embeddings.(in|out)_layer (text|pooled_text|visual)_embeddings.in_layer
        out_layer.modulation.out_layer out_layer.out_layer
        text_transformer_blocks.{{}}.text_modulation.out_layer
        (text|visual)_transformer_blocks.{{}}.feed_forward.(in|out)_layer
        (text|visual)_transformer_blocks.{{}}.self_attention.{_KANDINSKY_ATTENTION}
        visual_transformer_blocks.{{}}.cross_attention.{_KANDINSKY_ATTENTION}
        visual_transformer_blocks.{{}}.visual_modulation.out_layer""",
    "ernie-image": """x_embedder.proj text_proj time_embedding.linear_(1|2) adaLN_modulation.1
        final_norm.linear final_linear layers.{}.self_attention.(to_q|to_k|to_v|to_out.0)
        layers.{}.mlp.(gate_proj|up_proj|linear_fc2)""",
    "ltx-video": _LTX,
    "ltx-2": f"""{_LTX} audio_caption_projection.linear_(1|2) audio_proj_out
        transformer_blocks.{{}}.audio_ff.net.(0.proj|2)
        transformer_blocks.{{}}.(audio_attn1|audio_attn2).(to_q|to_k|to_v|to_out.0)
        transformer_blocks.{{}}.(audio_to_video_attn|video_to_audio_attn).(to_q|to_k|to_v|to_out.0)""",
    "ideogram4": """input_proj llm_cond_proj t_embedding.(mlp_in|mlp_out) adaln_proj
        layers.{}.adaln_modulation
        final_layer.(linear|adaln_modulation)""",
    "z-image": "(noise_refiner|layers).{}.adaLN_modulation.0 t_embedder.mlp.(0|2) cap_embedder.1",
    "chroma": "distilled_guidance_layer.(in_proj|out_proj)",
    "hunyuan-dit": "blocks.{}.skip_linear",
    "cogvideox": "patch_embed.(proj|text_proj) norm_out.linear proj_out",
    "lumina2": "x_embedder",
    "sd3": "context_embedder",
    "wan": "patch_embedding",
}
_FLUX_NORMS = """double_blocks.{}.(img_attn|txt_attn).norm.(query_norm|key_norm)
single_blocks.{}.norm.(query_norm|key_norm)"""
_HUNYUAN_NORMS = f"{_FLUX_NORMS} txt_in.individual_token_refiner.blocks.{{}}.(norm1|norm2) byt5_in.layernorm"
_LTX_NORMS = "transformer_blocks.{}.(attn1|attn2).(q_norm|k_norm)"
_LUMINA_NORMS = """(layers|context_refiner|noise_refiner).{}.attention.(q_norm|k_norm) cap_embedder.0
(layers|context_refiner|noise_refiner).{}.(attention_norm1|attention_norm2|ffn_norm1|ffn_norm2)"""
_NORMS = {
    "sd3": "joint_blocks.{}.(x_block.attn|x_block.attn2|context_block.attn).(ln_q|ln_k)",
    "flux1": _FLUX_NORMS,
    "longcat-image": _FLUX_NORMS,
    "flux2": _FLUX_NORMS,
    "chroma": f"{_FLUX_NORMS} distilled_guidance_layer.norms.{{}}",
    "qwen-image": "txt_norm transformer_blocks.{}.attn.(norm_q|norm_k|norm_added_q|norm_added_k)",
    "hidream": """(double|single)_stream_blocks.{}.block.(attn1.q_rms_norm|attn1.k_rms_norm|ff_i.gate)
        double_stream_blocks.{}.block.attn1.(q_rms_norm_t|k_rms_norm_t)""",
    "kandinsky5": """(text|pooled_text)_embeddings.norm
        visual_transformer_blocks.{}.cross_attention.(query|key)_norm
        (text|visual)_transformer_blocks.{}.self_attention.(query|key)_norm""",
    "ernie-image": "layers.{}.(adaLN_mlp_ln|adaLN_sa_ln|self_attention.norm_q|self_attention.norm_k)",
    "hunyuan-image": _HUNYUAN_NORMS,
    "hunyuan-video": _HUNYUAN_NORMS,
    "hunyuan-video-1.5": f"{_HUNYUAN_NORMS} vision_in.proj.(0|4) cond_type_embedding",
    "wan": """blocks.{}.(self_attn|cross_attn).(norm_q|norm_k) blocks.{}.cross_attn.norm_k_img blocks.{}.norm3
        img_emb.proj.(0|4)""",
    "ltx-video": _LTX_NORMS,
    "ltx-2": f"""{_LTX_NORMS} transformer_blocks.{{}}.(audio_attn1|audio_attn2).(q_norm|k_norm)
        transformer_blocks.{{}}.(audio_to_video_attn|video_to_audio_attn).(q_norm|k_norm)
       
        (audio|video)_embeddings_connector.transformer_1d_blocks.{{}}.attn1.(to_q|to_k|to_v|to_out.0|q_norm|k_norm)
        (audio|video)_embeddings_connector.transformer_1d_blocks.{{}}.ff.net.(0.proj|2)""",
    "hunyuan-dit": """blocks.{}.(attn1|attn2).(q_norm|k_norm) blocks.{}.(norm1|norm2|norm3|skip_norm)""",
    "ideogram4": """layers.{}.attention.(norm_q|norm_k) llm_cond_norm embed_image_indicator
        layers.{}.(attention_norm1|attention_norm2|ffn_norm1|ffn_norm2)""",
    "cogvideox": "blocks.{}.(norm1.norm|norm2.norm|norm_q|norm_k) norm_final norm_out.norm",
    "anima": """blocks.{}.(self_attn|cross_attn).(q_norm|k_norm) t_embedding_norm
        llm_adapter.(embed|in_proj|out_proj|norm)
        llm_adapter.blocks.{}.(norm_self_attn|norm_cross_attn|norm_mlp)
        llm_adapter.blocks.{}.(self_attn|cross_attn).(q_proj|k_proj|v_proj|o_proj|q_norm|k_norm)
        llm_adapter.blocks.{}.mlp.(0|2)""",
    "lumina2": _LUMINA_NORMS,
    "z-image": _LUMINA_NORMS,
}


def _expand(text: str) -> list[str]:
    """Return the names of a text: each name once for every choice of `(a|b)`."""
    names = []
    for word in text.split():
        parts = [part.split("|") for part in re.split(r"[()]", word)]
        names += ["".join(choice) for choice in itertools.product(*parts)]
    return names


SAME_NAMED = {family: _expand(text) for family, text in _SAME_NAMED.items()}
"""Linear layers and convolutions by family."""
NORMS = {family: _expand(text) for family, text in _NORMS.items()}
"""Norms and other weights that no adapter of ours changes, by family."""
