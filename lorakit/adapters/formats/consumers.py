"""The layout that each consumer reads, and the modules that it looks up, from the consumer's own tables.

ComfyUI only logs unknown keys, so an adapter with such keys would load partly and seem to work. Each pattern
lists the module names of one family in a consumer's lookup table, as far as they were checked: ComfyUI 0.19
(April 2026), Forge (June 2025), A1111 (May 2025), diffusers 0.42. `a1111` means A1111 and Forge: the modules
that both load, or for families that A1111 does not support, those that Forge loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from lorakit.core.errors import ConfigError

CONSUMERS = ("comfyui", "a1111", "diffusers")


class LoaderRule(NamedTuple):
    """The rule by which one consumer reads the adapters of one family."""

    layout: str
    """kohya (underscores and alphas), diffusers (`transformer.`) or native (`diffusion_model.`)."""
    module_pattern: str
    """Regular expression for the denoiser's modules that it looks up."""
    text_encoders: tuple[str, ...] = ()
    """CLIP text encoders that it looks up."""


_UNET = (
    r"(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.("
    r"attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\."
    r"(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)))"
    r"|resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)"
    r"|(downsamplers|upsamplers)\.0\.conv)"
    r"|conv_in|conv_out|time_embedding\.linear_[12]"
)
_JOINT = r"attn\.(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj|to_add_out)"
_FEED = r"(ff|ff_context)\.net\.(0\.proj|2)"
_SD3 = rf"transformer_blocks\.\d+\.({_JOINT}|attn2\.(to_q|to_k|to_v|to_out\.0)|{_FEED})"
_FLUX = (
    rf"transformer_blocks\.\d+\.({_JOINT}|{_FEED})"
    r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)"
)
_ENDS = r"x_embedder|context_embedder|proj_out"
_TIMES = r"time_text_embed\.(timestep|text|guidance)_embedder\.linear_[12]|norm_out\.linear"
_FLUX1 = (
    rf"{_FLUX}|transformer_blocks\.\d+\.norm1(_context)?\.linear|single_transformer_blocks\.\d+\.norm\.linear"
    rf"|{_ENDS}|{_TIMES}"
)
_CHROMA = rf"{_FLUX}|{_ENDS}"
_FLUX2 = (
    rf"transformer_blocks\.\d+\.({_JOINT}|(ff|ff_context)\.linear_(in|out))"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
)
_AURA_FF = r"\.(linear_1|linear_2|out_projection)"
_AURA = (
    rf"joint_transformer_blocks\.\d+\.({_JOINT}|(ff|ff_context){_AURA_FF})"
    rf"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0)|ff{_AURA_FF})"
)
_PLAIN = r"(to_q|to_k|to_v|to_out\.0)"
_LUMINA = rf"(layers|context_refiner|noise_refiner)\.\d+\.(attn\.{_PLAIN}|feed_forward\.linear_[123])"
_Z = rf"(layers|context_refiner|noise_refiner)\.\d+\.(attention\.{_PLAIN}|feed_forward\.w[123])"
_QWEN = rf"transformer_blocks\.\d+\.({_JOINT}|(img|txt)_mlp\.net\.(0\.proj|2)|(img|txt)_mod\.1)"
_HIDREAM = (
    r"(double|single)_stream_blocks\.\d+\.block\.(attn1\.to_(q|k|v|out)(_t)?|adaLN_modulation\.1"
    r"|ff_i\.(shared_experts|experts\.\d+)\.w[123]|ff_t\.w[123])"
)
_KANDINSKY = (
    r"(text|visual)_transformer_blocks\.\d+\.((self|cross)_attention\.(to_query|to_key|to_value|out_layer)"
    r"|feed_forward\.(in|out)_layer)"
)
_ERNIE = rf"layers\.\d+\.(self_attention\.{_PLAIN}|mlp\.(gate_proj|up_proj|linear_fc2))"
_REFINER = rf"context_embedder\.token_refiner\.refiner_blocks\.\d+\.(attn\.{_PLAIN}|ff\.net\.(0\.proj|2))"
_HYDIT = rf"blocks\.\d+\.(attn[12]\.{_PLAIN}|ff\.net\.(0\.proj|2))"
_WAN = (
    rf"blocks\.\d+\.(attn[12]\.{_PLAIN}|attn2\.add_[kv]_proj|ffn\.net\.(0\.proj|2))|proj_out"
    r"|condition_embedder\.((text|time)_embedder\.linear_[12]|time_proj|image_embedder\.ff\.net\.(0\.proj|2))"
)
_LTX = rf"transformer_blocks\.\d+\.(attn[12]\.{_PLAIN}|ff\.net\.(0\.proj|2))"
_PIXART = rf"transformer_blocks\.\d+\.(attn[12]\.{_PLAIN}|ff\.net\.(0\.proj|2))"
_COSMOS = (
    rf"transformer_blocks\.\d+\.(attn[12]\.{_PLAIN}|ff\.net\.(0\.proj|2)|norm[123]\.linear_[12])"
    r"|norm_out\.linear_[12]|time_embed\.t_embedder\.linear_[12]|patch_embed\.proj|proj_out"
)
_ANY = r".+"

_CLIP, _CLIPS = ("text_encoder",), ("text_encoder", "text_encoder_2")
_DIFFUSERS = {"diffusers": LoaderRule("diffusers", _ANY)}


def _comfyui_and_diffusers(module_pattern: str, text_encoders: tuple[str, ...] = ()) -> dict[str, LoaderRule]:
    """Return rules for ComfyUI and diffusers that one file in the diffusers layout satisfies."""
    return {
        "comfyui": LoaderRule("diffusers", module_pattern, text_encoders),
        "diffusers": LoaderRule("diffusers", _ANY, text_encoders),
    }


def _native(module_pattern: str) -> dict[str, LoaderRule]:
    return {"comfyui": LoaderRule("native", module_pattern)}


def _unet(text_encoders: tuple[str, ...]) -> dict[str, LoaderRule]:
    return {consumer: LoaderRule("kohya", _UNET, text_encoders) for consumer in CONSUMERS}


def _sdxl() -> dict[str, LoaderRule]:
    """Return the rules of SDXL: A1111 looks for one upsampler where Stable Diffusion 1.5 has it."""
    return _unet(_CLIPS) | {"a1111": LoaderRule("kohya", rf"(?!up_blocks\.0\.upsamplers)({_UNET})", _CLIPS)}


# A consumer without a row has no layout that is known to load. Families that are not listed: diffusers only.
LOADER_RULES: dict[str, dict[str, LoaderRule]] = {
    "sd15": _unet(_CLIP),
    "sdxl": _sdxl(),
    "kolors": {"diffusers": LoaderRule("kohya", _UNET)},
    "sd3": _comfyui_and_diffusers(_SD3, _CLIPS) | {"a1111": LoaderRule("native", _SD3)},
    "flux1": _comfyui_and_diffusers(_FLUX1, _CLIP) | {"a1111": LoaderRule("diffusers", _FLUX1, _CLIP)},
    # networks with the same names; only the first layer has other input channels
    "sd15-inpaint": _unet(_CLIP),
    "sdxl-inpaint": _sdxl(),
    "flux1-kontext": _comfyui_and_diffusers(_FLUX1, _CLIP),
    "flux1-fill": _comfyui_and_diffusers(_FLUX1, _CLIP),
    "flux1-control": _DIFFUSERS,  # its loader widens the first layer; other programs were not checked
    "qwen-image-edit": _comfyui_and_diffusers(_QWEN),
    "qwen-image-edit-plus": _comfyui_and_diffusers(_QWEN),
    "chroma": _comfyui_and_diffusers(_CHROMA) | {"a1111": LoaderRule("native", _CHROMA)},
    "longcat-image": _comfyui_and_diffusers(_FLUX1),
    "longcat-image-edit": _comfyui_and_diffusers(_FLUX1),
    "flux2": _comfyui_and_diffusers(_FLUX2),
    "qwen-image": _comfyui_and_diffusers(_QWEN),
    "z-image": _comfyui_and_diffusers(_Z),
    "auraflow": _comfyui_and_diffusers(_AURA),
    "hidream": _comfyui_and_diffusers(_HIDREAM),
    "kandinsky5": _comfyui_and_diffusers(_KANDINSKY),
    "lumina2": _DIFFUSERS | _native(_LUMINA),
    "hunyuan-image": _DIFFUSERS | _native(rf"{_FLUX}|{_REFINER}"),
    "ernie-image": _DIFFUSERS | _native(_ERNIE),
    "anima": _DIFFUSERS | _native(_COSMOS),
    # video: ComfyUI has its own names; keys with diffusers' names load nothing there
    "wan": _DIFFUSERS | _native(_WAN),
    "ltx-video": _DIFFUSERS | _native(_LTX),
    "hunyuan-video": _DIFFUSERS | _native(rf"{_FLUX}|{_REFINER}"),
    # diffusers has no loader for these three; their networks accept an adapter only through peft
    "pixart-alpha": {"comfyui": LoaderRule("diffusers", _PIXART)},
    "pixart-sigma": {"comfyui": LoaderRule("diffusers", _PIXART)},
    "hunyuan-dit": _native(_HYDIT),
} | dict.fromkeys(
    ("bria", "cogview4", "fibo", "fibo2", "flux3", "glm-image", "ideogram4", "krea2", "qwen-image-2.1",
     "sana", "cogvideox", "hunyuan-video-1.5", "ltx-2"),
    _DIFFUSERS,
)  # fmt: skip
GROUPED_QUERY_FAMILIES = ("lumina2",)
"""Families with grouped-query attention: keys and values are narrower than queries."""


def loader_rules(family: str) -> dict[str, LoaderRule]:
    """Return the rule of each consumer that reads the adapters of a family."""
    return LOADER_RULES.get(family, _DIFFUSERS)


def divides_by_input_norm(family: str, consumer: str) -> bool:
    """Return True if a consumer computes DoRA wrongly: A1111 always divides by the norms of the inputs."""
    rule = loader_rules(family).get(consumer)
    return consumer == "a1111" and rule is not None and rule.layout == "kohya"


def unsupported_modules(family: str, consumer: str, modules: Iterable[str]) -> list[str]:
    """Return the modules `<component>.<module>` of an adapter that a consumer would ignore."""
    rule = loader_rules(family).get(consumer)
    return sorted(module for module in modules if rule is None or not _is_supported(rule, module))


def _is_supported(rule: LoaderRule, module: str) -> bool:
    component, path = module.split(".", 1)
    if component in ("unet", "transformer"):
        return re.fullmatch(rule.module_pattern, path) is not None
    clip = r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
    return component in rule.text_encoders and re.fullmatch(clip, path) is not None


def supporting_consumers(family: str, modules: Iterable[str]) -> tuple[str, ...]:
    """Return the consumers that read every module of an adapter."""
    names = list(modules)
    return tuple(consumer for consumer in CONSUMERS if not unsupported_modules(family, consumer, names))


def check_consumer(family: str, consumer: str) -> None:
    """Raise ConfigError if a consumer reads no adapters of the family; for use before training."""
    if consumer not in loader_rules(family):
        raise unsupported_error(family, consumer, (), "export")


def unsupported_error(family: str, consumer: str, modules: Iterable[str], where: str) -> ConfigError:
    """Return the error for a consumer that cannot read an adapter, or would ignore some of its modules."""
    rules, modules = loader_rules(family), list(modules)
    if consumer not in rules:
        return ConfigError(
            f"no layout of {family} adapters is known to load in {consumer}",
            where=where,
            remedy=f"consumers of {family}: {', '.join(name for name in CONSUMERS if name in rules)}",
        )
    ignored = unsupported_modules(family, consumer, modules)
    module_names = [name.split(".", 1)[1] for name in ignored[:5]]
    others = supporting_consumers(family, modules)
    remedy = "train the default targets (attention)" + (
        f", or export for {' or '.join(others)}" if others else ""
    )
    if consumer == "a1111" and "comfyui" in others:
        remedy += "; Forge, unlike A1111, reads the file for comfyui"
    return ConfigError(
        f"{consumer} would ignore {len(ignored)} modules, first {', '.join(module_names)}",
        where=where,
        remedy=remedy,
    )
