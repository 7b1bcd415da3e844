"""ComfyUI's rules: every weight of the native network, and diffusers' names of some families.

From comfy/lora.py and comfy/lora_convert.py of version 0.30 (August 2026), whose code was run on the keys
of every family. It reads an alpha below every spelling, no alpha in the metadata, and only logs what it
ignores.
"""

from __future__ import annotations

from lorakit.adapters.formats.consumers import ends
from lorakit.adapters.formats.consumers.rules import Consumer, Conversion, LoaderRule, Names, Spelling
from lorakit.adapters.formats.native_tables import SAME_NETWORK

_NATIVE = (Spelling("diffusion_model.", Names.NATIVE), Spelling("lora_unet_", Names.NATIVE, "_"))
"""Every weight of every network."""

_CONTROL = Conversion(
    ("img_in.lora_A.weight", "single_blocks.0.norm.key_norm.scale"),
    ((".lora_B.bias", ".diff_b"), ("_norm.scale", "_norm.set_weight")),
    prefix="diffusion_model.",
    widens=True,
)
"""Control LoRAs of Black Forest Labs."""
_WAN_FUN = Conversion(
    ("lora_unet__blocks_0_cross_attn_k.lora_down.weight",), (("lora_unet__", "lora_unet_"),)
)
_USO = Conversion(
    ("single_blocks.37.processor.qkv_lora.up.weight", "double_blocks.18.processor.qkv_lora2.up.weight"),
    (
        (".down.weight", ".lora_down.weight"),
        (".up.weight", ".lora_up.weight"),
        (".qkv_lora2.", ".txt_attn.qkv."),
        (".qkv_lora1.", ".img_attn.qkv."),
        (".proj_lora1.", ".img_attn.proj."),
        (".proj_lora2.", ".txt_attn.proj."),
        (".qkv_lora.", ".linear1_qkv."),
        (".proj_lora.", ".linear2."),
        (".processor.", "."),
    ),
    prefix="diffusion_model.",
)
"""USO, and other files of Flux.1's processors that adapt every block."""
_CONVERSIONS = (_CONTROL, _WAN_FUN, _USO)


def text_spellings(count: int, t5: int | None = None) -> tuple[Spelling, ...]:
    """Return the spellings of the first CLIP text encoders, and of a T5 with this number among them."""
    spellings = []
    for number, name in enumerate(("clip_l", "clip_g")[:count], 1):
        component = "text_encoder" if number == 1 else "text_encoder_2"
        prefixes = ("lora_te_", "lora_te1_") if number == 1 else ("lora_te2_",)
        spellings += [Spelling(prefix, Names.CLIP, "_", component=component) for prefix in prefixes]
        dotted = (f"{component}.", f"text_encoders.{name}.transformer.")
        spellings += [Spelling(prefix, Names.CLIP, component=component) for prefix in dotted]
    if t5 is not None:
        component = f"text_encoder_{t5}"
        spellings.append(Spelling("text_encoders.t5xxl.transformer.", Names.T5, component=component))
        spellings.append(Spelling(f"lora_te{t5}_", Names.T5, "_", component=component))
    return tuple(spellings)


def _diffusers(*prefixes: str, only: str = ".+") -> tuple[Spelling, ...]:
    """Return spellings with diffusers' names; those of a prefix that ends with `_` are underscored."""
    return tuple(
        Spelling(prefix, Names.DIFFUSERS, "_" if prefix.endswith("_") else ".", only) for prefix in prefixes
    )


def _native(*prefixes: str) -> tuple[Spelling, ...]:
    """Return further spellings with native names."""
    return tuple(Spelling(prefix, Names.NATIVE, "_" if prefix.endswith("_") else ".") for prefix in prefixes)


def _rule(
    layouts: str,
    spellings: tuple[Spelling, ...] = (),
    texts: int = 0,
    t5: int | None = None,
    first_width: tuple[str, int] | None = None,
) -> LoaderRule:
    clips = ("text_encoder", "text_encoder_2")[:texts]
    return LoaderRule(
        tuple(layouts.split()),
        (*_NATIVE, *spellings, *text_spellings(texts, t5)),
        ends.COMFYUI,
        text_encoders=clips,
        first_width=first_width,
        conversions=_CONVERSIONS,
    )


def unet_rule(texts: int) -> LoaderRule:
    """Return the rule of Stable Diffusion's U-Nets, which ComfyUI, A1111 and Forge share."""
    processors = tuple(Spelling(p, Names.PROCESSOR, component="unet") for p in ("", "unet."))
    unet = (
        Spelling("lora_unet_", Names.UNET, "_", component="unet"),
        Spelling("lycoris_", Names.UNET, "_", component="unet"),
        Spelling("diffusion_model.", Names.LDM, component="unet"),
        Spelling("lora_unet_", Names.LDM, "_", component="unet"),
        *processors,
    )
    clips = ("text_encoder", "text_encoder_2")[:texts]
    return LoaderRule(("kohya", "native"), (*unet, *text_spellings(texts)), ends.COMFYUI, text_encoders=clips)


_EVERYWHERE = ("transformer.", "lycoris_", "lora_transformer_", "")
_FLUX = _diffusers(*_EVERYWHERE)
_FLUX2 = _diffusers(*_EVERYWHERE, only=r"(?!time_guidance_embed|(double|single)_stream_modulation).+")
_CHROMA = _diffusers(*_EVERYWHERE, only=r"(?!distilled_guidance_layer).+")
_LONGCAT = _diffusers(*_EVERYWHERE, only=r"(?!time_embed\.).+")
_QWEN = _native("", "transformer.", "lycoris_")
_Z_IMAGE = _diffusers("diffusion_model.", "transformer.", "lycoris_", "")
_BOTH = "diffusers native kohya"
_ONLY_NATIVE = "native kohya"
_HUNYUAN = tuple(Spelling(prefix, Names.HUNYUAN) for prefix in ("transformer.", "diffusion_model."))

_RULES = {
    "sd15": unet_rule(1),
    "sdxl": unet_rule(2),
    "sd15-inpaint": unet_rule(1),
    "sdxl-inpaint": unet_rule(2),
    "sd3": _rule(
        _BOTH, _diffusers("transformer.", "base_model.model.", "lora_transformer_", "lycoris_"), 2, 3
    ),
    "flux1": _rule(_BOTH, _FLUX, 1, 2),
    "flux1-kontext": _rule(_BOTH, _FLUX, 1, 2),
    "flux1-fill": _rule(_BOTH, _FLUX, 1, 2),
    # on the weights of Flux.1 dev, whose first layer has half the inputs
    "flux1-control": _rule(_BOTH, _FLUX, 1, 2, ("x_embedder", 64)),
    "chroma": _rule(_BOTH, _CHROMA),
    "longcat-image": _rule(_BOTH, _LONGCAT),
    "flux2": _rule(_BOTH, _FLUX2),
    "qwen-image": _rule(_BOTH, _QWEN),
    "qwen-image-edit": _rule(_BOTH, _QWEN),
    "qwen-image-edit-plus": _rule(_BOTH, _QWEN),
    "z-image": _rule(_BOTH, _Z_IMAGE),
    "auraflow": _rule(_BOTH, _diffusers("transformer.")),
    "hidream": _rule(_BOTH, _native("lycoris_", "transformer.")),
    "kandinsky5": _rule(_BOTH, _native("", "transformer.")),
    "ernie-image": _rule(_BOTH, _native("transformer.")),
    "krea2": _rule(_BOTH, _Z_IMAGE),
    "pixart-sigma": _rule(_BOTH, _diffusers("transformer.", "base_model.model.", "unet.base_model.model.")),
    "hunyuan-dit": _rule(_ONLY_NATIVE, _native("base_model.model.")),
    "lumina2": _rule(_ONLY_NATIVE),
    "ideogram4": _rule(_ONLY_NATIVE),
    "hunyuan-image": _rule(_ONLY_NATIVE, _HUNYUAN),
    "hunyuan-video": _rule(_ONLY_NATIVE, _HUNYUAN),
    "hunyuan-video-1.5": _rule(_ONLY_NATIVE, _HUNYUAN),
    "wan": _rule(_ONLY_NATIVE),
    "ltx-video": _rule(_ONLY_NATIVE, _native("")),
    "ltx-2": _rule(_ONLY_NATIVE, _native("")),
    "cogvideox": _rule(_ONLY_NATIVE),
    "anima": _rule(_ONLY_NATIVE),
}
"""One line for each network; a family with the network of another one needs none."""


def _with_same_networks(rules: dict[str, LoaderRule]) -> dict[str, LoaderRule]:
    shared = {family: rules[network] for family, network in SAME_NETWORK.items() if network in rules}
    return shared | rules


COMFYUI = Consumer(
    "comfyui", "ComfyUI", "0.30 (August 2026)", _with_same_networks(_RULES), is_export_target=True
)
