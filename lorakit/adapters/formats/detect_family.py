"""Detect the model family of an adapter without lorakit's metadata: by other metadata, names and widths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from lorakit.adapters.formats import module_names, native_names
from lorakit.adapters.formats.delta_weights import DeltaWeight

# Prefixes of `modelspec.architecture`, `ss_base_model_version` and similar keys of other trainers.
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
        "anima": "anima",
        "ltx-2": "ltx-2 ltx2 ltxv2 ltx_2",
        "ltx-video": "ltx",
        "hunyuan-video-1.5": "hunyuan-video-1.5 hunyuan_video_1_5 hunyuan_video-1.5",
        "cogvideox": "cogvideox",
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
_WAN_IMAGE_ATTENTION = re.compile(r"cross_attn[._][kv]_img$|attn2[._]add_[kv]_proj$|img_emb[._]proj")
_IMAGE_VARIANTS = {"wan": "wan-i2v"}
_ONE_STREAM = re.compile(r"single_blocks[._]\d+[._]linear1$")
_KEYS = ("modelspec.architecture", "ss_base_model_version", "base_model_version")

_DOUBLE = r"(?<![a-z_])transformer_blocks\.\d+\.attn\."
_MODULE_PATTERNS: list[tuple[str, str, str]] = [  # family, pattern of some module, pattern of no module
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
    ("pixart-sigma", r"(?<![a-z_])transformer_blocks\.\d+\.attn2\.", r"\.attn\.|unet|audio"),
    ("ltx-video", r"(?<![a-z_])transformer_blocks\.\d+\.attn2\.", r"\.attn\.|unet|audio"),
    ("sana", r"(?<![a-z_])transformer_blocks\.\d+\.attn2\.|ff\.conv_", r"\.attn\.|unet|ff\.net|audio"),
    ("anima", r"(?<![a-z_])transformer_blocks\.\d+\.(attn2|norm[123]\.linear_[12])", r"\.attn\.|unet"),
    ("ltx-2", r"transformer_blocks\.\d+\.(audio_(attn[12]|ff|to_video_attn)|video_to_audio_attn)\.", r"^$"),
    ("cogvideox", r"(?<![a-z_])transformer_blocks\.\d+\.(attn1|norm[12]\.linear)", r"attn2|unet|audio"),
    ("cogview4", r"(?<![a-z_])transformer_blocks\.\d+\.attn1\.", r"attn2|unet|audio"),
    ("glm-image", r"(?<![a-z_])transformer_blocks\.\d+\.attn1\.", r"attn2|unet|audio"),
]  # fmt: skip

_SINGLE_BLOCK_COUNTS = {"longcat-image": 20, "flux1": 38, "chroma": 38}
"""Number of single-stream blocks of families with the same names and widths."""
_ATTENTION = r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|to_add_out)$"
# Number of inputs of a layer in the published models, for families with the same names.
_WIDTHS: dict[str, tuple[str, tuple[int, ...]]] = {
    "sd15": (r"attn2\.to_k$", (768, 1024)),
    "sdxl": (r"attn2\.to_k$", (2048,)),
    "kolors": (r"attn2\.to_k$", (4096,)),
    "flux1": (_ATTENTION, (3072,)),
    "chroma": (_ATTENTION, (3072,)),
    "longcat-image": (_ATTENTION, (3072,)),
    "hunyuan-image": (_ATTENTION, (3584,)),
    "hunyuan-video": (_ATTENTION, (3072,)),
    "sd3": (_ATTENTION, (1536, 2432)),
    "qwen-image": (_ATTENTION, (3072,)),
    "qwen-image-2.1": (_ATTENTION, (4096,)),
    "pixart-sigma": (r"attn1\.to_q$", (1152,)),
    "ltx-video": (r"attn2\.to_k$", (2048, 4096)),
    "anima": (r"attn2\.to_k$", (1024,)),
    "hunyuan-dit": (r"attn1\.to_q$", (1408,)),
    **dict.fromkeys(("wan", "wan-i2v"), (r"attn1\.to_q$", (1536, 3072, 5120))),
    "sana": (r"attn1\.to_q$", (2240, 1152)),
    "z-image": (r"layers\.\d+\.attention\.to_q$", (3840,)),
    "ideogram4": (r"layers\.\d+\.attention\.to_q$", (4608,)),
    "lumina2": (r"layers\.\d+\.attn\.to_q$", (2304,)),
    "cogvideox": (r"attn1\.to_q$", (1920, 3072)),
    "cogview4": (r"attn1\.to_q$", (4096,)),
    "glm-image": (r"attn1\.to_q$", (4096,)),
}


def family_from_metadata(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the family that the metadata of other programs names, if any."""
    for key in _KEYS:
        value = metadata.get(key, "").lower()
        for prefix, family in _FAMILY_BY_PREFIX.items():
            if value.startswith(prefix):
                return (family,)
    return ()


def families_from_tensors(parts: Mapping[str, Mapping[str, torch.Tensor]]) -> tuple[str, ...]:
    """Return the families that fit the names of a file and the heights of its fused layers.

    Flux.2 has the names of Flux.1, but its single-stream blocks have 9 times as many outputs as inputs,
    not 7.
    """
    families = families_from_keys(parts)
    for stem, part in parts.items():
        size = _height_and_width(part) if _ONE_STREAM.search(stem) else None
        if size is not None:
            is_flux2_height = size[0] == 9 * size[1]
            families = tuple(f for f in families if (f == "flux2") == is_flux2_height) or families
            break
    return _with_known_width(families, parts)


def _with_known_width(
    families: tuple[str, ...], parts: Mapping[str, Mapping[str, torch.Tensor]]
) -> tuple[str, ...]:
    """Return the families for which a layer has the width of a published model; all if it fits none."""
    if len(families) < 2:
        return families
    sizes = {stem: size for stem, part in parts.items() if (size := _height_and_width(part))}

    def fits(family: str) -> bool:
        widths = {
            module: size[1]
            for stem, size in sizes.items()
            for module in module_names.resolve_key(stem, family) or ()
        }
        return _has_known_width(family, widths) is True

    return tuple(family for family in families if fits(family)) or families


def _height_and_width(part: Mapping[str, torch.Tensor]) -> tuple[int, int] | None:
    """Return the outputs and inputs of a weight by the tensors of its adapter; None if these do not say."""
    if "full" in part and part["full"].ndim >= 2:
        return part["full"].shape[0], part["full"].shape[1]
    for up, down in (("up", "down"), ("hada_w1_a", "hada_w1_b")):
        if up in part and down in part:
            return part[up].shape[0], part[down].shape[1]
    first, second = _factor_size(part, 1), _factor_size(part, 2)
    return (first[0] * second[0], first[1] * second[1]) if first and second else None


def _factor_size(part: Mapping[str, torch.Tensor], number: int) -> tuple[int, int] | None:
    """Return the outputs and inputs of one of LoKr's two factors, dense or as a product."""
    dense = part.get(f"lokr_w{number}")
    if dense is not None:
        return dense.shape[0], dense.shape[1]
    a, b = part.get(f"lokr_w{number}_a"), part.get(f"lokr_w{number}_b")
    if a is None or b is None:
        return None
    # with a core for convolutions, both are (rank, size)
    return a.shape[1 if "lokr_t2" in part and number == 2 else 0], b.shape[1]


_PREFIXES = re.compile(
    r"^(model\.)?diffusion_model\.|^lora_unet_|^base_model\.model\.|^transformer\.(?=(double|single)_blocks\.)"
)


def families_from_keys(stems: Iterable[str]) -> tuple[str, ...]:
    """Return the families whose native names fit most keys; without native names, those whose diffusers names
    fit."""
    stems = list(stems)
    names = [_PREFIXES.sub("", stem) for stem in stems]
    matches = {
        family: sum(native_names.is_block_module(family, name) for name in names)
        for family in native_names.NATIVE_NAMES
    }
    most = max(matches.values(), default=0)
    if most:
        return _with_image_attention(tuple(f for f, count in matches.items() if count == most), names)
    modules = [module for stem in stems for module in module_names.resolve_key(stem, None) or ()]
    return _families_from_modules(modules)


def _families_from_modules(modules: Iterable[str]) -> tuple[str, ...]:
    text = "\n".join(sorted(modules))
    families = tuple(
        family
        for family, present, absent in _MODULE_PATTERNS
        if re.search(present, text, re.M) and (absent == "^$" or not re.search(absent, text, re.M))
    )
    return _with_image_attention(families, text.splitlines())


def _with_image_attention(families: tuple[str, ...], names: Iterable[str]) -> tuple[str, ...]:
    """Return the families, Wan as image to video if a name says that the network attends to an image.

    Only 2.1 does: the names of 2.2 are those of text to video.
    """
    if not any(map(_WAN_IMAGE_ATTENTION.search, names)):
        return families
    return tuple(_IMAGE_VARIANTS.get(family, family) for family in families)


def narrow_by_shapes(candidates: tuple[str, ...], deltas: Mapping[str, DeltaWeight]) -> tuple[str, ...]:
    """Return the candidates that fit the modules and their widths; all if none fits a published model."""
    fitting = candidates or _families_from_modules(deltas)
    if len(fitting) > 1:
        by_modules = _families_from_modules(deltas)
        fitting = tuple(name for name in fitting if name in by_modules) or fitting
    deepest = max(
        (int(n) for n in re.findall(r"single_transformer_blocks\.(\d+)", "\n".join(deltas))), default=0
    )
    deep_enough = tuple(f for f in fitting if deepest < _SINGLE_BLOCK_COUNTS.get(f, deepest + 1))
    fitting = deep_enough or fitting
    widths = {module: delta.shape[1] for module, delta in deltas.items() if len(delta.shape) > 1}
    known = {family: _has_known_width(family, widths) for family in fitting}
    exact = tuple(family for family in fitting if known[family] is True)
    return exact or tuple(family for family in fitting if known[family] is not False) or fitting


def _has_known_width(family: str, widths: Mapping[str, int]) -> bool | None:
    """Return True if the width of a module is one of a published model; None if there is none to compare."""
    ending, published = _WIDTHS.get(family, ("", ()))
    first = next((width for module, width in widths.items() if ending and re.search(ending, module)), None)
    return None if first is None else first in published
