"""Which family an adapter belongs to, where its file does not say: by metadata, names and widths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from lorakit.adapters.formats import module_names, native_names
from lorakit.adapters.formats.delta_weights import DeltaWeight

# Beginnings of `modelspec.architecture`, `ss_base_model_version` and what trainers write beside them.
_FAMILY_BY_PREFIX = {
    word: family
    for family, words in {
        "sdxl": "stable-diffusion-xl sdxl",
        "sd15": "stable-diffusion-v1 sd_v1 sd1 sd_1 stable-diffusion-v2 sd_v2",
        "sd3": "stable-diffusion-3 sd3",
        "flux2": "flux-2 flux2 flux.2",
        "flux1": "flux-1 flux.1 flux1",
        "chroma": "chroma",
        "qwen-image-2.1": "qwen-image-2",
        "qwen-image": "qwen",
        "z-image": "z-image zimage z_image",
        "auraflow": "auraflow aura_flow",
        "lumina2": "lumina",
        "hidream": "hidream",
        "pixart-sigma": "pixart",
        "sana": "sana",
        "hunyuan-dit": "hunyuan-dit",
        "hunyuan-image": "hunyuan-image hunyuan_image",
        "kolors": "kolors",
        "longcat-image": "longcat",
        "wan": "wan",
        "ltx-video": "ltx",
        "hunyuan-video": "hunyuan-video hunyuan_video",
        "cogview4": "cogview4",
        "kandinsky5": "kandinsky5",
        "ernie-image": "ernie",
        "krea2": "krea2",
        "ideogram4": "ideogram4",
        "glm-image": "glm-image",
    }.items()
    for word in words.split()
}
_ONE_STREAM = re.compile(r"single_blocks[._]\d+[._]linear1$")
_KEYS = ("modelspec.architecture", "ss_base_model_version", "base_model_version")

_DOUBLE = r"(?<![a-z_])transformer_blocks\.\d+\.attn\."
_MODULE_PATTERNS: list[tuple[str, str, str]] = [  # family, what its modules have, what they have not
    ("sdxl", r"(down_blocks\.2\.attentions|text_encoder_2\.|mid_block\.\S+transformer_blocks\.[1-9])",
     r"(down_blocks\.0\.attentions|down_blocks\.3|transformer\.)"),
    ("kolors", r"mid_block\.\S+transformer_blocks\.[1-9]", r"down_blocks\.0\.attentions|text_encoder"),
    ("sd15", r"unet\.|text_model", r"transformer_blocks\.[1-9]|text_encoder_2|transformer\."),
    ("flux2", r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out$)|ff(_context)?\.linear_in",
     r"mode_blocks"),
    ("flux1", _DOUBLE + r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]$|proj_|norm)",
     r"joint_|attn2|mode_blocks|to_qkv|mlp\.(?!fc)|to_gate|token_refiner|linear_in"),
    ("chroma", _DOUBLE + r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]$|proj_)",
     r"joint_|attn2|mode_blocks|to_qkv|mlp\.(?!fc)|norm|to_gate|token_refiner|linear_in|text_encoder"),
    ("longcat-image", _DOUBLE + r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]$|proj_)",
     r"joint_|attn2|mode_blocks|to_qkv|mlp\.(?!fc)|to_gate|token_refiner|linear_in|text_encoder"),
    ("hunyuan-image", r"token_refiner|" + _DOUBLE,
     r"joint_|attn2|to_qkv|mlp\.(?!fc)|to_gate|linear_in|mode_blocks"),
    ("hunyuan-video", r"token_refiner|single_transformer_blocks\.3[89]\.",  # deeper than Flux.1
     r"joint_|attn2|to_qkv|mlp\.(?!fc)|to_gate|linear_in|mode_blocks"),
    ("qwen-image", _DOUBLE + r"\S*(add_[qkv]|to_add)|img_mlp\.net", r"single_|attn2|joint_"),
    ("qwen-image-2.1", _DOUBLE + r"to_|img_mlp\.proj", r"single_|attn2|add_|to_gate|joint_|ff"),
    ("sd3", _DOUBLE, r"single_|joint_|img_m|txt_m|to_gate|mode_blocks|token_refiner|linear_in"),
    ("auraflow", r"joint_transformer_blocks|single_transformer_blocks\.\d+\.attn\.to_out\.0", r"mode_blocks"),
    ("lumina2", r"(layers|refiner)\.\d+\.attn\.", r"self_attention"),
    ("z-image", r"(layers|refiner)\.\d+\.attention\.", r"perceiver|cross_attention"),
    ("hidream", r"(double|single)_stream_blocks", r"^$"),
    ("kandinsky5", r"visual_transformer_blocks|text_transformer_blocks", r"^$"),
    ("ernie-image", r"layers\.\d+\.self_attention", r"perceiver"),
    ("ideogram4", r"(?<!refiner\.)layers\.\d+\.attention\.", r"refiner|perceiver|cross_attention"),
    ("fibo2", r"perceiver|layers\.\d+\.cross_attention", r"^$"),
    ("krea2", r"to_gate|text_fusion", r"^$"),
    ("flux3", r"mode_blocks", r"^$"),
    ("hunyuan-dit", r"transformer\.blocks\.\d+\.attn[12]", r"\.ffn\."),
    ("wan", r"transformer\.blocks\.\d+\.(attn[12]|ffn)\.", r"\.ff\."),
    ("pixart-sigma", r"(?<![a-z_])transformer_blocks\.\d+\.attn2\.", r"\.attn\.|unet"),
    ("ltx-video", r"(?<![a-z_])transformer_blocks\.\d+\.attn2\.", r"\.attn\.|unet"),
    ("sana", r"(?<![a-z_])transformer_blocks\.\d+\.attn2\.|ff\.conv_", r"\.attn\.|unet|ff\.net"),
    ("cogview4", r"(?<![a-z_])transformer_blocks\.\d+\.attn1\.", r"attn2|unet"),
    ("glm-image", r"(?<![a-z_])transformer_blocks\.\d+\.attn1\.", r"attn2|unet"),
]  # fmt: skip

# Widths of a layer's input on the published models; they decide where the names leave several.
_SINGLE_BLOCK_COUNTS = {"longcat-image": 20, "flux1": 38, "chroma": 38}
"""Blocks of one stream that families of the same names and widths have."""
_WIDTHS: dict[str, tuple[str, tuple[int, ...]]] = {
    "sd15": (r"attn2\.to_k$", (768, 1024)),
    "sdxl": (r"attn2\.to_k$", (2048,)),
    "kolors": (r"attn2\.to_k$", (4096,)),
    "flux1": (r"transformer_blocks\.\d+\.attn\.to_q$", (3072,)),
    "chroma": (r"transformer_blocks\.\d+\.attn\.to_q$", (3072,)),
    "longcat-image": (r"transformer_blocks\.\d+\.attn\.to_q$", (3072,)),
    "hunyuan-image": (r"transformer_blocks\.\d+\.attn\.to_q$", (3584,)),
    "hunyuan-video": (r"transformer_blocks\.\d+\.attn\.to_q$", (3072,)),
    "sd3": (r"transformer_blocks\.\d+\.attn\.to_q$", (1536, 2432)),
    "qwen-image": (r"transformer_blocks\.\d+\.attn\.to_q$", (3072,)),
    "qwen-image-2.1": (r"transformer_blocks\.\d+\.attn\.to_q$", (4096,)),
    "pixart-sigma": (r"attn1\.to_q$", (1152,)),
    "ltx-video": (r"attn1\.to_q$", (2048, 4096)),
    "hunyuan-dit": (r"attn1\.to_q$", (1408,)),
    "wan": (r"attn1\.to_q$", (1536, 3072, 5120)),
    "sana": (r"attn1\.to_q$", (2240, 1152)),
    "z-image": (r"layers\.\d+\.attention\.to_q$", (3840,)),
    "ideogram4": (r"layers\.\d+\.attention\.to_q$", (4608,)),
    "cogview4": (r"attn1\.to_q$", (4096,)),
    "glm-image": (r"attn1\.to_q$", (4096,)),
}


def family_from_metadata(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The family that the file's own words name, if any."""
    for key in _KEYS:
        said = metadata.get(key, "").lower()
        for word, family in _FAMILY_BY_PREFIX.items():
            if said.startswith(word):
                return (family,)
    return ()


def families_from_tensors(parts: Mapping[str, Mapping[str, torch.Tensor]]) -> tuple[str, ...]:
    """Families that a file's names, and the heights of its fused layers, point to.

    Flux.2 has Flux.1's names; but a block of one stream is 9 times as tall as wide there, not 7 times.
    """
    found = families_from_keys(parts)
    for stem, part in parts.items():
        down, up = part.get("down", part.get("hada_w1_b")), part.get("up", part.get("hada_w1_a"))
        if down is not None and up is not None and _ONE_STREAM.search(stem):
            nine = up.shape[0] == 9 * down.shape[1]
            return tuple(family for family in found if (family == "flux2") == nine) or found
    return found


def families_from_keys(stems: Iterable[str]) -> tuple[str, ...]:
    """Families all of whose names are understood: those whose native names the file has, else those that
    diffusers' names point to."""
    given = list(stems)
    plain = [
        re.sub(r"^(model\.)?diffusion_model\.|^lora_unet_|^base_model\.model\.", "", stem) for stem in given
    ]
    held = {
        family: sum(native_names.is_block_module(family, name) for name in plain)
        for family in native_names.NATIVE_NAMES
    }
    most = max(held.values(), default=0)
    if most:
        return tuple(family for family, count in held.items() if count == most)
    modules = [m for stem in given for m in module_names.resolve_key(stem, None) or ()]
    return _families_from_modules(modules)


def _families_from_modules(modules: Iterable[str]) -> tuple[str, ...]:
    text = "\n".join(sorted(modules))
    return tuple(
        family
        for family, has, lacks in _MODULE_PATTERNS
        if re.search(has, text, re.M) and (lacks == "^$" or not re.search(lacks, text, re.M))
    )


def narrow_by_shapes(possible: tuple[str, ...], changes: Mapping[str, DeltaWeight]) -> tuple[str, ...]:
    """The candidates that fit the modules and their widths; all of them where none fits a published model."""
    fitting = possible or _families_from_modules(changes)
    if len(fitting) > 1:
        marked = _families_from_modules(changes)
        fitting = tuple(name for name in fitting if name in marked) or fitting
    deepest = max(
        (int(n) for n in re.findall(r"single_transformer_blocks\.(\d+)", "\n".join(changes))), default=0
    )
    fitting = (
        tuple(family for family in fitting if deepest < _SINGLE_BLOCK_COUNTS.get(family, deepest + 1))
        or fitting
    )
    exact = tuple(family for family in fitting if _has_known_width(family, changes) is True)
    if exact:
        return exact
    return tuple(family for family in fitting if _has_known_width(family, changes) is not False) or fitting


def _has_known_width(family: str, changes: Mapping[str, DeltaWeight]) -> bool | None:
    """Whether the widths are a published model's; None where there is nothing to compare."""
    ending, widths = _WIDTHS.get(family, ("", ()))
    found = [change.shape[1] for module, change in changes.items() if ending and re.search(ending, module)]
    return found[0] in widths if found else None
