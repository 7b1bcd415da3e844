"""The rules of A1111 and Forge.

A1111: extensions-builtin/Lora of version 1.10 (May 2025). Forge (June 2025) has a copy of ComfyUI's loader
for the networks that it runs. `a1111` stands for both: for networks that A1111 does not run, what Forge
loads.
"""

from __future__ import annotations

from dataclasses import replace

from lorakit.adapters.formats.consumers import ends
from lorakit.adapters.formats.consumers.comfyui import text_spellings, unet_rule
from lorakit.adapters.formats.consumers.rules import Consumer, LoaderRule, Names, Spelling

_NATIVE = (Spelling("diffusion_model.", Names.NATIVE), Spelling("lora_unet_", Names.NATIVE, "_"))
_FLUX = (
    Spelling("transformer.", Names.DIFFUSERS),
    Spelling("lycoris_", Names.DIFFUSERS, "_"),
    Spelling("lora_transformer_", Names.DIFFUSERS, "_"),
)


def _forge(layouts: str, spellings: tuple[Spelling, ...] = (), texts: int = 0) -> LoaderRule:
    return LoaderRule(
        tuple(layouts.split()),
        (*_NATIVE, *spellings, *text_spellings(texts)),
        ends.COMFYUI,
        text_encoders=("text_encoder", "text_encoder_2")[:texts],
        notes="in Forge; A1111 does not run this model",
    )


def _a1111(texts: int, only: str = ".+") -> LoaderRule:
    """Return the rule of a U-Net. A1111 divides DoRA's magnitudes by norms of the inputs."""
    rule = unet_rule(texts)
    spellings = tuple(
        replace(spelling, only=only) if spelling.names is Names.UNET else spelling
        for spelling in rule.spellings
        if spelling.prefix.startswith("lora_")
    )
    return replace(rule, layouts=("kohya",), spellings=spellings, ends=ends.A1111, norm_of="inputs")


# A1111 looks for the one upsampler of SDXL's deepest level where Stable Diffusion 1.5 has it.
_SDXL = _a1111(2, r"(?!up_blocks\.0\.upsamplers).+")
_FORGE_RULES = {
    "sd3": _forge("native kohya", (), 2),
    "flux1": _forge("diffusers native kohya", _FLUX, 1),
    "chroma": _forge("native kohya"),
}
A1111 = Consumer(
    "a1111",
    "A1111/Forge",
    "1.10 and Forge of June 2025",
    _FORGE_RULES | {"sd15": _a1111(1), "sd15-inpaint": _a1111(1), "sdxl": _SDXL, "sdxl-inpaint": _SDXL},
    is_export_target=True,
)
FORGE = Consumer(
    "forge",
    "Forge",
    "June 2025",
    {family: replace(rule, notes="") for family, rule in _FORGE_RULES.items()}
    | {"sd15": unet_rule(1), "sd15-inpaint": unet_rule(1)}
    | {"sdxl": unet_rule(2), "sdxl-inpaint": unet_rule(2)},
)
