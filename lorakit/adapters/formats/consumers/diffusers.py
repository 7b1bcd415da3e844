"""The rules of diffusers' own loaders, of version 0.42.

Found by loading every layout of every family into tiny networks and comparing the weights. Most loaders
raise an error for an alpha beside dotted names; some ignore it; for some families native or kohya's names
load nothing, silently.
"""

from __future__ import annotations

from dataclasses import replace

from lorakit.adapters.formats.consumers import ends
from lorakit.adapters.formats.consumers.rules import Alphas, Consumer, LoaderRule, Names, Spelling

_PATHS = (Spelling("transformer.", Names.ANY),)
_NATIVE = Spelling("diffusion_model.", Names.NATIVE)
_SAME = Spelling("diffusion_model.", Names.ANY)
_KOHYA = Spelling("lora_unet_", Names.NATIVE, "_")
_REFUSED = {"transformer.": Alphas.REFUSED, "diffusion_model.": Alphas.REFUSED, "unet.": Alphas.REFUSED}
_IGNORED = dict.fromkeys(_REFUSED, Alphas.IGNORED)
_CLIPS = (
    Spelling("text_encoder.", Names.CLIP, component="text_encoder"),
    Spelling("text_encoder_2.", Names.CLIP, component="text_encoder_2"),
)


def _rule(
    *spellings: Spelling,
    layouts: str = "diffusers",
    alphas: dict[str, Alphas] | None = None,
    texts: int = 0,
) -> LoaderRule:
    return LoaderRule(
        tuple(layouts.split()),
        (*_PATHS, *spellings, *_CLIPS[:texts]),
        ends.DIFFUSERS_KOHYA if _KOHYA in spellings else ends.DIFFUSERS,
        text_encoders=("text_encoder", "text_encoder_2")[:texts],
        alphas=_REFUSED if alphas is None else alphas,
        reads_peft_metadata=True,
        norm_of="merged",
    )


def _unet(texts: int) -> LoaderRule:
    """Return the rule of a U-Net: kohya's names with one alpha for all modules, and dotted ones without."""
    prefixes = ("lora_te_",) if texts == 1 else ("lora_te1_", "lora_te2_")
    underscored = (
        Spelling(prefix, Names.CLIP, "_", component=part)
        for prefix, part in zip(prefixes[:texts], ("text_encoder", "text_encoder_2"), strict=False)
    )
    return LoaderRule(
        ("kohya", "diffusers"),
        (
            Spelling("lora_unet_", Names.UNET, "_", component="unet"),
            Spelling("lora_unet_", Names.LDM, "_", component="unet"),
            Spelling("unet.", Names.ANY, component="unet"),
            *underscored,
            *_CLIPS[:texts],
        ),
        ends.DIFFUSERS_KOHYA,
        text_encoders=("text_encoder", "text_encoder_2")[:texts],
        alphas=_REFUSED,
        reads_peft_metadata=True,
        norm_of="merged",
        one_alpha=True,
    )


_FLUX = _rule(_KOHYA, layouts="diffusers kohya", alphas={}, texts=1)
_QWEN = _rule(_SAME, _KOHYA, layouts="diffusers native kohya", alphas={"transformer.": Alphas.REFUSED})
DEFAULT_RULE = _rule(Spelling("unet.", Names.ANY, component="unet"))
"""The rule of a family without a line: dotted names, and no alpha."""
PEFT_RULE = LoaderRule(
    ("diffusers",),
    tuple(
        Spelling(f"{component}.", Names.ANY, component=component)
        for component in (
            "transformer",
            "transformer_2",
            "unet",
            "text_encoder",
            "text_encoder_2",
            "text_encoder_3",
        )
    ),
    ends.DIFFUSERS,
    reads_peft_metadata=True,
    norm_of="merged",
)
"""The networks of every family with peft, without a pipeline's loader."""
_RULES = {
    "sd15": _unet(1),
    "sd15-inpaint": _unet(1),
    "sdxl": _unet(2),
    "sdxl-inpaint": _unet(2),
    "kolors": _unet(0),
    "sd3": _rule(texts=2),
    "flux1": _FLUX,
    "flux1-kontext": _FLUX,
    "flux1-fill": _FLUX,
    "flux1-control": replace(_rule(alphas={}, texts=1), ends=ends.DIFFUSERS | {"reshape_weight": "reshape"}),
    "chroma": _rule(alphas={}),
    "fibo": _rule(alphas={}),
    **dict.fromkeys(
        ("longcat-image", "longcat-image-edit", "bria", "glm-image", "hunyuan-image", "hunyuan-video-1.5"),
        _rule(alphas=_IGNORED),
    ),
    "flux2": _rule(_NATIVE, _KOHYA, layouts="diffusers native kohya"),
    "flux3": _rule(_SAME),
    "anima": _rule(_NATIVE, layouts="diffusers native"),
    "qwen-image": _QWEN,
    "qwen-image-edit": _QWEN,
    "qwen-image-edit-plus": _QWEN,
    "qwen-image-2.1": _rule(_SAME, alphas={"transformer.": Alphas.REFUSED}),
    "z-image": _rule(_SAME, _KOHYA, layouts="diffusers kohya"),
    "krea2": _rule(_NATIVE, layouts="diffusers native"),
    "ideogram4": _rule(_NATIVE, layouts="diffusers native"),
    "lumina2": _rule(_NATIVE, layouts="diffusers native"),
    "hidream": _rule(_SAME, layouts="diffusers native"),
    "ernie-image": _rule(_SAME, layouts="diffusers native"),
    "ltx-video": _rule(_NATIVE, layouts="diffusers native"),
    "ltx-2": _rule(_NATIVE, layouts="diffusers native"),
    **dict.fromkeys(
        ("wan", "wan-i2v"),
        _rule(_NATIVE, layouts="diffusers native", alphas={"transformer.": Alphas.REFUSED}),
    ),
    **dict.fromkeys(
        ("auraflow", "sana", "cogview4", "fibo2", "kandinsky5", "hunyuan-video", "cogvideox"), DEFAULT_RULE
    ),
}
"""One line for each family whose loader reads more than dotted names."""
NOT_LOADED = ("pixart-sigma", "pixart-alpha", "hunyuan-dit")
"""Families without a loader: their networks accept an adapter only through peft."""
DIFFUSERS = Consumer("diffusers", "diffusers", "0.42", _RULES, is_export_target=True)
